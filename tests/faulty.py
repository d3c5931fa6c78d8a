"""A family for the tests of how runs end: softmax regression whose last rank does something at one step."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.learner import Batch, Column, Learner
from distdl.metrics import Metrics, mean


@dataclass(frozen=True)
class Config:
    fault: str = ""
    """What the last rank does: stop, sleep, skip, exit, segfault, value, runtime, slow."""
    at: int = 25
    """In which step."""
    marker: str = ""
    """A file that is made with the fault: it comes only once where the file is there already; empty: each time."""


class Faulty(Learner):
    primary, better = "accuracy", "higher"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.net = config, nn.Linear(64, 10)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"image": Column((1, 8, 8)), "label": Column(())}

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        logits = self.net(batch["image"].flatten(1).float() / 16)
        last = dist.get_rank() == dist.get_world_size() - 1
        if step + 1 == self.config.at and self.training:
            if last and self._comes():
                self._fault()
            elif self.config.fault == "skip":
                dist.barrier()
        return F.cross_entropy(logits, batch["label"]), {
            "accuracy": mean((logits.argmax(-1) == batch["label"]).float())
        }

    def _comes(self) -> bool:
        marker = self.config.marker
        if marker and os.path.exists(marker):
            return False
        if marker:
            open(marker, "w").close()
        return True

    def _fault(self) -> None:
        fault = self.config.fault
        if fault == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fault == "sleep":
            time.sleep(1000)
        elif fault == "exit":
            os._exit(7)
        elif fault == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif fault == "value":
            raise ValueError("the user's own bug")
        elif fault == "runtime":
            raise RuntimeError("the user's own bug")
