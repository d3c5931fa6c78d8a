"""The ways to share rows out over train, test and validation, each learned in one pass and in memory that hardly grows.

Wherever chance decides, it is a keyed hash of something that has a name (a row's number, a group's value): its place in
0 .. 2^64. What lies lowest is the test split, what follows the validation split.
"""

from __future__ import annotations

import hashlib
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
MOST_GROUPS = 1 << 20
"""Groups whose sizes are kept, to come near the fractions; beyond it the law of large numbers does that."""
ENOUGH = 0.99
"""Part of its goal with which a split of groups is content; filling it up would gather the smallest groups there."""

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


class Rule:
    """One way: `add` every chunk of rows, `settle`, then `assign`."""

    by: ClassVar[str]
    column: str = ""
    """The column whose values it must see."""

    def __init__(self) -> None:
        self.counts = [0, 0, 0]
        """Rows of each split, once settled."""

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


class _Cut:
    """Finds the place below which exactly k of n rows lie, k within a row or two of n * fraction, without keeping n places:
    places are uniform, so that it can only lie near the fraction, ever nearer as n grows."""

    def __init__(self, fraction: float):
        self.fraction, self.rows, self.below = fraction, 0, 0
        self._near: list[np.ndarray] = []
        self._kept = self._waiting = 0

    def add(self, places: np.ndarray) -> None:
        self.rows += len(places)
        self._near.append(places)
        self._waiting += len(places)
        if self._waiting > max(1024, self._kept):
            self._narrow()

    def _narrow(self) -> None:
        near = np.concatenate(self._near)
        # Ten standard deviations, and a constant for the few rows of a small fraction: never left in practice.
        spread = 10 * (self.fraction * (1 - self.fraction) / self.rows) ** 0.5 + 40 / self.rows
        low = np.uint64(int(max(0.0, self.fraction - spread) * 2.0**64))
        within = near >= low
        self.below += len(near) - int(within.sum())
        if self.fraction + spread < 1:
            within &= near < np.uint64(int((self.fraction + spread) * 2.0**64))
        self._near, self._waiting = [near[within]], 0
        self._kept = len(self._near[0])

    def limit(self, count: int) -> np.uint64:
        """The place below which `count` rows lie."""
        self._narrow()
        near = np.sort(self._near[0])
        left = count - self.below
        assert 0 <= left <= len(near)
        return near[left] if left < len(near) else near[-1] + np.uint64(1) if len(near) else np.uint64(0)


class ByLabel(Rule):
    """By the number of the row, the same part of every class."""

    by = "label"

    def __init__(self, column: str, key: int, fractions: Fractions, where: str, place: Places):
        super().__init__()
        self.column, self.key, self.fractions, self.where, self.place = column, key, fractions, where, place
        self.limits: dict[str, Limits] = {}
        self._cuts: dict[str, tuple[_Cut, _Cut]] = {}

    def add(self, chunk: Mapping[str, Any], row: int, count: int) -> None:
        names, codes = coded(chunk[self.column], self.column, self.place, row)
        places = keyed_hash(self.key, np.arange(row, row + count))
        by_class = np.argsort(codes, kind="stable")
        ends = np.bincount(codes, minlength=len(names)).cumsum()
        test, held_out = self.fractions.test, self.fractions.test + self.fractions.validation
        for name, rows in zip(names, np.split(by_class, ends[:-1])):
            for cut in self._cuts.setdefault(name, (_Cut(test), _Cut(held_out))):
                cut.add(places[rows])

    def settle(self) -> None:
        names = sorted(self._cuts)
        rows = np.array([self._cuts[name][0].rows for name in names], np.int64)
        few = [name for name, count in zip(names, rows.tolist()) if count < 2]
        if few or not names:
            told = f"of {len(few):,} classes there is one row only: {', '.join(map(repr, few[:10]))}"
            what = f"stratify=true shares out every class, and {told if few else 'there are no rows'}"
            cure = "stratify=false; or leave these rows out, or merge their classes"
            raise InputError(what, where=self.where, allowed="2 rows of a class, or more", fix=cure)
        ties = np.array([hashed(name, self.key) for name in names], np.uint64)
        test = apportion(rows, self.fractions.test, rows - 1, ties)
        validation = apportion(rows, self.fractions.validation, rows - 1 - test, ties)
        for name, n_test, n_held_out in zip(names, test.tolist(), (test + validation).tolist()):
            first, second = self._cuts[name]
            self.limits[name] = first.limit(n_test), second.limit(n_held_out)
        self._cuts = {}
        self.counts = [int((rows - test - validation).sum()), int(test.sum()), int(validation.sum())]
        if missing := [PURPOSES[n] for n in self.fractions.wanted if not self.counts[n]]:
            raise InputError(
                f"{self.fractions.in_words()} of so few rows leaves nothing to {missing[0]} on", where=self.where
            )

    def assign(self, chunk: Mapping[str, Any], row: int, count: int) -> np.ndarray:
        names, codes = coded(chunk[self.column], self.column, self.place, row)
        places = keyed_hash(self.key, np.arange(row, row + count))
        limits = np.array([self.limits[name] for name in names], np.uint64).reshape(-1, 2)[codes]
        return parts(places, (limits[:, 0], limits[:, 1]))


