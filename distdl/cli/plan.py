"""`distdl plan`: what would run, decided and checked, without starting anything."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from distdl import driver
from distdl.cli.common import add_config_arguments, add_json_argument, loaded, print_json
from distdl.run.folder import RunFolder, saved_config


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("plan", help="what would run: world, batches, steps, memory, DeepSpeed JSON")
    add_config_arguments(parser)
    parser.add_argument("--workers", type=int, metavar="N", help="plan for this many workers")
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.workers is not None:
        args.overrides.append(f"runtime.workers={args.workers}")
    folder = RunFolder(Path(args.config))
    of_run = (folder.path / "config.json").is_file()
    config = saved_config(folder, args.overrides) if of_run else loaded(args).config
    if not args.json:
        driver.prepare_if_missing(config)
    plan = driver.planned(config, folder if of_run else None)
    if args.json:
        print_json(plan.to_dict())
    else:
        print_plan(plan, folder if of_run else None)
    return 0


def print_plan(plan: Any, folder: RunFolder | None = None) -> None:
    """The plan as a table; `folder`: of the run that it continues."""
    config, model, data = plan.settings, plan.model, plan.data
    batch = (
        f"{plan.global_batch:,} = {plan.mesh.data} data-parallel × {plan.accumulate} accumulated × "
        f"{plan.micro_batch} per forward"
    )
    memory = ", ".join(f"{name} {_bytes(size)}" for name, size in plan.state_bytes_per_worker.items())
    best = ", and each evaluation among the best so far" if config.checkpoint.keep_best else ""
    rows = [
        ("model", f"{model.family}, {model.parameters:,} parameters ({model.trainable:,} trainable)"),
        ("data", f"{data.path}, {data.train_rows:,} training and {data.eval_rows:,} held-out samples"),
        ("fingerprint", data.fingerprint[:16]),
        (
            "workers",
            f"{plan.world} by {config.runtime.kind}, {plan.device}, {plan.threads_per_worker} threads each",
        ),
        ("layout", f"{plan.layout}, {plan.mesh.data}-way data parallel, {config.train.precision}"),
        ("global batch", batch),
        ("steps", f"{plan.steps:,} ({plan.steps_per_epoch:,.2f} per epoch)"),
        ("evaluate", _every(plan.evaluate_every_steps)),
        ("checkpoint", _every(plan.checkpoint_every_steps) + best),
        ("memory/worker", f"{memory} (activations not counted)"),
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
