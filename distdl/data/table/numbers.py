"""Columns of numbers, added up: count, mean, deviation, range and a sample. What two sections of a table gave can be put
together, with the same bits whoever counted them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distdl.data.order import keyed_hash

SAMPLE_VALUES, SAMPLE_ROWS, FEW_ROWS = 2_000_000, 8_192, 256
SAMPLE_KEY = 0x64697374646C0005


@dataclass(frozen=True)
class _Rows:
    """Some rows of a sample."""

    values: np.ndarray
    """(k, n)"""
    rows: np.ndarray
    places: np.ndarray
    """Their keyed hashes, (n,)."""


def _lowest(some: Sequence[_Rows], size: int) -> _Rows:
    """Those with the lowest hashes, in the order of the rows."""
    if len(some) == 1 and len(some[0].rows) <= size:
        return some[0]
    rows, places = (np.concatenate([getattr(each, name) for each in some]) for name in ("rows", "places"))
    chosen = np.argpartition(places, size)[:size] if len(places) > size else np.arange(len(places))
    chosen = chosen[np.argsort(rows[chosen], kind="stable")]
    return _Rows(np.concatenate([each.values for each in some], axis=1)[:, chosen], rows[chosen], places[chosen])


class Numbers:
    """Count, mean, deviation, range and a sample of k columns of numbers, added up over batches in float64."""

    def __init__(self, k: int, log: bool = False) -> None:
        self.log = log
        """Whether the mean and deviation are those of the logarithms."""
        self.count, self.mean, self.m2 = np.zeros(k), np.zeros(k), np.zeros(k)  # of the training rows
        self.low, self.high = np.full(k, np.inf), np.full(k, -np.inf)
        self.low_row, self.high_row = np.zeros(k, np.int64), np.zeros(k, np.int64)
        self.whole, self.binary = np.ones(k, bool), np.ones(k, bool)  # all rows: no fraction; 0 and 1 alone
        self._size = min(SAMPLE_ROWS, max(FEW_ROWS, SAMPLE_VALUES // max(k, 1)))
        self._kept = [_Rows(np.empty((k, 0)), np.empty(0, np.int64), np.empty(0, np.uint64))]
        self._limit: np.uint64 | None = None

    def add(self, values: np.ndarray, rows: np.ndarray, train: bool) -> None:
        """(k, n) of the rows (n,)."""
        if not values.size:
            return
        with np.errstate(invalid="ignore", over="ignore"):
            missing = np.isnan(values)
            self.whole &= ((values == np.trunc(values)) | missing).all(1)
            self.binary &= ((values == 0) | (values == 1) | missing).all(1)
        if train:
            self._moments(values, missing)
            self._ends(values, missing, rows)
            places = keyed_hash(SAMPLE_KEY, rows)
            chosen = slice(None) if self._limit is None else np.flatnonzero(places < self._limit)
            self._keep(_Rows(values[:, chosen], rows[chosen], places[chosen]))

    def merge(self, behind: Numbers) -> None:
        """Add what the rows behind these have given."""
        self.whole &= behind.whole
        self.binary &= behind.binary
        self._add_moments(behind.count, behind.mean, behind.m2)
        self._better(behind.low < self.low, self.low, self.low_row, behind.low, behind.low_row)
        self._better(behind.high > self.high, self.high, self.high_row, behind.high, behind.high_row)
        self._keep(behind._sample())

    def _moments(self, values: np.ndarray, missing: np.ndarray) -> None:
        if self.log:
            values = np.sign(values) * np.log1p(np.abs(values))
        count = (~missing).sum(1)
        there = np.maximum(count, 1)
        mean = np.where(missing, 0.0, values).sum(1) / there
        m2 = np.square(np.where(missing, 0.0, values - mean[:, None])).sum(1)
        self._add_moments(count, mean, m2)

    def _add_moments(self, count: np.ndarray, mean: np.ndarray, m2: np.ndarray) -> None:
        total = np.maximum(self.count + count, 1)
        apart = mean - self.mean
        self.m2 += np.where(count > 0, m2 + apart * apart * self.count * count / total, 0.0)
        self.mean += np.where(count > 0, apart * count / total, 0.0)
        self.count += count

    def _ends(self, values: np.ndarray, missing: np.ndarray, rows: np.ndarray) -> None:
        every = np.arange(len(values))
        for end, best, at in ((np.inf, self.low, self.low_row), (-np.inf, self.high, self.high_row)):
            filled = np.where(missing, end, values)
            place = filled.argmin(1) if end > 0 else filled.argmax(1)
            found = filled[every, place]
            self._better(found < best if end > 0 else found > best, best, at, found, rows[place])

    @staticmethod
    def _better(where: np.ndarray, best: np.ndarray, at: np.ndarray, found: np.ndarray, rows: np.ndarray) -> None:
        best[where], at[where] = found[where], rows[where]

    def _keep(self, rows: _Rows) -> None:
        self._kept.append(rows)
        if sum(len(some.rows) for some in self._kept) > 2 * self._size:
            self._limit = self._sample().places.max()

    def _sample(self) -> _Rows:
        """A fair sample of the training rows, the same for everybody: those whose keyed hashes are lowest."""
        self._kept = [_lowest(self._kept, self._size)]
        return self._kept[0]

    def deviation(self, column: int) -> float:
        """Of the population."""
        return math.sqrt(self.m2[column] / max(self.count[column], 1))

    def constant(self, column: int) -> bool:
        """Whether no two training rows differ."""
        return bool(self.low[column] >= self.high[column])

    def quantiles(self, column: int, at: Sequence[float]) -> list[float]:
        """Of a column, by the sample."""
        there = self.sample(column)
        return [float(q) for q in np.quantile(there, at)] if there.size else [0.0] * len(at)

    def most_frequent(self, column: int) -> float:
        """The value that stands most often in the sample; of several the smallest."""
        found, counts = np.unique(self.sample(column), return_counts=True)
        return float(found[counts.argmax()]) if found.size else 0.0

    def sample(self, column: int) -> np.ndarray:
        """Some training rows' values of a column, in the order of the rows."""
        values = self._sample().values[column]
        return values[~np.isnan(values)]

    def merged(self, column: int, shift: float, divide: float) -> tuple[int, int, int] | None:
        """How many values of the sample differ, how many do so as float32 when shifted and divided, and the row of one that
        does not differ from its neighbour. None: all do."""
        sample = self._sample()
        values, rows = sample.values[column], sample.rows
        order = np.argsort(values, kind="stable")[: np.count_nonzero(~np.isnan(values))]
        inner = values[order]
        different = np.diff(inner) > 0
        told_apart = np.diff(((inner - shift) / divide).astype(np.float32)) > 0
        lost = np.flatnonzero(different & ~told_apart)
        if not lost.size:
            return None
        return int(different.sum()) + 1, int(told_apart.sum()) + 1, int(rows[order[lost[0] + 1]])
