"""Boxes of a tensor: what one rank holds of it, one file has of it, or one reader needs of it. Pure arithmetic.

A rank seldom holds a box: ZeRO deals out runs of a tensor's elements, as they lie in memory. A run of a matrix is the end
of a row, whole rows and the beginning of a row: boxes again, in general at most 2 n - 1 of a tensor of n dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """A part of a tensor: a range of every dimension."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """What takes it out of the tensor."""
        return tuple(slice(begin, begin + n) for begin, n in zip(self.offset, self.shape))

    def __str__(self) -> str:
        """`0:3,8:16`, as it is written into a manifest."""
        return ",".join(f"{begin}:{begin + n}" for begin, n in zip(self.offset, self.shape))

    def common(self, other: Box) -> Box | None:
        """What lies in both."""
        low = tuple(map(max, self.offset, other.offset))
        high = tuple(min(a + n, b + m) for a, n, b, m in zip(*self, *other))
        if any(begin >= end for begin, end in zip(low, high)):
            return None
        return Box(low, tuple(end - begin for begin, end in zip(low, high)))

    def within(self, outer: Box) -> Box:
        """The same box, counted from the first element of another that it lies in."""
        return Box(tuple(a - b for a, b in zip(self.offset, outer.offset)), self.shape)

    def along(self, dim: int, begin: int, size: int) -> Box:
        """The same box with another range of one dimension."""
        offset, shape = list(self.offset), list(self.shape)
        offset[dim], shape[dim] = begin, size
        return Box(tuple(offset), tuple(shape))


def whole(shape: Sequence[int]) -> Box:
    """All of a tensor."""
    return Box((0,) * len(shape), tuple(shape))


def of_run(shape: Sequence[int], first: int, size: int) -> list[Box]:
    """The boxes, in order, that a run of the elements of a tensor of this shape is made of."""
    if size <= 0:
        return []
    if not shape:
        return [Box((), ())]
    end, row = first + size, math.prod(shape[1:])
    boxes: list[Box] = []

    def piece(of: int, begin: int, count: int) -> None:
        boxes.extend(Box((of, *b.offset), (1, *b.shape)) for b in of_run(shape[1:], begin, count))

    if begun := first % row:
        piece(first // row, begun, min(row - begun, size))
        first += min(row - begun, size)
    if rows := (end - first) // row:
        boxes.append(Box((first // row, *(0,) * (len(shape) - 1)), (rows, *shape[1:])))
        first += rows * row
    if first < end:
        piece(first // row, 0, end - first)
    return boxes
