"""The axes of the mesh as the blocks of a network see them, and the sums over them that autograd follows.

A family is written as if there were one device; the few blocks that must know better (a sharded linear map, attention over
a cut sequence, a loss over a cut vocabulary) ask here. `parallel/` fills the axes in before an engine is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distdl.layout import process
from distdl.layout.boxes import Box


@dataclass
class Axis:
    """One axis of the mesh: how many ranks lie along it, and which of them this one is."""

    size: int = 1
    index: int = 0
    group: Any = None
    """The process group of the ranks along it; None where there is one."""

    def rank(self, index: int) -> int:
        """The rank in the world of the one at this place of the axis."""
        return dist.get_global_rank(self.group, index) if self.size > 1 else dist.get_rank()

    def ranks(self) -> list[int]:
        """The ranks in the world along it, in order."""
        return [self.rank(index) for index in range(self.size)]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the axis, in place; not followed by autograd."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        """The largest over the axis, in place; not followed by autograd."""
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Everyone's tensor of the same shape, in the order of the axis; not followed by autograd."""
        if self.size == 1:
            return [tensor]
        parts = [tensor.new_empty(tensor.shape) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous(), group=self.group)
        return parts


@dataclass
class Axes:
    """The axes that blocks ask for. All of size one on a single device."""

    tensor: Axis
    sequence: Axis
    expert: Axis
    attention: Callable[[Tensor, Tensor, Tensor, int], Tensor] | None = None
    """Causal attention of (B, H, T, D) queries, keys and values whose T tokens are a slice of the sequence, each to so many
    of the last ones (0: to all)."""
    memory: Any = None
    """What is kept of the tokens before these, where a sequence is read piece by piece (nn/language.py); None: nothing."""


here = Axes(Axis(), Axis(), Axis())
"""This rank's place. Filled in by `parallel/`, and emptied by `reset`."""
process.owns(here, tensor=Axis(), sequence=Axis(), expert=Axis(), attention=None, memory=None)


def reset() -> None:
    """Back to a single device."""
    here.tensor, here.sequence, here.expert, here.attention, here.memory = Axis(), Axis(), Axis(), None, None


@dataclass(frozen=True)
class Shard:
    """How a parameter is cut along an axis: dimension `dim`, which holds `blocks` equal blocks that are cut one by one.

    A fused query-key-value map (3D, D) is cut along dimension 0 in 3 blocks, so that each rank gets its heads of all
    three. A dimension that the axis does not divide is padded with zeros at the end (a vocabulary), and so is one whose
    parts are to be a `multiple` of something: kernels for 16 bits want rows that begin at a multiple of 16 bytes.
    """

    axis: Axis
    dim: int
    full: tuple[int, ...]
    """The one-process shape."""
    blocks: int = 1
    multiple: int = 1

    def rows(self, size: int) -> int:
        """Of a block of this size, those of each rank, padding and all."""
        rows = -(-size // self.axis.size)
        return -(-rows // self.multiple) * self.multiple

    def cut(self, full: Tensor) -> Tensor:
        """This rank's part of the one-process tensor."""
        parts = []
        for block in full.chunk(self.blocks, self.dim):
            rows = self.rows(block.shape[self.dim])
            padding = rows * self.axis.size - block.shape[self.dim]
            if padding:
                shape = list(block.shape)
                shape[self.dim] = padding
                block = concatenate([block, block.new_zeros(shape)], self.dim)
            parts.append(block.narrow(self.dim, rows * self.axis.index, rows))
        return concatenate(parts, self.dim).contiguous()

    def places(self, box: Box) -> list[tuple[Box, Box]]:
        """Where a box of this rank's part lies: (box of the one-process tensor, box of the part). Padding lies nowhere."""
        size = self.full[self.dim] // self.blocks
        rows, found = self.rows(size), []
        mine = max(0, min(rows, size - self.axis.index * rows))  # of a block, without the padding
        low = box.offset[self.dim]
        for block in range(self.blocks):
            begin, end = max(low, block * rows), min(low + box.shape[self.dim], block * rows + mine)
            if begin < end:
                there = block * size + self.axis.index * rows + begin - block * rows
                found.append((box.along(self.dim, there, end - begin), box.along(self.dim, begin, end - begin)))
        return found

    def join(self, part: Tensor) -> Tensor:
        """Collective along the axis: the one-process tensor, on every rank."""
        parts = [p.chunk(self.blocks, self.dim) for p in self.axis.gather(part)]
        size = self.full[self.dim] // self.blocks
        blocks = [concatenate([p[b] for p in parts], self.dim).narrow(self.dim, 0, size) for b in range(self.blocks)]
        return concatenate(blocks, self.dim)


def concatenate(tensors: list[Tensor], dim: int) -> Tensor:
    """torch.cat that leaves a single tensor as it is."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def shard_of(parameter: Tensor) -> Shard | None:
    """How a parameter is cut along the tensor axis, or padded where that has one rank; None: it is as in one process."""
    return getattr(parameter, "distdl_shard", None)


def expert_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that live on one rank of the expert axis only."""
    return [p for p in module.parameters() if getattr(p, "distdl_expert", False)]


# -- sums over the tensor axis that autograd follows (Megatron's f and g) ----------------------------------------------


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return here.tensor.sum(grad.contiguous().clone())


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return here.tensor.sum(x.contiguous().clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        ctx.dim, ctx.width = dim, x.shape[dim]
        return torch.cat(here.tensor.gather(x), dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.narrow(ctx.dim, ctx.width * here.tensor.index, ctx.width), None


def copied(x: Tensor) -> Tensor:
    """x, whose gradients from all ranks of the tensor axis are summed."""
    return _Copied.apply(x) if here.tensor.size > 1 else x


def summed(x: Tensor) -> Tensor:
    """The sum of all ranks' x along the tensor axis."""
    return _Summed.apply(x) if here.tensor.size > 1 else x


def gathered(x: Tensor, dim: int) -> Tensor:
    """All ranks' x along the tensor axis, one behind the other in dimension `dim`."""
    return _Gathered.apply(x, dim) if here.tensor.size > 1 else x
