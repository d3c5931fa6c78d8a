"""It really is one run: gradients are those of all ranks, weights that must be equal are, and samples are not.

A run whose gradients are not synchronised looks healthy in every curve. Two numbers of every gradient (`gradients.py`) and
one hash of every tensor show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from distdl.errors import TrainingFailed
from distdl.layout.axes import Axis, shard_of
from distdl.metrics import Metrics
from distdl.train.hooks.gradients import GradientWatch
from distdl.train.hooks.hook import Hook, Run


class ReplicaParity(Hook):
    """In the first step and then every `every_steps` steps. Collective; of no use on one rank.

    Equal weights alone prove little: ZeRO's stages 1 and 2 send each weight from the rank that steps it, and stage 3 keeps
    it on that rank only. That it was stepped by the gradient of all ranks is proven by `GradientWatch`.
    """

    def __init__(self, run: Run, every_steps: int) -> None:
        self.run, self.every_steps = run, every_steps
        self._first = True
        self._gradients = GradientWatch(run.engine) if run.plan.world > 1 else None
        if self._gradients is not None:
            self._gradients.arm()

    def after_step(self, step: int, metrics: Metrics) -> None:
        if self._gradients is None:
            return
        found = [self._gradients.compare(step)] if self._gradients.seen else []
        self._gradients.forget()
        if self._first or self.run.due(step, self.every_steps):
            found += [self._compare_weights(step), self._compare_samples(step)]
        self._first = False
        if found:
            self._stop_together(next(filter(None, found), ""))
        if self.run.due(step + 1, self.every_steps):
            self._gradients.arm()

    def _stop_together(self, found: str) -> None:
        """Raises TrainingFailed on every rank where any has found something: what the first of those says."""
        plan, engine = self.run.plan, self.run.engine
        any_found = torch.tensor(float(bool(found)), device=engine.device)
        dist.all_reduce(any_found)
        if any_found:
            said: list[str] = [""] * plan.world
            dist.all_gather_object(said, found)
            raise TrainingFailed(next(filter(None, said)))

    def _compare_weights(self, step: int) -> str:
        """Along the data axis everything is the same but experts; along the tensor axis what is not cut; along the
        pipeline what several stages hold."""
        learner, engine = self.run.learner, self.run.engine
        tensors = {name: t for name, t in (*learner.named_parameters(), *learner.named_buffers()) if _whole(t)}
        hashes = {name: digest(t) for name, t in tensors.items() if t.device.type != "meta"}
        experts = {name for name in hashes if getattr(tensors[name], "distdl_expert", False)}
        cut = {name for name in hashes if shard_of(tensors[name]) is not None}
        groups, empty = engine.groups, torch.zeros(2, dtype=torch.int64, device=engine.device)
        shared = {name: hashes.get(name, empty) for name in sorted(engine.shared())}
        found = [
            self._compare(step, groups.data, {n: h for n, h in hashes.items() if n not in experts}),
            self._compare(step, groups.expert_data, {n: h for n, h in hashes.items() if n in experts}),
            self._compare(step, groups.tensor, {n: h for n, h in hashes.items() if n not in cut}),
            self._compare(step, groups.pipeline, shared, engine.shared()),
        ]
        return next(filter(None, found), "")

    def _compare(
        self, step: int, axis: Axis, hashes: dict[str, Tensor], holders: Mapping[str, Sequence[int]] | None = None
    ) -> str:
        """`holders`: the places along the axis that have a tensor at all; None: every one."""
        if axis.size == 1 or not hashes:
            return ""
        mine = torch.stack(list(hashes.values()))  # (N, 2)
        for index, other in enumerate(axis.gather(mine)):
            both = [holders is None or {index, axis.index} <= set(holders[name]) for name in hashes]
            differs = ((other != mine).any(-1) & torch.tensor(both, device=mine.device)).nonzero()
            if len(differs):
                name = list(hashes)[int(differs[0])].replace("module.", "")
                there = axis.rank(index)
                return (
                    f"after step {step} the replicas differ: {name} is not the same on rank {self.run.rank} and on rank "
                    f"{there} ({len(differs)} of {len(hashes)} tensors differ).\n"
                    "    they no longer train one model, so the run was stopped; the last checkpoint is sound\n"
                    "    fix: look for a gradient that is not summed over ranks or a buffer that each rank updates alone"
                )
        return ""

    def _compare_samples(self, step: int) -> str:
        """Each data rank has samples of its own; the ranks that share a model see the same ones."""
        plan, positions = self.run.plan, self.run.engine.batch["position"]
        gathered = [torch.empty_like(positions) for _ in range(plan.world)]
        dist.all_gather(gathered, positions)
        of_data: dict[int, Tensor] = {}
        for rank, seen in enumerate(gathered):
            if not torch.equal(of_data.setdefault(plan.mesh.place(rank)["data"], seen), seen):
                return f"in step {step} rank {rank} was given other samples than the ranks it works with"
        everyone = torch.cat(list(of_data.values()))
        if len(everyone.unique()) != len(everyone):
            return f"in step {step} two ranks were given the same sample; the data source is at fault"
        return ""


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
