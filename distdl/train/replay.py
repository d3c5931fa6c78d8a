"""A step of a run once more: which samples it was made of, and the step itself, in one process.

Both follow from what a checkpoint holds: where the stream of samples was, and the state of everything that learns.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from distdl.checkpoint.layout import checkpoints
from distdl.checkpoint.load import Checkpoint
from distdl.checkpoint.state import read_state
from distdl.data.manifest import read_manifest
from distdl.data.preparation import record_of
from distdl.engine.base import Engine
from distdl.errors import InputError
from distdl.layout.process import ProcessState
from distdl.learner.units import Units
from distdl.metrics import Metrics
from distdl.plan.plan import Plan
from distdl.run.folder import RunFolder
from distdl.train.hooks.hook import Hook
from distdl.train.kernels import set_up_torch
from distdl.train.loop import train
from distdl.train.worker import build_learner, make_engine, make_source


@dataclass(frozen=True)
class Share:
    """What a rank of the data axis brings to a step, a micro-batch after the other."""

    rank: int
    workers: list[int]
    """Those that are this rank: several where the model is cut."""
    positions: list[list[int]]
    """Of the stream of samples, by micro-batch."""
    rows: list[list[int]]
    """Of the training split."""


@dataclass(frozen=True)
class Replayed:
    """Steps of a run, done again."""

    begin: int
    """The step of the checkpoint that was gone on from; 0: from the start."""
    metrics: list[dict[str, float]]
    """Of each step behind it, the last of which was asked for."""


def before(folder: RunFolder, step: int) -> Path | None:
    """The newest checkpoint that step `step` (from 1) can be reached from; None: only the start."""
    if step < 1:
        raise InputError(f"step {step}", allowed="1 or more: the first step is 1")
    found = [path for at, path in checkpoints(folder.checkpoints) if at < step]
    return found[-1] if found else None


def samples(plan: Plan, folder: RunFolder, step: int) -> list[Share]:
    """Which samples make step `step` of the run as the plan lays it out. InputError: it has no such step."""
    _refuse_beyond(plan, step)
    path, manifest = before(folder, step), read_manifest(plan.data.path)
    state = read_state(path) if path else None  # no weight is needed for that
    places = [plan.mesh.place(worker)["data"] for worker in range(plan.world)]
    found = []
    for rank in range(plan.mesh.data):
        with contextlib.closing(make_source(plan, places.index(rank), manifest)) as source:
            if state:
                source.load_state_dict(state.data)
            steps = step - 1 - (state.step if state else 0)
            source.load_state_dict({**source.state_dict(), "position": source.position + steps * plan.global_batch})
            batches = [next(source) for _ in range(plan.accumulate)]
        workers = [worker for worker, place in enumerate(places) if place == rank]
        positions, rows = ([batch[name].tolist() for batch in batches] for name in ("position", "id"))
        found.append(Share(rank, workers, positions, rows))
    return found


def _refuse_beyond(plan: Plan, step: int) -> None:
    if step > plan.steps:
        raise InputError(f"step {step:,} of a run of {plan.steps:,} steps", allowed=f"1 to {plan.steps:,}")


class _Kept(Hook):
    """Keeps the metrics of each step."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.steps: list[dict[str, float]] = []

    def after_step(self, step: int, metrics: Metrics) -> None:
        values = {name: float(mean.total) / float(mean.count) for name, mean in metrics.items() if mean.count}
        if self.engine.grad_norm is not None:
            values["grad_norm"] = float(self.engine.grad_norm)
        self.steps.append({**values, "lr": self.engine.learning_rate(step - 1)})


def replayed(plan: Plan, folder: RunFolder, step: int) -> Replayed:
    """Does the steps from the newest checkpoint before `step` to `step` again, by a plan of one process. Writes nothing.
    InputError: the run has no such step."""
    _refuse_beyond(plan, step)
    with ProcessState():
        set_up_torch(plan)
        path, manifest = before(folder, step), read_manifest(plan.data.path)
        checkpoint = Checkpoint(path) if path else None
        learner = build_learner(plan.settings, checkpoint)
        learner.file_units = Units.of(record_of(manifest))
        engine = make_engine(learner, plan, 0)
        with contextlib.closing(make_source(plan, 0, manifest)) as source:
            begin, kept = 0, _Kept(engine)
            if checkpoint:
                begin = checkpoint.step
                checkpoint.state.restore(engine, source, {}, checkpoint.read, checkpoint.tensors)
            train(learner, engine, source, [kept], start=begin, steps=step)
        return Replayed(begin, kept.steps)
