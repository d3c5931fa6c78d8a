"""`distdl evaluate RUN`: the held-out metrics of a checkpoint, in this process."""

from __future__ import annotations

import argparse
from typing import Any

from distdl.cli.common import add_json_argument, add_trust_argument, print_json


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("evaluate", help="evaluate a run's checkpoint on its held-out split")
    parser.add_argument("name", metavar="RUN", help="a run's name or folder")
    parser.add_argument("--which", default="latest", metavar="latest|best|FOLDER", help="checkpoint to evaluate")
    parser.add_argument("--split", default="", help="split to evaluate on (default: the run's data.eval_split)")
    parser.add_argument("--runs", default="runs", help="folder of the runs (default: runs)")
    add_json_argument(parser)
    add_trust_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from distdl import driver
    from distdl.run.folder import find_run

    folder = find_run(args.name, args.runs)
    config, step, metrics = driver.evaluated(folder, args.which, args.split)
    if args.json:
        print_json({"run": folder.path.name, "step": step, "split": config.data.eval_split, "metrics": metrics})
    else:
        print(f"{folder.path.name}, checkpoint of step {step:,}, split {config.data.eval_split}:")
        for name, value in metrics.items():
            print(f"  {name:<12} {value:.6g}")
    return 0
