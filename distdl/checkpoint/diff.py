"""What differs between two sets of weights, whatever format each is of: one tensor of either in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distdl.checkpoint.convert import Source, open_source
from distdl.checkpoint.stream import Lazy

_BLOCK = 1 << 22
"""Numbers that are compared in one go."""


@dataclass(frozen=True)
class Difference:
    """A tensor that is not the same in both."""

    name: str
    """`weights/NAME`, `buffers/NAME`, `optimizer/KEY/NAME`."""
    count: int
    """Numbers that differ."""
    of: int
    largest: float
    """Largest difference of two numbers; nan where one of them is no number."""
    relative: float
    """Length of the difference, over that of the first."""


@dataclass(frozen=True)
class Comparison:
    """Of all tensors."""

    steps: tuple[int, int]
    same: int
    """Tensors that are equal, number by number."""
    differ: list[Difference]
    shapes: dict[str, tuple[list[int], list[int]]]
    """Name -> its two shapes."""
    only: tuple[list[str], list[str]]
    """Names that the first has alone, and the second."""
    model: dict[str, tuple[Any, Any]]
    """Key of the model's section -> its two values, where both say what model they are."""

    @property
    def equal(self) -> bool:
        """Whether both have the same tensors, and all are equal."""
        return not (self.differ or self.shapes or any(self.only))


def compare(a: Path, b: Path) -> Comparison:
    """Raises InputError for what is of no known format, DataCorrupt for damage."""
    first, second = open_source(a), open_source(b)
    both = [name for name in first.tensors if name in second.tensors]
    shapes = {
        name: (list(first.tensors[name].shape), list(second.tensors[name].shape))
        for name in both
        if first.tensors[name].shape != second.tensors[name].shape
    }
    pairs = {name: (first.tensors[name], second.tensors[name]) for name in both if name not in shapes}
    differ = [found for name, (one, other) in pairs.items() if (found := _difference(name, one, other))]
    only = (_only(first.tensors, second.tensors), _only(second.tensors, first.tensors))
    return Comparison(
        (first.step, second.step), len(pairs) - len(differ), differ, shapes, only, _other_model(first, second)
    )


def _only(here: Mapping[str, Lazy], there: Mapping[str, Lazy]) -> list[str]:
    return sorted(here.keys() - there.keys())


def _other_model(a: Source, b: Source) -> dict[str, tuple[Any, Any]]:
    if a.model is None or b.model is None:
        return {}
    keys = [*a.model, *(key for key in b.model if key not in a.model)]
    pairs = {key: (a.model.get(key), b.model.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _difference(name: str, a: Lazy, b: Lazy) -> Difference | None:
    one, other = a.read().flatten(), b.read().flatten()
    count, gaps, apart, length = 0, [0.0], 0.0, 0.0
    for x, y in zip(one.split(_BLOCK), other.split(_BLOCK)):
        x, y = x.double(), y.double()
        length += float(x.square().sum())
        if torch.equal(x, y):
            continue
        differs = (x != y) & ~(x.isnan() & y.isnan())
        gap = (x - y).abs()[differs]
        count += len(gap)
        gaps += [float(gap.max())] if len(gap) else []
        apart += float(gap.square().sum())
    if not count:
        return None
    largest = max(gaps, key=lambda gap: (gap != gap, gap))
    return Difference(name, count, one.numel(), largest, (apart / length) ** 0.5 if length else float("inf"))
