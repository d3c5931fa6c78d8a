"""Ends the run between two steps: with a checkpoint where it is asked to, without one where another attempt took over."""

from __future__ import annotations

import time

import torch

from distdl.metrics import Metrics
from distdl.run.attempts import TakenOver
from distdl.train.hooks.hook import Hook, Run

GO_ON, PAUSE, TAKEN_OVER = range(3)


class Stop(Hook):
    """The first rank looks about every `interval_s` seconds; all ranks learn what it saw by one small sum.

    They meet on a step that the first rank named when they last met, by the speed of the steps: the steps in between cost
    a comparison, and no rank can be a step ahead when the others end.
    """

    def __init__(self, run: Run, interval_s: float = 1.0) -> None:
        self.run, self.interval_s = run, interval_s
        self._next, self._pause = 0, 1
        self._looked_s = time.perf_counter()

    def after_step(self, step: int, metrics: Metrics) -> None:
        if step < self._next or self.run.last(step):
            return
        order, self._pause = self._agreed()
        self._next = step + self._pause
        if order == TAKEN_OVER:
            raise TakenOver(self.run.attempt.taken_over() or "a newer attempt has taken over this run")
        if order == PAUSE:
            self.wants_stop = self.run.paused = True
            self.run.event("message", level="info", text=f"asked to stop: ends with step {step} and a checkpoint of it")

    def _agreed(self) -> tuple[int, int]:
        """What to do, and the steps until the next look, on every rank."""
        told = torch.zeros(2, dtype=torch.int64, device=self.run.engine.device)
        if self.run.rank == 0:
            seconds = max(time.perf_counter() - self._looked_s, 1e-9)
            self._looked_s += seconds
            pause = int(self._pause * self.interval_s / seconds)
            told[0], told[1] = self._order(), max(1, min(pause, 2 * self._pause))
        order, pause = self.run.engine.all_sum(told).tolist()
        return order, pause

    def _order(self) -> int:
        attempt = self.run.attempt
        try:
            return TAKEN_OVER if attempt.taken_over() else PAUSE if attempt.stop_requested() else GO_ON
        except OSError:  # a file system that does not answer now is asked again
            return GO_ON
