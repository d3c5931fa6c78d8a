"""Metrics as totals and counts, which add up exactly over micro-batches, batches and ranks.

The mean of means is wrong as soon as two parts differ in size; a total and a count never are.
"""

from __future__ import annotations

import math
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

    def exact(self, times: int) -> Mean:
        """As many times (0 or 1) in 64 bits, for the sum over a whole split."""
        count = self.count if isinstance(self.count, int | float) else self.count.double()
        return Mean(times * self.total.double(), times * count)


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


SQUARED_ERROR, ABSOLUTE_ERROR, TOLD, SQUARED = "squared_error", "absolute_error", "number", "squared_number"
"""Means of numbers that were predicted; from them follow those that people read, whatever parts they were added up from."""


def named(means: Mapping[str, float]) -> dict[str, float]:
    """The means of a whole split, with what follows from several of them: `rmse`, `mae` and `r2` of predicted numbers.

    R^2 = 1 - E[(y - y')^2] / (E[y^2] - E[y]^2) is 1 for the best model, 0 for one that always tells the mean; a split whose
    numbers are all the same has none.
    """
    found = dict(means)
    if not {SQUARED_ERROR, ABSOLUTE_ERROR, TOLD, SQUARED} <= found.keys():
        return found
    error, absolute = found.pop(SQUARED_ERROR), found.pop(ABSOLUTE_ERROR)
    mean, square = found.pop(TOLD), found.pop(SQUARED)
    found |= {"rmse": math.sqrt(error) if error >= 0 else error, "mae": absolute}
    if (variance := square - mean * mean) > 1e-12 * square:
        found["r2"] = 1 - error / variance
    return found


def _wide(total: Tensor) -> Tensor:
    """In 32 bits at least: a sum in 16 bits no longer grows after some hundred micro-batches."""
    return total if total.element_size() > 2 else total.float()


def values(metrics: Mapping[str, Mean]) -> dict[str, float]:
    """Name -> the mean, as plain numbers (waits for the device once for each metric)."""
    return {name: float(total) / float(count) if count else float("nan") for name, (total, count) in metrics.items()}
