"""What the values of a column are: their range, what may mean "missing", what is not finite, each with the first row of it.

Whoever writes a data set sees every value once, and the manifest keeps what it saw. For the data sets of older versions a
first pass over the shards finds the same (`first_pass.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distdl.data.manifest import SENTINELS, VARIABLE, Column, Values


class Tally:
    """The values of a split, added up over its record batches in their order."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self.rows = 0
        self._of = {name: _Column(np.dtype(c.dtype)) for name, c in columns.items() if c.dtype != VARIABLE}

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """The next rows: column -> (n, *shape). Those of varying length may be left out."""
        for name, of_column in self._of.items():
            of_column.add(batch[name], self.rows)
        self.rows += len(next(iter(batch.values()), ()))

    def values(self) -> dict[str, Values]:
        return {name: of_column.values() for name, of_column in self._of.items()}


class _Column:
    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.floats = dtype.kind == "f"
        self.apart = {} if self.floats else {"minus_1": -1, "minus_100": -100, "plus_255": 255}
        self.ends: dict[str, tuple[Any, int]] = {"low": (None, 0), "high": (None, 0)}
        self.seen: dict[str, tuple[int, int]] = dict.fromkeys(SENTINELS, (0, 0))

    def add(self, values: np.ndarray, first: int) -> None:
        """Values (n, *shape) of the rows from `first` on."""
        if not values.size:
            return
        flat, width = values.reshape(-1), values.size // len(values)
        low, high = flat.min(), flat.max()  # NaN if any is
        odd = {}
        if self.floats and not (np.isfinite(low) and np.isfinite(high)):
            odd = {"not_finite": ~np.isfinite(flat)}
        elif low < 0 or high >= 255:
            odd = {name: flat == value for name, value in self.apart.items() if low <= value <= high}
        for name, hits in odd.items():
            count, before = int(np.count_nonzero(hits)), self.seen[name]
            if count:
                self.seen[name] = before[0] + count, before[1] if before[0] else first + int(hits.argmax()) // width
        apart, best = self.apart.values(), self.ends["high"][0]
        if odd and (self.floats or low in apart or (high in apart and (best is None or best < high - 1))):
            rest = flat[~np.logical_or.reduce(list(odd.values()))]
            if not rest.size:
                return
            low, high = rest.min(), rest.max()
        elif odd and high in apart:
            high = best  # which nothing below can exceed
        for end, value in (("low", low), ("high", high)):
            best = self.ends[end][0]
            if best is None or (value < best if end == "low" else value > best):
                self.ends[end] = value.item(), first + int((flat == value).argmax()) // width

    def values(self) -> Values:
        apart = (self.seen[name] for name in SENTINELS)
        return Values(*self.ends["low"], *self.ends["high"], *apart)
