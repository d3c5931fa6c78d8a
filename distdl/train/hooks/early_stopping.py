"""Stops when the primary metric has not improved for some evaluations (Prechelt 1998)."""

from __future__ import annotations

import math
from typing import Any

from distdl.metrics import Metrics
from distdl.train.hooks.hook import Hook, Run


class EarlyStopping(Hook):
    """Counts evaluations without an improvement of at least `min_delta`; the count survives a resume."""

    def __init__(self, run: Run, patience: int, min_delta: float) -> None:
        self.run, self.patience, self.min_delta = run, patience, min_delta
        self.best, self.waited, self._seen = -math.inf, 0, -1

    def after_step(self, step: int, metrics: Metrics) -> None:
        if self.run.evaluation is None or self.run.evaluation[0] != step or step == self._seen:
            return
        self._seen = step
        primary, sign = self.run.plan.model.primary, 1 if self.run.plan.model.better == "higher" else -1
        value = sign * self.run.evaluation[1][primary]
        if math.isfinite(value) and (self.best == -math.inf or value > self.best + self.min_delta):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.exhausted and step < self.run.plan.steps:
            self.wants_stop = self.run.stopping = True
            text = (
                f"stopped early: {primary} has not improved for {self.waited} evaluations (best {sign * self.best:.6g})"
            )
            self.run.event("message", level="info", text=text)

    @property
    def exhausted(self) -> bool:
        """Whether the patience is at its end; a run that goes on with more of it has some left."""
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        best = None if self.best == -math.inf else self.best
        return {"best": best, "waited": self.waited, "seen": self._seen, "stopped": self.wants_stop}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = -math.inf if state["best"] is None else state["best"]
        self.waited, self._seen = state["waited"], state["seen"]
