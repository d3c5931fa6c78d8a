"""`distdl data at`: which samples made a step; and `distdl train --resume RUN --replay-step N`: that step again."""

from __future__ import annotations

import argparse
import dataclasses
import math
from typing import Any

from distdl import driver
from distdl.cli.common import add_json_argument, print_json, print_table
from distdl.errors import InputError
from distdl.run.folder import RunFolder, find_run

SHOWN_ROWS = 12
"""Of a micro-batch, in the terminal; --json has all."""


def add_at_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_name", metavar="RUN", help="name of a run, or its folder")
    parser.add_argument("--step", metavar="N", type=int, required=True, help="the first step is 1")
    parser.add_argument("--runs", metavar="DIR", default="runs", help="folder of all runs (default: runs)")
    add_json_argument(parser)


def run_at(args: argparse.Namespace) -> int:
    """Exit code 0; InputError where the run has no such step."""
    from distdl.data.manifest import read_manifest
    from distdl.plan.plan import Plan
    from distdl.train.replay import samples

    folder = find_run(args.run_name, args.runs)
    values = folder.read("plan.json")
    if values is None:
        raise InputError(f"the run in {folder.path} was never planned", fix="train it first")
    plan = Plan.from_dict(values, folder.path)
    shares = samples(plan, folder, args.step)
    split = plan.settings.data.train_split
    if args.json:
        print_json({"step": args.step, "split": split, "ranks": [dataclasses.asdict(share) for share in shares]})
        return 0
    rows = read_manifest(plan.data.path).split(split).rows
    print(f"step {args.step:,}: {plan.global_batch:,} of the {rows:,} rows of {split}")
    lines = [("worker", "micro-batch", "positions of the stream", "rows")]
    for share in shares:
        for k, (positions, ids) in enumerate(zip(share.positions, share.rows, strict=True)):
            more = f" and {len(ids) - SHOWN_ROWS:,} more" if len(ids) > SHOWN_ROWS else ""
            who = ", ".join(map(str, share.workers))
            where = f"{positions[0]:,} to {positions[-1]:,}"
            lines.append((who, str(k), where, " ".join(map(str, ids[:SHOWN_ROWS])) + more))
    print_table(lines)
    return 0


def run_replay(folder: RunFolder, step: int, json: bool) -> int:
    """Exit code 0; InputError where the run has no such step."""
    from distdl.train.replay import replayed
    from distdl.train.survey import survey
    from distdl.ways.start import located

    done = replayed(survey(located(driver.for_one_process(folder), folder)), folder, step)
    then, since = _logged(folder, step, done.begin)
    now = {name: _mean([values.get(name, math.nan) for values in done.metrics[-since:]]) for name in done.metrics[-1]}
    now |= {
        name: done.metrics[-1][name] for name in ("lr", "grad_norm") if name in done.metrics[-1]
    }  # of the last step
    if json:
        whole = {
            "step": step,
            "from": done.begin,
            "metrics": done.metrics[-1],
            "over": since,
            "mean": now,
            "logged": then,
        }
        print_json(whole)
        return 0
    of = f"checkpoint of step {done.begin:,}" if done.begin else "start"
    print(f"step {step:,} again, from the {of}, in one process")
    names = [name for name in now if name in then]
    if then and since > 1:
        print(f"what the run logged is a mean over {since} steps; so is what stands beside it")
    lines = [("", "now", "then", "difference")]
    for name in now:
        told = (f"{then[name]:.8g}", f"{now[name] - then[name]:+.1e}") if name in names else ("not logged", "")
        lines.append((name, f"{now[name]:.8g}", *told))
    print_table(lines)
    return 0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _logged(folder: RunFolder, step: int, begin: int) -> tuple[dict[str, float], int]:
    """What the run logged at this step, and over how many steps that is the mean: ({}, 1) where it did not, or where they
    reach behind the checkpoint."""
    from distdl.track.spool import SpoolReader

    found: dict[int, dict[str, Any]] = {}
    for event in SpoolReader(folder.events).poll():
        if event["kind"] == "metrics":
            found[event["step"]] = event["values"]
    earlier = max((at for at in found if at < step), default=0)
    if step not in found or earlier < begin:
        return {}, 1
    return found[step], step - earlier
