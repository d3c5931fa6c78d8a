"""What of a run's state a rank writes into a checkpoint, and what it reads from one. Nothing is gathered for either.

    cut along an axis     the rank has a part of the tensor, which lies in the whole one as boxes (layout/axes.py)
    dealt out by ZeRO     the rank has a run of the elements of that part: boxes, too (layout/boxes.py)
    the same on R ranks   each writes a share: all such tensors are laid end to end and cut into R parts of equal bytes

Each element is written by one rank, and every rank can tell by itself which are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from distdl.layout.axes import Axis, shard_of
from distdl.layout.boxes import Box, of_run, whole


class Read(Protocol):
    """Gives a tensor of a checkpoint by its name, or a box of it, on the CPU."""

    def __call__(self, name: str, box: Box | None = None, /) -> Tensor: ...


class Owned(NamedTuple):
    """A box of a tensor of the run's state."""

    name: str
    """`weights/NAME` (fp32), `buffers/NAME`, `optimizer/KEY/NAME`, with the one-process name."""
    shape: tuple[int, ...]
    """Of the whole tensor in one process."""
    box: Box
    tensor: Tensor
    """What is in the box."""


class Same(NamedTuple):
    """A tensor that several ranks have alike."""

    name: str
    parameter: Tensor
    """Whose marks say how it is cut."""
    tensor: Tensor


def local_shape(parameter: Tensor) -> tuple[int, ...]:
    """Of this rank's part of a parameter; ZeRO-3 leaves an empty shell of it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _full_shape(parameter: Tensor) -> tuple[int, ...]:
    shard = shard_of(parameter)
    return local_shape(parameter) if shard is None else shard.full


def _lies_in(same: Same) -> Tensor:
    """What says how a tensor is cut: its parameter, but for a state that is not like it (of rows, or of columns)."""
    return same.parameter if same.tensor.shape == local_shape(same.parameter) else same.tensor


def _places(parameter: Tensor, box: Box) -> list[tuple[Box, Box]]:
    shard = shard_of(parameter)
    return [(box, box)] if shard is None else shard.places(box)


def of_flat(name: str, parameter: Tensor, first: int, flat: Tensor) -> Iterator[Owned]:
    """Of a run of this rank's part of a parameter that begins at its element `first`: `flat` is what is in it."""
    for there, content in _views(parameter, first, flat):
        yield Owned(name, _full_shape(parameter), there, content)


def read_flat(read: Read, name: str, parameter: Tensor, first: int, flat: Tensor) -> None:
    """Fills such a run, and reads no more than that. What stands for padding stays as it is."""
    for there, content in _views(parameter, first, flat):
        content.copy_(read(name, there))


def _views(parameter: Tensor, first: int, flat: Tensor) -> Iterator[tuple[Box, Tensor]]:
    """Box of the one-process tensor, and the elements of the run in it."""
    begin = 0
    for box in of_run(local_shape(parameter), first, flat.numel()):
        content = flat[begin : begin + box.size].view(box.shape)
        begin += box.size
        for there, mine in _places(parameter, box):
            yield there, content[mine.within(box).slices]


def read_part(read: Read, name: str, parameter: Tensor) -> Tensor:
    """This rank's part of a parameter's tensor, padding and all; nothing else of it is read."""
    if shard_of(parameter) is None:
        return read(name)
    part, shape = None, local_shape(parameter)
    for there, mine in _places(parameter, whole(shape)):
        value = read(name, there)
        part = torch.zeros(shape, dtype=value.dtype) if part is None else part
        part[mine.slices] = value
    return torch.zeros(shape) if part is None else part


def shared_out(tensors: Iterable[Same], axis: Axis) -> Iterator[Owned]:
    """This rank's share of what all ranks along an axis have alike, and in the same order."""
    kept = list(tensors)
    total, begin = sum(same.tensor.nbytes for same in kept), 0
    low, high = (total * index // axis.size for index in (axis.index, axis.index + 1))
    for same in kept:
        name, parameter, tensor = same.name, _lies_in(same), same.tensor
        each, count = tensor.element_size(), tensor.numel()
        first, last = (min(max(-((begin - edge) // each), 0), count) for edge in (low, high))
        begin += tensor.nbytes
        if not count and axis.index == 0:
            yield Owned(name, _full_shape(parameter), whole(_full_shape(parameter)), tensor)
        for box in of_run(tensor.shape, first, last - first):
            for there, mine in _places(parameter, box):
                yield Owned(name, _full_shape(parameter), there, tensor[mine.slices])


def shared_by_axis(tensors: Iterable[Same], alike: Callable[[Tensor], Axis]) -> Iterator[Owned]:
    """The same, of tensors that the ranks along several axes have alike: `alike` says which, for a parameter."""
    of_axis: dict[int, tuple[Axis, list[Same]]] = {}
    for same in tensors:
        axis = alike(same.parameter)
        of_axis.setdefault(id(axis), (axis, []))[1].append(same)
    for axis, kept in of_axis.values():
        yield from shared_out(kept, axis)


def share_of_run(size: int, axis: Axis) -> range:
    """Which of a run's elements are this rank's to write, where all ranks along an axis have the run."""
    return range(size * axis.index // axis.size, size * (axis.index + 1) // axis.size)
