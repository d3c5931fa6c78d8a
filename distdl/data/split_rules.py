"""The ways to share rows out over train, test and validation, each learned in one pass and in memory that hardly grows.

Here is what all of them are, and those by number of the row, time and column; split_shares.py has classes and groups.

Wherever chance decides, it is a keyed hash of something that has a name (a row's number, a group's value): its place in
0 .. 2^64. What lies lowest is the test split, what follows the validation split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from distdl.data.order import keyed_hash
from distdl.data.split_values import Counts, coded, ordered, time_in_words
from distdl.errors import InputError

SPLITS = ("train", "test", "validation")
PURPOSES = ("train", "test", "validate")
TRAIN, TEST, VALIDATION = range(3)
SPELLINGS = {"training": TRAIN, "testing": TEST, "val": VALIDATION, "valid": VALIDATION, "dev": VALIDATION} | {
    name: number for number, name in enumerate(SPLITS)
}
FEW = 1 << 16
"""So few rows that chance may leave a split without any; then its share is taken from the nearest ones."""

Places = Callable[[int], str]
Limits = tuple[np.uint64, np.uint64]


@dataclass(frozen=True)
class Fractions:
    """The parts of the rows that are held out."""

    test: float
    validation: float

    @property
    def wanted(self) -> set[int]:
        """The splits that hold rows out."""
        return {number for number, part in ((TEST, self.test), (VALIDATION, self.validation)) if part > 0}

    def limits(self) -> Limits:
        """The places below which a row is tested, and is held out at all."""
        return np.uint64(int(self.test * 2.0**64)), np.uint64(int((self.test + self.validation) * 2.0**64))

    def in_words(self) -> str:
        told = f"test_fraction={self.test:g}"
        return f"{told} and validation_fraction={self.validation:g}" if self.validation else told


def parts(places: np.ndarray, limits: Limits) -> np.ndarray:
    """(n,) uint64 places -> (n,) int8 numbers of SPLITS."""
    return np.where(places < limits[0], TEST, np.where(places < limits[1], VALIDATION, TRAIN)).astype(np.int8)


def both_ends(places: np.ndarray | None, rows: int, fractions: Fractions, missing: set[int]) -> Limits:
    """Limits that give each split a row at least: the nearest ones. `places`: of all rows, None where these are not few.
    InputError: there are too few."""
    if places is None or rows <= len(fractions.wanted):
        what = f"{fractions.in_words()} of {rows:,} rows leaves nothing to {PURPOSES[max(missing)]} on"
        cure = "more rows; or test_fraction=0, and data.eval_split: null in the config"
        raise InputError(what, fix=cure)
    counts = np.bincount(parts(places, fractions.limits()), minlength=3)
    for split in {TRAIN, *fractions.wanted}:
        if not counts[split]:
            counts[counts.argmax()] -= 1
            counts[split] = 1
    ranked = np.sort(places)
    return ranked[counts[TEST]], ranked[counts[TEST] + counts[VALIDATION]]


def _nowhere(row: int) -> str:
    return ""


class Rule:
    """One way: `add` every chunk of rows, `settle`, then `assign`."""

    by: ClassVar[str]
    column: str = ""
    """The column whose values it must see."""

    def __init__(self) -> None:
        self.counts = [0, 0, 0]
        """Rows of each split, once settled."""

    def __getstate__(self) -> dict[str, Any]:
        """For another process, without the file: what fails there is looked at again here."""
        return {name: _nowhere if name == "place" else value for name, value in vars(self).items()}

    def add(self, chunk: Mapping[str, Any], row: int, count: int) -> None:
        raise NotImplementedError

    def settle(self) -> None:
        """What was added is all there is."""

    def assign(self, chunk: Mapping[str, Any], row: int, count: int) -> np.ndarray:
        raise NotImplementedError

    def found(self) -> dict[str, Any]:
        """What else is worth knowing."""
        return {}


class ByRow(Rule):
    """By the number of the row."""

    by = "rows"

    def __init__(self, key: int, fractions: Fractions, where: str):
        super().__init__()
        self.key, self.fractions, self.where = key, fractions, where
        self.limits = fractions.limits()

    def add(self, chunk: Mapping[str, Any], row: int, count: int) -> None:
        for split, number in enumerate(np.bincount(self.assign(chunk, row, count), minlength=3).tolist()):
            self.counts[split] += number

    def settle(self) -> None:
        rows = sum(self.counts)
        missing = {split for split in {TRAIN, *self.fractions.wanted} if not self.counts[split]}
        if missing and self.fractions.wanted:
            places = keyed_hash(self.key, np.arange(rows)) if rows <= FEW else None
            self.limits = both_ends(places, rows, self.fractions, missing)
            self.counts = [0, 0, 0]
            self.add({}, 0, rows)

    def assign(self, chunk: Mapping[str, Any], row: int, count: int) -> np.ndarray:
        return parts(keyed_hash(self.key, np.arange(row, row + count)), self.limits)


class ByTime(Rule):
    """By a column of times: the latest rows are tested, those before them validated. Rows of one time stay together."""

    by = "time"

    def __init__(self, column: str, fractions: Fractions, where: str, place: Places):
        super().__init__()
        self.column, self.fractions, self.where, self.place = column, fractions, where, place
        self._times = Counts(np.int64, coarsen=True)
        self._kind = ""
        self._begin: dict[int, int] = {}  # split -> its first time
        self.notes: list[str] = []

    def _keys(self, chunk: Mapping[str, Any], row: int) -> np.ndarray:
        keys, self._kind = ordered(chunk[self.column], self.column, self.place, row, self._kind)
        return keys >> self._times.dropped

    def add(self, chunk: Mapping[str, Any], row: int, count: int) -> None:
        self._times.add(self._keys(chunk, row))

    def settle(self) -> None:
        times, rows = self._times.table()
        if len(times) <= len(self.fractions.wanted):
            what = (
                f"the column '{self.column}' has {len(times)} different times, too few for {self.fractions.in_words()}"
            )
            raise InputError(
                what, where=self.where, allowed=f"{len(self.fractions.wanted) + 1} different times or more"
            )
        later, end, total = rows[::-1].cumsum()[::-1], len(times), int(rows.sum())  # later[i]: rows from time i on
        keep = len(self.fractions.wanted)  # times that stay for the splits before
        held_out = 0.0
        for split, fraction in ((TEST, self.fractions.test), (VALIDATION, self.fractions.validation)):
            if not fraction:
                continue
            held_out += fraction
            first = keep + int(np.abs(later[keep:end] - total * held_out).argmin())
            self._begin[split] = int(times[first])
            self.counts[split] = int(rows[first:end].sum())
            self._tell(split, fraction, int(rows[first]), total)
            keep, end = keep - 1, first
        self.counts[TRAIN] = int(rows[:end].sum())

    def _tell(self, split: int, fraction: float, ties: int, total: int) -> None:
        have = self.counts[split]
        if ties > 1 and abs(have - total * fraction) >= 1:
            begin = time_in_words(self._begin[split] << self._times.dropped, self._kind)
            self.notes.append(
                f"{ties:,} rows share {begin}, the first time of the split {SPLITS[split]}, and stay together: it has "
                f"{have:,} of {total:,} rows, {have / total:.2%} instead of {fraction:.2%}"
            )

    def assign(self, chunk: Mapping[str, Any], row: int, count: int) -> np.ndarray:
        keys, which = self._keys(chunk, row), np.full(count, TRAIN, np.int8)
        for split in sorted(self._begin, key=self._begin.__getitem__):  # the latest last
            which[keys >= self._begin[split]] = split
        return which

    def found(self) -> dict[str, Any]:
        begin = {SPLITS[n]: time_in_words(key << self._times.dropped, self._kind) for n, key in self._begin.items()}
        return {"begin": begin, **({"notes": self.notes} if self.notes else {})}


class ByColumn(Rule):
    """As a column says."""

    by = "column"

    def __init__(self, column: str, where: str, place: Places):
        super().__init__()
        self.column, self.where, self.place = column, where, place

    def add(self, chunk: Mapping[str, Any], row: int, count: int) -> None:
        for split, number in Counter(self.assign(chunk, row, count).tolist()).items():
            self.counts[split] += number

    def settle(self) -> None:
        if not self.counts[TRAIN]:
            what = f"the column '{self.column}' says 'train' of none of {sum(self.counts):,} rows"
            raise InputError(what, where=self.where, fix="name the column of the splits: split_column=")

    def assign(self, chunk: Mapping[str, Any], row: int, count: int) -> np.ndarray:
        names, codes = coded(chunk[self.column], self.column, self.place, row)
        numbers = [SPELLINGS.get(name.lower(), -1) for name in names]
        if -1 in numbers:
            bad = numbers.index(-1)
            what = f"the column '{self.column}' says {names[bad]!r} of a row, which is no split"
            at = row + int((codes == bad).argmax())
            raise InputError(what, where=self.place(at), allowed="train, test, validation (or val)")
        return np.array(numbers, np.int8)[codes]
