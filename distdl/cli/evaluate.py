"""`distdl evaluate RUN`: the held-out metrics of a checkpoint, in this process."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from distdl.cli.common import add_json_argument, add_progress_arguments, add_trust_argument, followed, print_json
from distdl.errors import InputError

if TYPE_CHECKING:
    from distdl.run.folder import RunFolder


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("evaluate", help="evaluate a run's checkpoint on its held-out split, or on new data")
    parser.add_argument("name", metavar="RUN", help="a run's name or folder")
    parser.add_argument("--which", default="latest", metavar="latest|best|FOLDER", help="checkpoint to evaluate")
    parser.add_argument("--split", default="", help="split to evaluate on (default: the run's data.eval_split)")
    parser.add_argument("--data", default="", metavar="PATH", help="new data instead: a table, a folder, a data set")
    parser.add_argument("--by", default="", metavar="COLUMN", help="with --data: for each value of a column, too")
    parser.add_argument("--source", default="", help="with --data: source that reads the table")
    parser.add_argument("--runs", default="runs", help="folder of the runs (default: runs)")
    add_progress_arguments(parser)
    add_json_argument(parser)
    add_trust_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from distdl import driver
    from distdl.run.folder import find_run

    folder = find_run(args.name, args.runs)
    if args.data:
        return on_new_data(args, folder)
    if args.by or args.source:
        raise InputError("--by and --source are about new data", fix="--data PATH")
    config, step, metrics = driver.evaluated(folder, args.which, args.split)
    if args.json:
        print_json({"run": folder.path.name, "step": step, "split": config.data.eval_split, "metrics": metrics})
    else:
        print(f"{folder.path.name}, checkpoint of step {step:,}, split {config.data.eval_split}:")
        for name, value in metrics.items():
            print(f"  {name:<12} {value:.6g}")
    return 0


def on_new_data(args: argparse.Namespace, folder: RunFolder) -> int:
    """Measures a checkpoint on data that the run never saw; 1: some rows could not be read."""
    from distdl.cli.predict import name_bad
    from distdl.data.asking.measures import in_words
    from distdl.data.asking.open import How
    from distdl.model.measured import measured
    from distdl.model.model import Model

    model = Model(folder, args.which)
    how = How(args.source, args.split or "test", (args.by,) if args.by else (), answers=True)
    found = measured(model, args.data, how, args.by, followed(args))
    told = found.told
    if args.json:
        of = {"run": folder.path.name, "step": model.step, "data": args.data, "rows": told.rows}
        more = {"classes": found.classes, "confusion": found.confusion, "groups": found.groups}
        set_aside = {"set_aside": told.set_aside, "notes": found.notes}
        print_json({**of, "metrics": found.metrics, "more": found.more, **more, **set_aside})
    else:
        print(f"{folder.path.name}, checkpoint of step {model.step:,}, {args.data}: {told.rows:,} rows")
        for name, value in {**found.more, **found.metrics}.items():
            print(f"  {name:<18} {value:.6g}")
        if found.confusion:
            print("what it is (rows) and what was told (columns):")
            print("\n".join(f"  {line}" for line in in_words(found.confusion, found.classes)))
        for group, metrics in found.groups.items():
            shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name != "rows")
            print(f"{args.by} = {group}: {int(metrics['rows']):,} rows  {shown}")
        for note in found.notes:
            print(f"note: {note}")
    name_bad(told)
    return 1 if told.set_aside else 0
