"""Training metrics to the tracker: the mean over all ranks and all steps since the last point."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from distdl.metrics import Mean, Metrics, add
from distdl.train.hooks.hook import Hook, Run


class Log(Hook):
    """Every `every_steps` steps: one small sum over ranks, one event."""

    def __init__(self, run: Run, every_steps: int) -> None:
        self.run, self.every_steps = run, every_steps
        self._sums: Metrics = {}
        self._since, self._steps = time.perf_counter(), 0
        self._paused_s = 0.0

    def after_step(self, step: int, metrics: Metrics) -> None:
        add(self._sums, metrics)
        self._steps += 1
        if not self.run.due(step, self.every_steps):
            return
        sums = self._everyones()
        if self.run.spool is not None:
            values = {name: total / count if count else math.nan for name, (total, count) in sums.items()}
            self.run.event("metrics", step=step, values=values | self._rates(step))
        self._sums = {}
        self._since, self._steps = time.perf_counter(), 0
        self._paused_s = sum(self.run.seconds.values())

    def state_dict(self) -> dict[str, Any]:
        """Collective: the sums since the last point, so that a run continued between two points logs the same mean."""
        return {"sums": self._everyones()} if self._sums else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.run.rank == 0:  # they are the sums over all ranks, and count once
            device = self.run.engine.device
            sums = state.get("sums", {}).items()
            self._sums = {name: Mean(torch.tensor(total, device=device), count) for name, (total, count) in sums}

    def _everyones(self) -> dict[str, tuple[float, float]]:
        """Total and count of every metric over all ranks. Collective."""
        names = sorted(self._sums)
        device = self.run.engine.device
        totals = torch.stack([self._sums[n].total.double().to(device) for n in names])
        counts = torch.tensor([float(self._sums[n].count) for n in names], dtype=torch.float64, device=device)
        totals, counts = self.run.engine.all_sum(torch.stack([totals, counts]))
        return dict(zip(names, zip(totals.tolist(), counts.tolist())))

    def _rates(self, step: int) -> dict[str, float]:
        plan, engine = self.run.plan, self.run.engine
        seconds = time.perf_counter() - self._since - (sum(self.run.seconds.values()) - self._paused_s)
        rates = {
            "lr": engine.learning_rate(step - 1),
            "epoch": step / plan.steps_per_epoch if plan.steps_per_epoch else 0.0,
            "samples_per_s": self._steps * plan.global_batch / max(seconds, 1e-9),
        }
        if engine.grad_norm is not None:
            rates["grad_norm"] = float(engine.grad_norm)
        return rates
