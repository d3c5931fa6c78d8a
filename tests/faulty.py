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
    faults: tuple[str, ...] = ()
    """What the last rank does, one after the other, each time the run comes to the step: stop, sleep, skip, exit, segfault,
    value, runtime. Then it goes on."""
    at: int = 25
    """In which step."""
    count: str = ""
    """A file that grows by a byte with each fault."""


class Faulty(Learner):
    primary, better = "accuracy", "higher"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.net = config, nn.Linear(64, 10)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"image": Column((1, 8, 8)), "label": Column(())}

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        if step + 1 == self.config.at:
            self._fault(last=dist.get_rank() == dist.get_world_size() - 1)
        logits, label = self.net(batch["image"].flatten(1).float() / 16), batch["label"]
        return F.cross_entropy(logits, label), {"accuracy": mean((logits.argmax(-1) == label).float())}

    def _fault(self, last: bool) -> None:
        done = os.path.getsize(self.config.count)
        fault = self.config.faults[done] if done < len(self.config.faults) else ""
        dist.barrier()  # all have read it
        if last and fault:
            with open(self.config.count, "a") as file:
                file.write(".")
        if fault == "skip" and not last:
            dist.barrier()
        if not last:
            return
        if fault == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(1000)  # it is let go for its stack, and must not be at the end of this short run by then
        elif fault == "sleep":
            time.sleep(1000)
        elif fault == "exit":
            os._exit(7)
        elif fault == "segfault":
            time.sleep(1)  # some heartbeats: what is told of one that dies alone is where its last one was
            signal.raise_signal(signal.SIGSEGV)  # in this thread, as a real one: os.kill lets it go on meanwhile
        elif fault == "value":
            raise ValueError("the user's own bug")
        elif fault == "runtime":
            raise RuntimeError("the user's own bug")
