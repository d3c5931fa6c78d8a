"""`distdl tune`: many runs of one config with other values, and the config of the best of them."""

from __future__ import annotations

import argparse
import os
from typing import Any

from distdl.cli.common import add_config_arguments, add_json_argument, aside, print_json

EPILOG = """\
The section `search:` of the YAML says which keys are tried (docs/tune.md):

  search:
    space:
      optimizer.lr: {log_uniform: [1e-4, 1e-1]}
      model.dropout: {uniform: [0, 0.5]}
      train.global_batch: {choice: [32, 64, 128]}
    algorithm: tpe
    scheduler: asha
    trials: 20

examples:
  distdl tune configs/ways/tune.yaml                     trials side by side, then the best config
  distdl tune configs/ways/tune.yaml --trials 40 --resume    go on with it, or make it longer
  distdl train runs/tune-search/best.yaml                train the best
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "tune",
        help="search for the best values of some keys of a config",
        description="Trains a config with other values again and again, and writes the config of the best.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser)
    parser.add_argument("--trials", type=int, metavar="N", help="runs that are trained (search.trials)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on with the search: trials that have ended are kept")
    how.add_argument("--fresh", action="store_true", help="begin anew; an earlier search of the name is put aside")
    parser.add_argument("--plain", action="store_true", help="plain lines instead of a live table")
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from distdl import driver
    from distdl.cli.trials import Table
    from distdl.config.load import load_config
    from distdl.tune.record import Record
    from distdl.tune.search import tune

    overrides = [*args.overrides, *([f"search.trials={args.trials}"] if args.trials is not None else [])]
    loaded = load_config(args.config, overrides)

    def show(record: Record, trials: int) -> Table:
        return Table(record, trials, plain=True if args.plain else None)

    with aside(args.json):
        try:
            found = tune(loaded, overrides, resume=args.resume, fresh=args.fresh, show=show)
        except driver.Interrupted as stop:
            print(stop)
            return 130
    record, best = found.record, found.best
    folder = os.path.relpath(record.folder)
    if args.json:
        facts = {"folder": str(record.folder), "metric": record.metric, "better": record.better, "best": best.name}
        trials = [{k: v for k, v in vars(t).items() if k != "history"} for t in record.trials]
        print_json({**facts, "value": best.objective, "config": f"{record.folder}/best.yaml", "trials": trials})
        return 0
    print(f"\nbest: {best.name}, {record.metric} {best.objective:.6g} at step {best.step:,}")
    for key, value in best.values.items():
        print(f"  {key} = {value}")
    print(f"search folder: {folder} (search.png, trials.csv)")
    print(f"MLflow: {found.tracking}")
    print("next:")
    print(f"  distdl train {folder}/best.yaml")
    print(f"  distdl runs list --runs {folder}")
    return 0
