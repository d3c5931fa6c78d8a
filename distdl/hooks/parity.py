"""It really is one run: weights that must be equal across ranks are compared, and ranks must see different samples.

A run whose gradients are not synchronised looks healthy in every curve. One hash of every tensor shows it.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from distdl.errors import TrainingFailed
from distdl.hooks.hook import Hook, Run
from distdl.metrics import Metrics


class ReplicaParity(Hook):
    """After the first step and then every `every_steps` steps. Collective; of no use on one rank."""

    def __init__(self, run: Run, every_steps: int) -> None:
        self.run, self.every_steps = run, every_steps
        self._first = True

    def after_step(self, step: int, metrics: Metrics) -> None:
        if self.run.plan.world == 1 or not (self._first or self.run.due(step, self.every_steps)):
            return
        self._first = False
        self._compare_weights(step)
        self._compare_samples(step)

    def _compare_weights(self, step: int) -> None:
        learner = self.run.learner
        tensors = {name: t for name, t in (*learner.named_parameters(), *learner.named_buffers()) if _whole(t)}
        if not tensors:
            return
        mine = torch.stack([digest(t) for t in tensors.values()])  # (N, 2)
        for rank, other in enumerate(self._gather(mine)):
            differs = (other != mine).any(-1).nonzero()
            if len(differs):
                name = list(tensors)[int(differs[0])].replace("module.", "")
                raise TrainingFailed(
                    f"after step {step} the replicas differ: {name} is not the same on rank {self.run.rank} and on rank "
                    f"{rank} ({len(differs)} of {len(tensors)} tensors differ).\n"
                    "    they no longer train one model, so the run was stopped; the last checkpoint is sound\n"
                    "    fix: look for a gradient that is not summed over ranks or a buffer that each rank updates alone"
                )

    def _compare_samples(self, step: int) -> None:
        positions = self.run.engine.batch["position"]
        everyone = torch.cat(self._gather(positions))
        if len(everyone.unique()) != len(everyone):
            raise TrainingFailed(f"in step {step} two ranks were given the same sample; the data source is at fault")

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.run.plan.world)]
        dist.all_gather(parts, tensor)
        return parts


def digest(tensor: Tensor) -> Tensor:
    """Two int64 that change with any bit of the tensor or the order of its elements: a sum, and a sum weighted by place."""
    flat = tensor.detach().contiguous().flatten()
    size = flat.element_size()
    words = flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
    total = torch.zeros(2, dtype=torch.int64, device=flat.device)
    for start in range(0, len(words), DIGEST_WORDS):
        part = words[start : start + DIGEST_WORDS].long()
        place = torch.arange(start + 1, start + 1 + len(part), device=part.device) * 0x5851F42D4C957F2D | 1
        total += torch.stack([part.sum(), (part * place).sum()])
    return total


DIGEST_WORDS = 1 << 22
"""Elements hashed at a time: their int64 copies take 100 MB, whatever the tensor's size."""


def _whole(tensor: Tensor) -> bool:
    """Whether this rank holds all of it: under ZeRO-3 a weight is an empty shell outside the forward pass."""
    return not hasattr(tensor, "ds_id")
