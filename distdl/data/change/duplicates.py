"""Rows that are there more than once, found by their hashes in little memory: what is tested may have been learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash

from distdl.data.raw import Rows

MOST_ROWS = 1 << 20
"""Rows whose hashes are kept, 24 MiB; of more, those with the smallest hashes, which are a fair sample: equal rows stay
together."""


class Duplicates:
    """Rows of several places, added in their order. `places`: the names of these, such as (data set, split)."""

    def __init__(self, columns: Sequence[str]):
        self.columns, self.limit = list(columns), 1 << 64
        self.places: list[tuple[str, str]] = []
        self._kept: list[np.ndarray] = []  # (k, 3) uint64: hash, number of the place, row in it
        self._count = 0
        self._row = 0

    def begin(self, dataset: str, split: str) -> None:
        """The rows that follow are those of a split of a data set."""
        self.places.append((dataset, split))
        self._row = 0

    def add(self, rows: Rows) -> None:
        hashes = hashed(rows, self.columns)
        found = np.empty((len(hashes), 3), np.uint64)
        found[:, 0], found[:, 1] = hashes, len(self.places) - 1
        found[:, 2] = np.arange(self._row, self._row + len(hashes))
        self._row += len(hashes)
        self._keep(found)

    def _keep(self, found: np.ndarray) -> None:
        if self.limit < 1 << 64:
            found = found[found[:, 0] < np.uint64(self.limit)]
        self._kept.append(found)
        self._count += len(found)
        while self._count > MOST_ROWS:
            self.limit >>= 1
            self._kept = [part[part[:, 0] < np.uint64(self.limit)] for part in self._kept]
            self._count = sum(map(len, self._kept))

    def notes(self) -> list[str]:
        """What there is to say."""
        rows = np.concatenate(self._kept) if self._kept else np.empty((0, 3), np.uint64)
        rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
        first = np.concatenate([[True], rows[1:, 0] != rows[:-1, 0]]) if len(rows) else np.empty(0, bool)
        again = int((~first).sum())
        if not again:
            return []
        group = first.cumsum() - 1
        at = int((~first).argmax())
        told = [
            f"{self._about(again)} of {self._in_all()} are there more than once: {self._two(rows[at - 1], rows[at])}"
        ]
        train = np.array([split == "train" for _, split in self.places])
        learned = np.zeros(int(group[-1]) + 1, np.int64) - 1
        of_train = train[rows[:, 1].astype(np.int64)]
        learned[group[of_train][::-1]] = np.flatnonzero(of_train)[::-1]  # the first of each group
        leaked = ~of_train & (learned[group] >= 0)
        if leaked.any():
            row = int(leaked.argmax())
            held = ", ".join(sorted({self.places[int(n)][1] for n in rows[leaked, 1]}))
            two = self._two(rows[row], rows[learned[group[row]]])
            told.append(
                f"{self._about(int(leaked.sum()))} of {held} are rows of train, too, so they are learned: {two}"
            )
        return told

    def _about(self, count: int) -> str:
        share = (1 << 64) // self.limit
        return f"{count:,} rows" if share == 1 else f"about {count * share:,} rows (by a sample of 1 in {share:,})"

    def _in_all(self) -> str:
        datasets = len({name for name, _ in self.places})
        return "the data set" if datasets == 1 else f"the {datasets} data sets"

    def _two(self, one: np.ndarray, other: np.ndarray) -> str:
        return " is ".join(
            f"row {int(row[2]):,} of {self.places[int(row[1])][1]} of {self.places[int(row[1])][0]}"
            for row in (one, other)
        )


def hashed(rows: Rows, columns: Sequence[str]) -> np.ndarray:
    """A hash of each row over all of its columns: (n,) uint64."""
    fixed, variable = [], []
    count = len(rows[columns[0]])
    for name in columns:
        values: Any = rows[name]
        if isinstance(values, np.ndarray):
            fixed.append(np.ascontiguousarray(values).reshape(count, -1).view(np.uint8).reshape(count, -1))
        else:
            variable.append(values)
    found = np.empty(count, np.uint64)
    joined = np.concatenate(fixed, 1) if fixed else np.empty((count, 0), np.uint8)
    for i in range(count):
        digest = xxhash.xxh3_64_intdigest(joined[i])
        for values in variable:
            digest = xxhash.xxh3_64_intdigest(values[i], digest)
        found[i] = digest
    return found
