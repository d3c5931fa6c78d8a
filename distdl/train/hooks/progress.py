"""Where the run is, a few times a second, for the display."""

from __future__ import annotations

import time

from distdl.metrics import Metrics
from distdl.train.hooks.hook import Hook, Run


class Progress(Hook):
    """Event `progress` at most every `interval_s` seconds, from the first rank; costs a clock reading in between.

    The rate is that of training: time for evaluations and checkpoints is not in it.
    """

    def __init__(self, run: Run, interval_s: float = 0.25) -> None:
        self.run, self.interval_s = run, interval_s
        self._last_s, self._last_step, self._last_paused_s = time.perf_counter(), -1, 0.0

    def after_step(self, step: int, metrics: Metrics) -> None:
        now = time.perf_counter()
        if self.run.spool is None or (now - self._last_s < self.interval_s and not self.run.last(step)):
            return
        paused_s = sum(self.run.seconds.values())
        seconds = now - self._last_s - (paused_s - self._last_paused_s)
        samples = (step - self._last_step) * self.run.plan.global_batch
        loss = metrics.get("loss")
        self.run.event(
            "progress",
            step=step,
            steps=self.run.plan.steps,
            loss=float(loss.total) / loss.count if loss and loss.count else None,
            samples_per_s=samples / max(seconds, 1e-9) if self._last_step >= 0 else None,
        )
        self._last_s, self._last_step, self._last_paused_s = now, step, paused_s
