"""Rows shared out so that classes or groups come out right: exact counts in one pass, without keeping what was seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash

from distdl.data.order import keyed_hash
from distdl.data.split_rules import PURPOSES, SPLITS, TEST, TRAIN, VALIDATION, Fractions, Limits, Places, Rule, parts
from distdl.data.split_values import Counts, coded
from distdl.errors import InputError

MOST_GROUPS = 1 << 20
"""Groups whose sizes are kept, to come near the fractions; beyond it the law of large numbers does that."""
ENOUGH = 0.99
"""Part of its goal with which a split of groups is content; filling it up would gather the smallest groups there."""


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
    share = rows * fraction
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
        self._many = False

    def _places(self, chunk: Mapping[str, Any], row: int) -> np.ndarray:
        names, codes = coded(chunk[self.column], self.column, self.place, row)
        return np.array([hashed(name, self.key) for name in names], np.uint64)[codes]

    def add(self, chunk: Mapping[str, Any], row: int, count: int) -> None:
        places = self._places(chunk, row)
        if self._many:
            self._count(parts(places, self.fractions.limits()), np.ones(count, np.int64))
            return
        self._groups.add(places)
        if self._groups.size > MOST_GROUPS:
            places, rows = self._groups.table()
            self._many, self._groups = True, Counts(np.uint64)
            self._count(parts(places, self.fractions.limits()), rows)

    def _count(self, which: np.ndarray, rows: np.ndarray) -> None:
        for split in range(3):
            self.counts[split] += int(rows[which == split].sum())

    def settle(self) -> None:
        if self._many:
            return
        places, rows = self._groups.table()
        self._groups, self._size = Counts(np.uint64), len(places)
        if self._size <= len(self.fractions.wanted):
            what = f"the column '{self.column}' has {self._size} groups, too few for {self.fractions.in_words()}"
            raise InputError(what, where=self.where, allowed=f"{len(self.fractions.wanted) + 1} groups or more")
        which = nearest_groups(rows, self.fractions)
        self._taken = {split: places[which == split] for split in sorted(self.fractions.wanted)}
        self._count(which, rows)

    def assign(self, chunk: Mapping[str, Any], row: int, count: int) -> np.ndarray:
        places, which = self._places(chunk, row), np.full(count, TRAIN, np.int8)
        if self._many:
            return parts(places, self.fractions.limits())
        for split, taken in self._taken.items():
            at = np.minimum(np.searchsorted(taken, places), len(taken) - 1)
            which[taken[at] == places] = split
        return which

    def found(self) -> dict[str, Any]:
        if self._many:
            return {"groups": f"more than {MOST_GROUPS:,}"}
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
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"), key)
