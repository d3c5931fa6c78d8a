"""The one training loop, and the one evaluation. Whatever differs is in the family, the engine or a hook."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distdl.engine.average import in_place
from distdl.engine.base import Engine
from distdl.learner import Learner
from distdl.metrics import Metrics, add, named

if TYPE_CHECKING:
    from distdl.train.hooks.hook import Hook


def train(
    learner: Learner,
    engine: Engine,
    source: Iterator[Mapping[str, Tensor]],
    hooks: Sequence[Hook],
    *,
    start: int,
    steps: int,
) -> int:
    """Learns from step `start` to `steps`, or until a hook asks to stop. Returns the number of steps done in all."""
    learner.train()
    for step in range(start, steps):
        metrics: Metrics = {}
        for batch in engine.feed(source, step):
            add(metrics, learner.update(batch, engine, step))
        for hook in hooks:
            hook.after_step(step + 1, metrics)
        if any(hook.wants_stop for hook in hooks):
            return step + 1
    return steps


def evaluate(learner: Learner, engine: Engine, source: Iterable[tuple[Mapping[str, Tensor], bool]]) -> dict[str, float]:
    """Means over the whole split, exact whatever the number of ranks. Collective."""
    learner.eval()
    sums: Metrics = {}  # a GPU is not sent the counts of each batch
    with in_place(engine.averages):
        for batch, real in source:
            found = engine.evaluate(batch).items()
            add(sums, {name: part.exact(real) for name, part in found})  # an unreal batch only keeps ranks in step
    learner.train()
    names = sorted(sums)
    totals = torch.stack([sums[name].total for name in names])
    counts = [torch.as_tensor(sums[name].count, dtype=torch.float64, device=totals.device) for name in names]
    pairs = engine.all_sum(torch.stack([totals, torch.stack(counts)], 1)).tolist()
    return named({name: total / count if count else float("nan") for name, (total, count) in zip(names, pairs)})