def apportion(rows: np.ndarray, fraction: float, most: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """How many of the rows of each class are held out: the fraction, rounded up or down so that the sum is right, too (the
    largest remainders, Hamilton's method), one at least in all, and no more than `most`."""
    share = np.round(rows * fraction, 9)  # 0.29 * 100 is a little less than 29
    whole = np.minimum(np.floor(share).astype(np.int64), most)
    rest = max(round(float(rows.sum() * fraction)), 1 if fraction > 0 else 0) - int(whole.sum())
    ranked = np.lexsort((ties, -(share - whole)))
    ranked = ranked[(whole < most)[ranked] & ((share > whole)[ranked])][: max(rest, 0)]
    whole[ranked] += 1
    return whole


class ByGroup(Rule):
    """By the value of a column: equal values stay together."""

    by = "group"

    def __init__(self, column: str, key: int, fractions: Fractions, where: str, place: Places):
        super().__init__()
        self.column, self.key, self.fractions, self.where, self.place = column, key, fractions, where, place
        self._groups = Counts(np.uint64)
        self._taken: dict[int, np.ndarray] = {}  # split -> the places of its groups, sorted
        self._size = 0

    def _places(self, chunk: Mapping[str, Any], row: int) -> np.ndarray:
        names, codes = coded(chunk[self.column], self.column, self.place, row)
        return np.array([hashed(name, self.key) for name in names], np.uint64)[codes]

    def add(self, chunk: Mapping[str, Any], row: int, count: int) -> None:
        self._groups.add(self._places(chunk, row))

    def settle(self) -> None:
        places, rows = self._groups.table()
        self._groups, self._size = Counts(np.uint64), len(places)
        if self._size <= len(self.fractions.wanted):
            what = f"the column '{self.column}' has {self._size} groups, too few for {self.fractions.in_words()}"
            raise InputError(what, where=self.where, allowed=f"{len(self.fractions.wanted) + 1} groups or more")
        which = parts(places, self.fractions.limits())
        if self._size <= MOST_GROUPS:
            which = nearest_groups(rows, self.fractions)
        self._taken = {split: places[which == split] for split in sorted(self.fractions.wanted)}
        self.counts = [int(rows[which == split].sum()) for split in range(3)]

    def assign(self, chunk: Mapping[str, Any], row: int, count: int) -> np.ndarray:
        places, which = self._places(chunk, row), np.full(count, TRAIN, np.int8)
        for split, taken in self._taken.items():
            at = np.minimum(np.searchsorted(taken, places), len(taken) - 1)
            which[taken[at] == places] = split
        return which

    def found(self) -> dict[str, Any]:
        held_out = {SPLITS[split]: len(taken) for split, taken in self._taken.items()}
        return {"groups": {"train": self._size - sum(held_out.values()), **held_out}}


def nearest_groups(rows: np.ndarray, fractions: Fractions) -> np.ndarray:
    """Groups of so many rows each, in the order of their hashes -> the split of each: a group is taken where that brings
    its split nearer to its fraction, and each split gets one at least."""
    which = np.full(len(rows), TRAIN, np.int8)
    left = len(rows) - 1 - len(fractions.wanted)  # groups to take, when one is kept for each split
    for split, fraction in ((TEST, fractions.test), (VALIDATION, fractions.validation)):
        if not fraction:
            continue
        goal, have, taken = float(rows.sum()) * fraction, 0, 0
        for i in np.flatnonzero(which == TRAIN).tolist():
            if have >= ENOUGH * goal:
                break
            if abs(have + rows[i] - goal) < goal - have and (left or not taken):
                which[i], left = split, left - bool(taken)
                have, taken = have + int(rows[i]), taken + 1
        if not taken:  # each is larger than twice the goal
            free = np.flatnonzero(which == TRAIN)
            which[free[rows[free].argmin()]] = split
    return which


def hashed(name: str, key: int) -> int:
    """The place of a group or a class of that name."""
    digest = hashlib.blake2b(
        name.encode("utf-8", "surrogatepass"), digest_size=8, key=key.to_bytes(8, "little")
    ).digest()
    return int.from_bytes(digest, "little")


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
