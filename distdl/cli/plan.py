"""`distdl plan`: what would run, decided and checked, without starting anything."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from distdl import driver
from distdl.cli.common import add_config_arguments, add_json_argument, aside, loaded, print_json
from distdl.errors import InputError
from distdl.plan import birth, memory
from distdl.plan.plan import Plan
from distdl.run.folder import RunFolder, saved_config

STATE = ("weights", "gradients", "optimizer")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("plan", help="what would run: world, batches, steps, memory, DeepSpeed JSON")
    add_config_arguments(parser)
    parser.add_argument("--workers", type=int, metavar="N", help="plan for this many workers")
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="write the data set first, where it is not there yet and data.prepare says how",
    )
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.workers is not None:
        args.overrides.append(f"runtime.workers={args.workers}")
    folder = RunFolder(Path(args.config))
    of_run = (folder.path / "config.json").is_file()
    config = saved_config(folder, args.overrides) if of_run else loaded(args).config
    if args.prepare:
        with aside(args.json):
            driver.prepare_if_missing(config)
    missing = driver.missing_data(config)
    if missing and args.json:
        raise InputError(f"a plan needs the rows of its data set, and {missing}")
    plan = driver.planned(config, folder if of_run else None, unseen=bool(missing))
    if args.json:
        print_json(plan.to_dict())
    else:
        print_plan(plan, folder if of_run else None, auto=config.parallel.engine == "auto")
        if missing:
            print(f"note: {missing}; whether it fits, and how long an epoch is, is not known before")
    return 0


def print_plan(plan: Any, folder: RunFolder | None = None, auto: bool = False) -> None:
    """The plan as a table; `folder`: of the run that it continues; `auto`: nobody chose its engine."""
    config, model, data = plan.settings, plan.model, plan.data
    batch = (
        f"{plan.global_batch:,} = {plan.mesh.data} data-parallel × {plan.accumulate} accumulated × "
        f"{plan.micro_batch} per forward"
    )
    state = ", ".join(f"{name} {_bytes(size)}" for name, size in plan.state_bytes_per_worker.items())
    alone = " (auto: one process needs no DeepSpeed)" if auto and plan.layout == "torch" and plan.world == 1 else ""
    best = ", and each evaluation among the best so far" if config.checkpoint.keep_best else ""
    rows = [
        ("model", f"{model.family}, {model.parameters:,} parameters ({model.trainable:,} trainable)"),
        *_data_rows(data),
        (
            "workers",
            f"{plan.world} by {config.runtime.kind}, {plan.device}, {plan.threads_per_worker} threads each",
        ),
        ("layout", f"{plan.layout}{alone}, {plan.mesh.data}-way data parallel, {config.train.precision}"),
        ("global batch", batch),
        ("steps", _steps(plan)),
        ("evaluate", _every(plan.evaluate_every_steps)),
        ("checkpoint", _every(plan.checkpoint_every_steps) + best + _size(plan)),
        ("memory/worker", f"{state} (activations not counted)"),
        *_peaks(plan),
    ]
    for name, text in rows:
        print(f"{name:<15}{text}")
    if plan.mesh.model_parallel:
        print("mesh")
        for line in plan.mesh.picture(stage_names(plan)).splitlines():
            print(f"  {line}")
        if plan.mesh.pipeline > 1 and config.parallel.balance == "time":
            print(
                "  stages are drawn by parameters; balance: time measures the layers at the start and may cut elsewhere"
            )
        if plan.mesh.sequence > 1:
            print(f"  a sample's slices attend to each other by {plan.attention}")
    for note in driver.notes(plan, folder):
        print(f"note: {note}")
    if plan.deepspeed:
        print(f"DeepSpeed: {json.dumps(plan.deepspeed)}")


def _peaks(plan: Plan) -> list[tuple[str, str]]:
    """Where a model is cut: how its weights are made, and the most that a worker of each stage holds."""
    config, model = plan.settings, plan.model
    made = birth.in_words(config, model, plan.mesh)
    if not made:
        return []
    rows, end, per_stage = [("weights", made)], 0, plan.world // plan.mesh.pipeline
    for peak, alike in itertools.groupby(memory.peaks(config, model, plan.mesh, plan.device)):
        begin, end = end, end + per_stage * len(list(alike))
        whose = "" if (begin, end) == (0, plan.world) else f"ranks {begin}-{end - 1}: "
        beside = ", ".join(f"{part} {_bytes(size)}" for part, size in peak.items() if part not in STATE)
        share = _bytes(sum(size for part, size in peak.items() if part in STATE))
        rows.append(("peak/worker", f"{whose}{_bytes(sum(peak.values()))}: share {share}, {beside}"))
    return rows


def _data_rows(data: Any) -> list[tuple[str, str]]:
    if not data.fingerprint:
        return [("data", f"{data.path}, which is not there yet")]
    told = f"{data.path}, {data.train_rows:,} training and {data.eval_rows:,} held-out samples"
    return [("data", told), ("fingerprint", data.fingerprint[:16])]


def _steps(plan: Any) -> str:
    if plan.data.fingerprint:
        return f"{plan.steps:,} ({plan.steps_per_epoch:,.2f} per epoch)"
    epochs = plan.settings.train.epochs
    return f"{epochs:g} epochs of so many steps as there are rows" if epochs else f"{plan.steps:,}"


def stage_names(plan: Any) -> list[str]:
    """What each pipeline stage holds: its first and last layer, and their parameters."""
    if plan.mesh.pipeline == 1:
        return []
    names = []
    for start, end in itertools.pairwise(plan.stages):
        layers = plan.model.layers[start:end]
        span = layers[0][0] if len(layers) == 1 else f"{layers[0][0]} to {layers[-1][0]}"
        names.append(f"{span}, {sum(n for _, n in layers):,} parameters")
    return names


def _size(plan: Any) -> str:
    """Of a checkpoint, on disk and as the copy that is written beside the training."""
    size, config = memory.checkpoint_bytes(plan.settings, plan.model), plan.settings.checkpoint
    held = f", {_bytes(-(-size // plan.world))} of them in a worker's memory" if config.asynchronous else ""
    return f"; {_bytes(size)} each{held}"


def _every(steps: int | None) -> str:
    if steps is None:
        return "at the end of each epoch and of the run"
    return f"every {steps:,} steps and at the end" if steps else "at the end"


def _bytes(size: int) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:,.1f} {unit}" if unit != "B" else f"{size} B"
        size = size / 1000  # type: ignore[assignment]
    raise AssertionError
