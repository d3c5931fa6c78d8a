"""`distdl evaluate RUN`: the held-out metrics of a checkpoint, in this process."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from distdl.cli.common import add_trust_argument


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("evaluate", help="evaluate a run's checkpoint on its held-out split")
    parser.add_argument("name", metavar="RUN", help="a run's name or folder")
    parser.add_argument("--which", default="latest", metavar="latest|best|FOLDER", help="checkpoint to evaluate")
    parser.add_argument("--runs", default="runs", help="folder of the runs (default: runs)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_trust_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from distdl.run.folder import find_run, saved_config

    folder = find_run(args.name, args.runs)
    overrides = ["runtime={kind: local, workers: 1}", "parallel={engine: torch}"]
    if saved_config(folder).train.precision in ("fp16", "fp8"):  # what training needs of a GPU, a forward pass does not
        overrides.append("train.precision=bf16")
    config = saved_config(folder, overrides)

    from distdl.train.survey import survey
    from distdl.train.worker import evaluate_checkpoint
    from distdl.ways.start import located

    plan, trained = survey(located(config, learns=False)), folder.read("plan.json")
    if trained:  # what fitted while training fits now
        plan = dataclasses.replace(plan, eval_batch=trained["eval_batch"])
    step, metrics = evaluate_checkpoint(plan, folder, args.which)
    if args.json:
        print(json.dumps({"step": step, "metrics": metrics}))
    else:
        print(f"{folder.path.name}, checkpoint of step {step:,}, split {config.data.eval_split}:")
        for name, value in metrics.items():
            print(f"  {name:<12} {value:.6g}")
    return 0
