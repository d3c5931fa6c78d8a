"""The reference engine: plain PyTorch, one process or DistributedDataParallel. The others are tested against it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distdl.engine import average
from distdl.engine.base import Engine
from distdl.engine.lbfgs import LBFGS, Replay
from distdl.engine.optimizers import add_penalties, keep, kept, make_optimizer
from distdl.layout.owned import Read, Same, read_part
from distdl.learner import Batch, Learner
from distdl.metrics import Metrics
from distdl.parallel.tensor import whole
from distdl.plan.plan import Plan


class TorchEngine(Engine):
    """One optimizer per player; gradients are averaged over ranks by DistributedDataParallel."""

    def __init__(self, learner: Learner, plan: Plan, rank: int) -> None:
        super().__init__(learner, plan, rank)
        self._replay = Replay(self, self._backward) if self.config.optimizer.name == "lbfgs" else None
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.wrapped: dict[str, nn.Module] = {}
        for player, net in self.bare.items():
            self.optimizers[player] = make_optimizer(self.config, net, plan.device)
            add_penalties(self.config, net, plan.accumulate)
            self.wrapped[player] = self._wrap(net)
            if player != "learner":
                setattr(learner, player, self.wrapped[player])

    def _to_device(self) -> None:
        """DeepSpeed keeps weights flat, in their own order; here they can be laid out as their pictures are."""
        super()._to_device()
        if self._channels_last:
            for parameter in self.learner.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def _wrap(self, net: nn.Module) -> nn.Module:
        if self.plan.world == 1:
            return net
        return DistributedDataParallel(net, broadcast_buffers=False, gradient_as_bucket_view=True)

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        return self.wrapped["learner"](batch, step)

    def _before_micro_batch(self, batch: Batch, micro: int) -> None:
        if self._replay:
            self._replay.keep(batch, micro)
        for net in self.wrapped.values():  # DDP reduces gradients with the last micro-batch only
            net.require_backward_grad_sync = self._last_micro  # type: ignore[assignment]

    def _minimize(self, loss: Tensor, player: str) -> None:
        self._backward(loss)
        if not self._last_micro:
            return
        optimizer, clip = self.optimizers[player], self.config.train.clip_norm
        if self.left_out:  # after the backward pass, which DistributedDataParallel waits for
            optimizer.zero_grad()
            return
        parameters = [p for p in self.bare[player].parameters() if p.grad is not None]
        if clip or self._guard:
            self.grad_norm = norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            if self._guard and not self._sound(norm):
                return  # the weights stay as they were; minimize() stops the run
            if clip:
                nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        if self._replay and isinstance(optimizer, LBFGS):
            self._replay.step(optimizer, self.bare[player], self._step)
        else:
            optimizer.step()
        optimizer.zero_grad()

    def _backward(self, loss: Tensor) -> None:
        """Of one of the step's micro-batches, the last of which sums the gradients over the ranks."""
        (loss / self.plan.accumulate if self.plan.accumulate > 1 else loss).backward()

    def _evaluate(self, batch: Batch) -> Metrics:
        if "learner" in self.bare:
            return self.learner(batch, -1, evaluate=True)
        return self.learner.evaluate(batch)

    def _set_lr(self, lr: float) -> None:
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr

    def stepping(self, player: str) -> list[torch.optim.Optimizer]:
        return [self.optimizers[player]]

    def _same(self) -> Iterator[Same]:
        for player, name, parameter in self.named():
            yield Same(f"weights/{name}", parameter, parameter.detach())
            for key, value in kept(self.optimizers[player], parameter).items():
                yield Same(f"optimizer/{key}/{name}", parameter, value)
        yield from self._beside()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, whole(parameter, tensor)) for name, parameter, tensor in self._same())

    def load_optimizer(self, read: Read, names: set[str], steps: Mapping[str, int]) -> None:
        self.optimizer_steps.update(steps)
        average.restore(self.averages, functools.partial(read_part, read), names)
        for player, name, parameter in self.named():
            keys = sorted(n.split("/")[1] for n in names if n.startswith("optimizer/") and n.split("/", 2)[2] == name)
            if keys:
                values = {key: read_part(read, f"optimizer/{key}/{name}", parameter) for key in keys}
                keep(self.optimizers[player], parameter, values, self.optimizer_steps[player])
