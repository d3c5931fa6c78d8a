"""Waits after an evaluation, where somebody who compares runs decides which of them go on."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from distdl.metrics import Metrics
from distdl.run.gate import STOP, WAIT, Gate
from distdl.train.hooks.hook import Hook, Run

LOOK_S = 0.02
"""Between two looks at the gate."""


class GateHook(Hook):
    """Stands behind the evaluation and before the checkpoint: a run that is ended here has one of this very step."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.gate = run, Gate(folder)

    def after_step(self, step: int, metrics: Metrics) -> None:
        evaluation = self.run.evaluation
        if evaluation is None or evaluation[0] != step or self.run.last(step):
            return
        told = torch.zeros(1, dtype=torch.int64, device=self.run.engine.device)
        if self.run.rank == 0:
            told += self._waits(step)
        if self.run.engine.all_sum(told).item():  # every rank ends with the same step
            self.wants_stop = self.run.paused = True

    def _waits(self, step: int) -> bool:
        """Until it may go on; whether it is to end."""
        if self.run.spool is not None:
            self.run.spool.flush()  # who decides must see what the evaluation told
        while (asked := self.gate.asks(step)) == WAIT:
            if self.run.attempt.stop_requested():  # ends here, and not where the next look would fall
                asked = STOP
                break
            self.run.engine.pulse.at("waiting for other runs")
            time.sleep(LOOK_S)
        self.run.engine.pulse.at("after the step")
        return asked == STOP
