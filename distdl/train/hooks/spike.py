"""A loss that jumps: said, and where asked for, nothing is learned from it.

The loss is the mean over the whole batch and all ranks, so that every rank judges alike; the losses that it is compared
with are in the checkpoint, so that a run which is interrupted, or trained again, judges as it would have.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distdl.config.schema import Spike
from distdl.engine import nonfinite
from distdl.errors import TrainingFailed
from distdl.metrics import Metrics
from distdl.train.hooks.hook import Hook, Run


class Rollback(Exception):
    """Asks the worker to start again from the last checkpoint, and with the batches after `data`, where the source was."""

    def __init__(self, text: str, data: dict[str, Any], recent: list[float]) -> None:
        super().__init__(text)
        self.data, self.recent = data, recent
        self.to = 0
        """The step of that checkpoint."""


FEWEST = 10
"""Losses that a median is worth something of."""
SKIPPED = 10
"""Steps left out one after the other beyond which this is no spike but where the loss is now."""


class Median:
    """Judges losses one by one against the median of those before."""

    def __init__(self, factor: float, window: int) -> None:
        self.factor = factor
        self.recent: deque[float] = deque(maxlen=window)

    def limit(self) -> float:
        """The largest loss that is no spike."""
        middle = statistics.median(self.recent) if len(self.recent) >= FEWEST else 0.0
        return middle + (self.factor - 1) * abs(middle) if middle else math.inf

    def spikes(self, loss: float) -> bool:
        return not loss <= self.limit() and len(self.recent) >= FEWEST  # what is not a number is one, too

    def add(self, loss: float) -> None:
        if math.isfinite(loss):
            self.recent.append(loss)


class SpikeGuard(Hook):
    """Warns from the sums of every `every_steps` steps, at the cost of one small sum over ranks; the other actions look at
    each step, before anything else happens to it."""

    def __init__(self, run: Run, config: Spike, every_steps: int) -> None:
        self.run, self.action = run, config.action
        self.every_steps = every_steps if config.action == "warn" else 1
        self.median = Median(config.factor, config.window)
        self._waiting: list[tuple[int, Tensor, float | Tensor, list[Tensor]]] = []  # step, total, count, rows
        self._high, self._left_out = False, 0
        if config.action == "skip":
            run.engine.judge = self._skip

    def after_step(self, step: int, metrics: Metrics) -> None:
        if self.action == "skip" or "loss" not in metrics:
            return
        total, count = metrics["loss"]
        self._waiting.append((step, total.detach(), count, self.run.engine.rows))
        if self.run.due(step, self.every_steps):
            self._look()

    def _look(self) -> None:
        """Collective. Judges the steps that wait."""
        if not self._waiting:
            return
        device = self.run.engine.device
        totals = torch.stack([total.double().to(device) for _, total, _, _ in self._waiting])
        counts = torch.tensor([count for _, _, count, _ in self._waiting], dtype=torch.float64, device=device)
        mine = (totals / counts).tolist()
        totals, counts = self.run.engine.all_sum(torch.stack([totals, counts]))
        for (step, _, _, rows), own, loss, count in zip(
            self._waiting, mine, (totals / counts).tolist(), counts.tolist()
        ):
            if not count:  # a step without a loss, such as one that only gathers experience
                continue
            spike = self.median.spikes(loss)
            if spike and not self._high:  # a loss that stays high is told once
                self._tell(step, loss, own, rows)
            self.median.add(loss)
            self._high = spike
        self._waiting = []

    def _tell(self, step: int, loss: float, own: float, rows: list[Tensor]) -> None:
        text = self._words(step, loss, own, rows)
        if self.action == "stop":
            raise TrainingFailed(
                f"{text}\n    the run was stopped before a checkpoint holds it; the last one is sound\n"
                f"    fix: {nonfinite.ADVICE}, or set guard.spike.action=skip"
            )
        if self.action == "rollback":
            raise Rollback(text, self.run.source.state_dict(), list(self.median.recent))
        self.run.event("message", level="warning", text=text)

    def _skip(self, step: int, loss: float) -> bool:
        """The engine's question before each step. Raises TrainingFailed where it would leave out one after the other."""
        if not self.median.spikes(loss):
            self.median.add(loss)
            self._left_out = 0
            return False
        self._left_out += 1
        text = self._words(step, loss, self.run.engine.own_loss(), self.run.engine.rows)
        if self._left_out > SKIPPED:
            raise TrainingFailed(
                f"{text}\n    the {SKIPPED} steps before were left out as well: this is no spike\n"
                f"    fix: {nonfinite.ADVICE}"
            )
        self.run.event("message", level="warning", text=f"{text}; the step was left out")
        return True

    def _words(self, step: int, loss: float, own: float, rows: list[Tensor]) -> str:
        """Collective. The step, its loss, the median, and the rows of the rank with the highest loss."""
        ids = torch.cat(rows) if rows else torch.empty(0)
        told: list[Any] = [(own, nonfinite.row_numbers({"id": ids}))]
        if self.run.plan.world > 1:
            told = [None] * self.run.plan.world
            dist.all_gather_object(told, (own, nonfinite.row_numbers({"id": ids})))
        worst = max(range(len(told)), key=lambda rank: (not math.isfinite(told[rank][0]), told[rank][0]))
        middle = statistics.median(self.median.recent)
        return (
            f"the loss of step {step} is {loss:.6g}, and the median of the {len(self.median.recent)} before is "
            f"{middle:.6g}; rank {worst} had these samples (row numbers): {told[worst][1]}"
        )

    def go_on_from(self, spike: Rollback) -> None:
        """After a return: a checkpoint of fewer steps than a median needs, or none, would leave the next ones unjudged."""
        if len(self.median.recent) < FEWEST:
            self.median.recent.clear()
            self.median.recent.extend(spike.recent)

    def state_dict(self) -> dict[str, Any]:
        """Collective: what waits is judged first."""
        self._look()
        return {"recent": list(self.median.recent), "high": self._high, "left_out": self._left_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.median.recent.clear()
        self.median.recent.extend(state["recent"])
        self._high, self._left_out = state["high"], state["left_out"]
