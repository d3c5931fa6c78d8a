"""Adds up the statistics of a split over its record batches, at a cost that is not seen: what is more than a count is told
from some rows that a keyed hash of their numbers picks, the same ones every time and whatever order they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distdl.data.manifest import VARIABLE, Column
from distdl.data.order import keyed_hash
from distdl.data.statistics import BINS, MOST_CLASSES, MOST_PARTS, Part, Statistics

KEPT_ROWS, KEPT_BYTES = 1 << 13, 2 << 20
"""Rows and bytes of a column that are kept to be looked at."""
KEY = 0x64697374646C0002  # fixed: the same rows are looked at for everybody
COUNTED_RANGE = 1 << 16
DIGITS = 9
"""Significant ones of what is computed: the last bits differ from one machine to the next."""


class Summary:
    """The statistics of a split."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self.rows = 0
        self._of = {name: _Column(column) for name, column in columns.items() if column.dtype != VARIABLE}
        self._lengths = {name: _Lengths() for name, column in columns.items() if column.dtype == VARIABLE}

    def add(self, batch: Mapping[str, np.ndarray], lengths: Mapping[str, np.ndarray]) -> None:
        """The next rows: column -> (n, *shape); and of each column of bytes the lengths (n,)."""
        count = len(next(iter({**batch, **lengths}.values())))
        places = keyed_hash(KEY, np.arange(self.rows, self.rows + count)) if batch else np.empty(0, np.uint64)
        for name, values in batch.items():
            self._of[name].add(values, places)
        for name, values in lengths.items():
            self._lengths[name].add(values)
        self.rows += count

    def statistics(self) -> dict[str, Statistics]:
        of_numbers = {name: one.statistics() for name, one in self._of.items()}
        return {**of_numbers, **{name: one.statistics(self.rows) for name, one in self._lengths.items()}}


class _Lengths:
    def __init__(self) -> None:
        self.total, self.low, self.high = 0, 1 << 62, 0

    def add(self, lengths: np.ndarray) -> None:
        if len(lengths):
            self.total += int(lengths.sum())
            self.low, self.high = min(self.low, int(lengths.min())), max(self.high, int(lengths.max()))

    def statistics(self, rows: int) -> Statistics:
        return Statistics(rows, lengths=(self.low, _rounded(self.total / rows) or 0.0, self.high) if rows else None)


class _Column:
    def __init__(self, column: Column) -> None:
        self.column = column
        self.most = max(1, min(KEPT_ROWS, KEPT_BYTES // column.row_bytes))
        self.limit = 1 << 64
        """Rows whose hash is below it are kept; halved whenever they become too many."""
        self.kept: list[np.ndarray] = []
        self.places: list[np.ndarray] = []
        self.count = 0
        whole = not column.shape and np.dtype(column.dtype).kind in "iu"
        self.classes: dict[int, int] | None = {} if whole else None

    def add(self, values: np.ndarray, places: np.ndarray) -> None:
        if self.classes is not None and len(values):
            self._count(values)
        chosen = self._chosen(places)
        while self.count + len(chosen) > self.most and self.limit > 1:
            self.limit >>= 1
            self._thin_out()
            chosen = self._chosen(places)
        if len(chosen):
            self.kept.append(values[chosen])
            self.places.append(places[chosen])
            self.count += len(chosen)

    def _chosen(self, places: np.ndarray) -> np.ndarray:
        return np.arange(len(places)) if self.limit == 1 << 64 else np.flatnonzero(places < np.uint64(self.limit))

    def _thin_out(self) -> None:
        keep = [places < np.uint64(self.limit) for places in self.places]
        self.kept = [values[stay] for values, stay in zip(self.kept, keep, strict=True)]
        self.places = [places[stay] for places, stay in zip(self.places, keep, strict=True)]
        self.count = sum(map(len, self.places))

    def _count(self, values: np.ndarray) -> None:
        assert self.classes is not None
        low, high = int(values.min()), int(values.max())
        if high - low < COUNTED_RANGE:
            signed = values.dtype.kind == "i"  # int8 has no room for 127 - -128, int64 none for the largest uint64
            above = values.astype(np.int64) - low if signed else values - values.dtype.type(low)
            counts = np.bincount(above.astype(np.int64))
            found = np.flatnonzero(counts)
            numbers, counts = found + low, counts[found]
        else:
            numbers, counts = np.unique(values, return_counts=True)
        if len(numbers) <= MOST_CLASSES:
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                self.classes[number] = self.classes.get(number, 0) + count
        if len(numbers) > MOST_CLASSES or len(self.classes) > MOST_CLASSES:
            self.classes = None

    def statistics(self) -> Statistics:
        shape = self.column.shape
        looked = np.concatenate(self.kept) if self.kept else np.empty((0, *shape), self.column.dtype)
        apart = len(shape) == 1 and shape[0] <= MOST_PARTS and looked.dtype.kind == "f"
        parts = looked.T if apart else [looked.reshape(-1)]
        classes = None if self.classes is None else dict(sorted(self.classes.items()))
        return Statistics(len(looked), tuple(part_of(values) for values in parts), classes)


def part_of(values: np.ndarray) -> Part:
    """The statistics of some numbers (n,)."""
    whole = values.dtype.kind in "iu"
    finite = values.astype(np.float64) if whole else values[np.isfinite(values)].astype(np.float64)
    missing = len(values) - len(finite)
    if not len(finite):
        return Part(None, None, None, None, None, missing, ())
    low, high = finite.min(), finite.max()
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # of numbers near the end of the range there is no deviation, no width
        mean, deviation, width = finite.mean(), finite.std(), high - low
    whole = whole or bool((np.trunc(finite) == finite).all())
    if whole and width < BINS:
        histogram = np.bincount((finite - low).astype(np.int64))
    elif np.isfinite(width):
        histogram = np.histogram(finite, BINS, (low, high))[0]
    else:
        histogram = np.empty(0, np.int64)
    return Part(
        low=_rounded(low),
        high=_rounded(high),
        mean=_rounded(mean),
        deviation=_rounded(deviation),
        median=_rounded(np.median(finite)),
        missing=missing,
        histogram=tuple(histogram.tolist()),
    )


def _rounded(value: Any) -> float | None:
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None
