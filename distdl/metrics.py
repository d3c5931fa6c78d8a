"""Metrics as totals and counts, which add up exactly over micro-batches, batches and ranks.

The mean of means is wrong as soon as two parts differ in size; a total and a count never are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Mean(NamedTuple):
    """A mean that adds: `total / count`."""

    total: Tensor
    """Sum of the values, a detached scalar."""
    count: float | Tensor  # type: ignore[assignment]
    """Number of the values; a scalar of the device where reading it would have to wait."""


Metrics = dict[str, Mean]


def mean(values: Tensor) -> Mean:
    """The mean over all elements of `values` (any shape)."""
    values = values.detach()
    return Mean(_wide(values) if values.ndim == 0 else values.float().sum(), float(values.numel()))


def add(into: Metrics, more: Mapping[str, Mean]) -> None:
    """Adds `more` to `into`, in place."""
    for name, (total, count) in more.items():
        old, total = into.get(name), _wide(total)
        into[name] = Mean(total, count) if old is None else Mean(old.total + total, old.count + count)


def _wide(total: Tensor) -> Tensor:
    """In 32 bits at least: a sum in 16 bits no longer grows after some hundred micro-batches."""
    return total if total.element_size() > 2 else total.float()


def values(metrics: Mapping[str, Mean]) -> dict[str, float]:
    """Name -> the mean, as plain numbers (waits for the device once for each metric)."""
    return {name: float(total) / float(count) if count else float("nan") for name, (total, count) in metrics.items()}
