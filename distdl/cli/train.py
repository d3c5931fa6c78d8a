"""`distdl train`: config → plan → workers → summary. The same command again continues the run."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

from distdl.cli.common import add_override_arguments, check_server, prepare_if_missing, remember_family, work_in
from distdl.cli.plan import print_notes
from distdl.config.load import load_config
from distdl.config.schema import Config
from distdl.errors import DistdlError, InputError
from distdl.run.attempts import TakenOver
from distdl.run.folder import RunFolder, existing_run, find_run, open_run, refuse_other, saved_config


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
    parser.add_argument("--plain", action="store_true", help="plain lines instead of a live progress bar")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    asked = time.time()
    work_in(args)
    if args.resume:
        config, folder = _resumed(args)
        yaml_path = None
    else:
        if not args.config or "=" in args.config:
            raise InputError("no config is given", fix="distdl train configs/quickstart.yaml, or --resume RUN")
        config, folder, yaml_path = load_config(args.config, args.overrides).config, None, args.config
    asked_for = [*([args.config] if args.resume and args.config else []), *args.overrides]
    check_server(config, folder.path if folder else Path(args.config), asked_for)  # before anything is written
    prepare_if_missing(config)

    from distdl.train.survey import survey
    from distdl.ways.start import located

    here = located(config, folder or (None if args.fresh else existing_run(config)))
    plan = survey(here)
    remember_family(config)
    folder = folder or open_run(config, yaml_path, fresh=args.fresh)
    if summary := _nothing_left(folder, plan.steps, config):
        print(f"{folder.path.name} is finished already{_why_early(summary, plan.steps)}")
        _print_summary(config, folder, summary, "")
        return 0
    with folder.private(), folder.locked(take_over=args.take_over):
        folder.begin()
        config = folder.keep(config)
        here = here.model_copy(update={"model": config.model})
        plan = dataclasses.replace(plan, config=here.model_dump(mode="json"))
        print_notes(plan, folder)
        folder.write("launch.json", {"started": asked})
        folder.write("plan.json", plan.to_dict())
        return _train(config, plan, folder, args.plain, Path(yaml_path).parent if yaml_path else None)


def _resumed(args: argparse.Namespace) -> tuple[Config, RunFolder]:
    """The config that a run was started with, with what is overridden now."""
    overrides = [*([args.config] if args.config else []), *args.overrides]
    if args.config and "=" not in args.config:
        raise InputError(f"--resume takes the run's own config; {args.config} cannot be given beside it")
    folder = find_run(args.resume, "runs")
    config = saved_config(folder, overrides)
    if config.name != (before := (folder.config_values() or {}).get("name")):
        fix = "leave the name out; a config with another name starts a run of its own"
        raise InputError(
            f"name={config.name}: the run in {folder.path} is {before!r}, and a run keeps its name", fix=fix
        )
    refuse_other(folder, config)
    return config, folder


def _train(config: Config, plan: Any, folder: RunFolder, plain: bool, source_dir: Path | None) -> int:
    from distdl.cli.display import Display
    from distdl.runtime.blame import goes_on
    from distdl.runtime.launch import launch
    from distdl.track.client import Tracker

    track = config.track
    tracker = Tracker(
        folder.path,
        track.uri,
        track.experiment,
        folder.path.name,
        enabled=track.enabled,
        system_metrics_interval_s=track.system_metrics_interval_s,
        source_dir=source_dir,
        attempt=folder.attempt,
    )
    workers = f"{plan.world} {config.runtime.kind} worker{'s' if plan.world > 1 else ''}"
    title = f"{folder.path.name}: {plan.model.family}, {plan.model.parameters:,} parameters, {workers}, {plan.layout}"
    display = Display(folder.path, plan.steps, title, plain=True if plain else None, tracked=track.enabled)
    signal.signal(signal.SIGTERM, _interrupt)  # while there are no workers that could write a checkpoint
    tracker.start()
    try:
        with display:
            summary = launch(config, plan, folder)
    except TakenOver:
        raise  # the MLflow run, the events and the end are the newer attempt's
    except KeyboardInterrupt:
        statement = tracker.finish("KILLED", "interrupted")
        display.tell_tracking()
        print(f"interrupted; {goes_on(folder)}\n{statement}")
        return 130
    except DistdlError as error:
        statement = tracker.finish("FAILED", str(error))
        display.tell_tracking()
        print(statement)
        raise
    except BaseException as error:
        tracker.finish("FAILED", f"{type(error).__name__}: {error}")
        raise
    if not summary["finished"]:
        statement = tracker.finish("KILLED", f"stopped on request after step {summary['steps']}")
        display.tell_tracking()
        print(f"stopped after step {summary['steps']:,}; the same command continues from its checkpoint\n{statement}")
        return 130
    statement = tracker.finish("FINISHED", summary=summary)
    display.tell_tracking()
    _print_summary(config, folder, summary, statement)
    return 0


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _nothing_left(folder: RunFolder, steps: int, config: Config) -> dict[str, Any] | None:
    """The summary of a run that is at its end, or None: it goes on where there are steps left, and patience."""
    summary = folder.read_derived("summary.json")
    if not summary or not summary.get("finished"):
        return None
    if summary["steps"] >= steps:
        return summary
    waited = summary.get("evaluations_without_improvement", math.inf)
    stopped = summary.get("stopped_early") and config.early_stopping and waited >= config.early_stopping.patience
    return summary if stopped else None


def _why_early(summary: dict[str, Any], steps: int) -> str:
    if summary["steps"] >= steps:
        return ""
    return f": it stopped early at step {summary['steps']:,} of {steps:,}, when its patience was at an end"


def _print_summary(config: Config, folder: RunFolder, summary: dict[str, Any], tracking: str) -> None:
    from distdl.cli.display import print_summary

    shown, train = os.path.relpath(folder.path), config.train
    further = f"train.epochs={2 * train.epochs:g}" if train.epochs else f"train.steps={2 * (train.steps or 0)}"
    if summary.get("stopped_early") and config.early_stopping:
        further = f"early_stopping.patience={2 * config.early_stopping.patience}"
    again = [
        (f"distdl ui --runs {os.path.relpath(folder.path.parent)}", "look at it in the browser"),
        (f"distdl evaluate {shown} --which {'best' if config.checkpoint.keep_best else 'latest'}", "evaluate it again"),
        (f"distdl train --resume {shown} {further}", "train it further"),
        (f"distdl plan {shown} --workers 8", "what the same run would be on 8 workers"),
    ]
    print_summary({**summary, "run_dir": shown, "next": again}, tracking)
