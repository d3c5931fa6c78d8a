"""`distdl train`: config → plan → workers → summary. The same command again continues the run."""

from __future__ import annotations

import argparse
import functools
import os
from pathlib import Path
from typing import Any

from distdl import driver
from distdl.cli.common import add_json_argument, add_override_arguments, aside, print_json, work_in
from distdl.cli.replay import run_replay
from distdl.config.load import load_config
from distdl.errors import InputError


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("train", help="train a config, or continue its run")
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="YAML file of the run")
    add_override_arguments(parser)
    parser.add_argument("--resume", metavar="RUN", help="continue this run (a name or a folder) with its own config")
    parser.add_argument("--fresh", action="store_true", help="start a new run beside earlier ones of the same name")
    parser.add_argument(
        "-C", "--directory", metavar="DIR", help="folder that relative paths of the config lie in (default: this one)"
    )
    parser.add_argument(
        "--take-over", action="store_true", help="train the run even while another process does: that one is fenced off"
    )
    about = "with --resume: do this step again, in one process, beside what was logged of it; nothing is written"
    parser.add_argument("--replay-step", metavar="N", type=int, help=about)
    parser.add_argument("--plain", action="store_true", help="plain lines instead of a live progress bar")
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from distdl.cli.display import Display

    work_in(args)
    folder, source = None, None
    if args.replay_step is not None and not args.resume:
        raise InputError("--replay-step needs a run", fix="distdl train --resume RUN --replay-step N")
    if args.resume:
        if args.config and "=" not in args.config:
            raise InputError(f"--resume takes the run's own config; {args.config} cannot be given beside it")
        named = [*([args.config] if args.config else []), *args.overrides]
        config, folder = driver.resumed(args.resume, named)
        if args.replay_step is not None:
            return run_replay(folder, args.replay_step, args.json)
    else:
        if not args.config or "=" in args.config:
            raise InputError("no config is given", fix="distdl train configs/quickstart.yaml, or --resume RUN")
        named, source = args.overrides, Path(args.config)
        config = load_config(args.config, named).config
    show = functools.partial(Display, plain=True if args.plain else None)
    with aside(args.json):
        try:
            done = driver.train(
                config, folder=folder, source=source, named=named, fresh=args.fresh, take_over=args.take_over, show=show
            )
        except driver.Interrupted as stop:
            print(stop)
            return 130
    if args.json:
        print_json({"folder": str(done.folder.path), **done.summary, "trained": done.trained})
        return 0
    if not done.trained:
        print(f"{done.folder.path.name} is finished already{_why_early(done.summary, done.plan.steps)}")
    _print_summary(done)
    return 0


def _why_early(summary: dict[str, Any], steps: int) -> str:
    if summary["steps"] >= steps:
        return ""
    return f": it stopped early at step {summary['steps']:,} of {steps:,}, when its patience was at an end"


def _print_summary(done: driver.Outcome) -> None:
    from distdl.cli.display import print_summary

    config, folder, summary = done.config, done.folder, done.summary
    shown, train = os.path.relpath(folder.path), config.train
    further = f"train.epochs={2 * train.epochs:g}" if train.epochs else f"train.steps={2 * (train.steps or 0)}"
    if summary.get("stopped_early") and config.early_stopping:
        further = f"early_stopping.patience={2 * config.early_stopping.patience}"
    from distdl.model.first_words import first_words

    again = [
        *first_words(config, shown),
        (f"distdl ui --runs {os.path.relpath(folder.path.parent)}", "look at it in the browser"),
        (f"distdl evaluate {shown} --which {'best' if config.checkpoint.keep_best else 'latest'}", "evaluate it again"),
        (f"distdl train --resume {shown} {further}", "train it further"),
        (f"distdl plan {shown} --workers 8", "what the same run would be on 8 workers"),
    ]
    print_summary({**summary, "run_dir": shown, "next": again}, done.tracking)
