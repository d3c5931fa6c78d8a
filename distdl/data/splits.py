"""Which rows are learned from, which are held out: the options of every source, and who shares its rows out by them.

    by rows     a keyed hash of the row's number; the one way that needs no pass before
    by label    as much of every class (`stratify`)
    by group    all rows of a group together (`split_group`)
    by time     the latest rows are the test split, those before them the validation split (`split_time`)
    by column   a column says it (`split_column`)

What a way needs to know of all rows it learns in one pass over one column, in little memory (`split_rules.py`,
`split_shares.py`). After that a row's split depends on nothing but the row's number and value, so rows may be read again,
and by several processes.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np

from distdl.data.bad_rows import NAMES, BadRowOptions
from distdl.data.order import keyed_hash
from distdl.data.raw import Rows
from distdl.data.split_rules import SPLITS, ByColumn, ByRow, ByTime, Fractions, Rule, both_ends, parts
from distdl.data.split_shares import ByGroup, ByLabel
from distdl.errors import InputError, Problem, did_you_mean

MOST_WAITING = 1 << 16
"""Rows that wait for a split to have its first one."""
SPLIT_KEY = 0x64697374646C0001  # fixed: the same raw data gives the same split for everybody

WAYS = ("stratify", "split_group", "split_time", "split_column")
"""The options that each are a way to share rows out."""


@dataclass(frozen=True, kw_only=True)
class SplitOptions(BadRowOptions):
    """How a source's rows are shared out; the options of a source take these over."""

    test_fraction: float = 0.1
    """Part of the rows held out as the split `test`, where nothing else says which rows those are."""
    validation_fraction: float = 0.0
    """Part of the rows held out as the split `validation`, beside the test split: to stop early and to choose by."""
    stratify: bool = False
    """Hold out the same part of every class: within one row of it."""
    split_group: str = ""
    """Column whose equal values stay together, such as a patient or a recording: a group is in one split only."""
    split_time: str = ""
    """Column of times or numbers by which the latest rows become the test split, and those before them the validation."""
    split_column: str = ""
    """Column that says `train`, `test` or `validation` of each row; then the fractions say nothing."""
    split_seed: int = 0
    """Another number holds out other rows, of the same share."""


class Splitter:
    """Which split each row of a source belongs to.

        splitter = Splitter(options, names=[...], label="species", where=path)
        splitter.look(chunks)               # a pass over the columns `splitter.columns`, before anything else
        splitter.assign(chunk, first_row)   # (n,) numbers of SPLITS; the same whenever it is asked
        splitter.record()                   # for info["split"]

        splitter.parts(lambda: rows)        # for a source of arrays: all of that in one

    A chunk is column -> values (array, Arrow array or list), as they were read; it holds one column at least, to be
    counted. `names`: the columns there are. `label`: the one that holds the class. `where`: the file, `place(row)`: where
    in it a row is. `tested`, `validated`: the split comes from somewhere else. InputError: options that do not go
    together, or with these columns; from `look`, rows that cannot be shared out so.
    """

    def __init__(
        self,
        options: SplitOptions,
        *,
        names: Sequence[str] = (),
        label: str = "",
        where: str = "",
        place: Callable[[int], str] | None = None,
        tested: bool = False,
        validated: bool = False,
    ):
        check_split(options, tested, validated)
        self.options, self.where, self.tested = options, where, tested
        self.fractions = Fractions(0.0 if tested else options.test_fraction, options.validation_fraction)
        self.looked = self._settled = False
        self._rule = self._chosen(names, label, place or (lambda row: f"{where}, row {row:,}"))
        self.columns: tuple[str, ...] = (self._rule.column,) if self._rule.column else ()
        """The columns whose values it must see."""
        self.apart: tuple[str, ...] = tuple(filter(None, (options.split_group, options.split_column)))
        """The columns that say where a row belongs, and nothing to learn from."""

    @property
    def looks(self) -> bool:
        """Whether rows can be shared out only after a pass over all of them."""
        return not isinstance(self._rule, ByRow) and not self.looked

    def look(self, chunks: Iterable[Mapping[str, Any]]) -> None:
        """A pass over all rows, of the columns `columns` or any other. InputError: they cannot be shared out."""
        row = 0
        for chunk in chunks:
            count = len(next(iter(chunk.values())))
            self._rule.add(chunk, row, count)
            row += count
        self._rule.settle()
        self.looked = True
        for note in self._rule.found().get("notes", ()):
            print(note, file=sys.stderr)

    def settle(self, rows: int) -> None:
        """Instead of a look where rows are shared out by their numbers alone, of which there are so many. InputError: they
        are too few."""
        if not self.looked:
            self._rule = ByRow(split_key(self.options.split_seed), self.fractions, self.where)
            for row in range(0, rows, MOST_WAITING):
                self._rule.add({}, row, min(MOST_WAITING, rows - row))
            self._rule.settle()
            self._settled = True

    def assign(self, chunk: Mapping[str, Any], first_row: int) -> np.ndarray:
        """The split of each row of a chunk that begins at `first_row`, as its number in SPLITS: (n,) int8."""
        assert self.looked or self._settled
        return self._rule.assign(chunk, first_row, len(next(iter(chunk.values()))))

    def parts(
        self, read: Callable[[], Iterable[Rows]], test: Callable[[], Iterable[Rows]] | None = None
    ) -> Iterator[tuple[str, Rows]]:
        """All rows of a source, each in its split and without the columns `apart`; `test` reads those of a test split that
        comes from somewhere else. `read` is called twice where a look is wanted: at once, so that `record()` then knows
        what was found."""
        if self.looks:
            self.look(read())
        held_out = (("test", rows) for rows in test()) if test else ()
        return ((split, self.kept(rows)) for split, rows in chain(self.share(read()), held_out))

    def kept(self, rows: Rows) -> Rows:
        """The rows without the columns `apart`."""
        return {name: values for name, values in rows.items() if name not in self.apart}

    def share(self, chunks: Iterable[Rows]) -> Iterator[tuple[str, Rows]]:
        """Pairs of a split and some of its rows. By rows this needs no look before."""
        if isinstance(self._rule, ByRow) and not self.looked:
            yield from _share_by_rows(chunks, self.fractions, self._rule.key)
            return
        row = 0
        for rows in chunks:
            which = self.assign(rows, row)
            row += len(which)
            yield from _split(rows, which)

    def record(self) -> dict[str, Any]:
        """What was done, as plain values for the manifest; with the rows of each split once it has looked."""
        told: dict[str, Any] = {"by": self._rule.by, "seed": self.options.split_seed}
        if self._rule.column:
            told["column"] = self._rule.column
        if not isinstance(self._rule, ByColumn):
            told |= {"test_fraction": self.fractions.test, "validation_fraction": self.fractions.validation}
        if self.tested:
            told["test"] = "of its own"
        if self.looked:
            told["rows"] = {name: count for name, count in zip(SPLITS, self._rule.counts) if count}
            told |= self._rule.found()
        return told

    def _chosen(self, names: Sequence[str], label: str, place: Callable[[int], str]) -> Rule:
        options, key = self.options, split_key(self.options.split_seed)
        asked = {
            "split_group": options.split_group,
            "split_time": options.split_time,
            "split_column": options.split_column,
        }
        problems = [
            Problem(
                f"there is no column '{name}', which {option}= names",
                self.where,
                fix=did_you_mean(name, names) if names else f"leave {option}= out: these rows have no such columns",
            )
            for option, name in asked.items()
            if name and name not in names
        ]
        if options.stratify and (not label or (names and label not in names)):
            what = "stratify=true holds out the same part of every class, and there is no label"
            problems.append(Problem(what, self.where, fix="name the column of the classes, or leave stratify out"))
        if problems:
            raise InputError(*problems)
        if options.split_column:
            return ByColumn(options.split_column, self.where, place)
        if not self.fractions.wanted:
            return ByRow(key, self.fractions, self.where)
        if options.split_group:
            return ByGroup(options.split_group, key, self.fractions, self.where, place)
        if options.split_time:
            return ByTime(options.split_time, self.fractions, self.where, place)
        if options.stratify:
            return ByLabel(label, key, self.fractions, self.where, place)
        return ByRow(key, self.fractions, self.where)


def check_split(options: SplitOptions, tested: bool = False, validated: bool = False) -> None:
    """InputError for options that no data could be shared out by."""
    problems = [
        Problem(f"{name} is {value}", allowed="from 0 to below 1")
        for name in ("test_fraction", "validation_fraction")
        if not 0 <= (value := getattr(options, name)) < 1
    ]
    if not problems and not tested and options.test_fraction + options.validation_fraction >= 1:
        told = f"test_fraction={options.test_fraction:g} and validation_fraction={options.validation_fraction:g}"
        problems.append(Problem(f"{told} leave nothing to train on", allowed="a sum below 1"))
    ways = [name for name in WAYS if getattr(options, name)]
    if len(ways) > 1:
        problems.append(Problem(f"rows cannot be shared out by {' and '.join(ways)} at once", allowed="one of them"))
    if options.split_column and (tested or options.validation_fraction):
        other = "a test split of its own" if tested else "validation_fraction"
        what = f"split_column={options.split_column} says which rows are held out, and {other} says it, too"
        problems.append(Problem(what, fix="leave one of the two out"))
    if validated and options.validation_fraction:
        what = f"validation_fraction={options.validation_fraction:g}, and there is a validation split of its own"
        problems.append(Problem(what, fix="leave validation_fraction out"))
    if problems:
        raise InputError(*problems)


def split_key(seed: int) -> int:
    """The key of the hash that shares rows out; seed 0 is the one of everybody."""
    if seed == 0:
        return SPLIT_KEY
    return int.from_bytes(hashlib.blake2b(f"distdl-split|{seed}".encode(), digest_size=8).digest(), "little")


def _share_by_rows(chunks: Iterable[Rows], fractions: Fractions, key: int) -> Iterator[tuple[str, Rows]]:
    if not fractions.wanted:
        yield from (("train", rows) for rows in chunks if len(next(iter(rows.values()))))
        return
    row = 0
    waiting: list[tuple[Rows, np.ndarray]] = []  # the first rows and their hashes, until every split has one
    missing = {0, *fractions.wanted} if fractions.wanted else set()
    limits = fractions.limits()
    for rows in chunks:
        count = len(next(iter(rows.values())))
        places = keyed_hash(key, np.arange(row, row + count))
        row += count
        missing -= set(np.unique(parts(places, limits)).tolist())
        waiting.append((rows, places))
        if not missing or row > MOST_WAITING:
            for each, of_each in waiting:
                yield from _split(each, parts(of_each, limits))
            waiting = []
    if missing:  # so few rows that chance left a split without any
        limits = both_ends(np.concatenate([p for _, p in waiting]) if waiting else None, row, fractions, missing)
    for each, of_each in waiting:
        yield from _split(each, parts(of_each, limits))


def _split(rows: Rows, which: np.ndarray) -> Iterator[tuple[str, Rows]]:
    for number, split in enumerate(SPLITS):
        chosen = which == number
        if chosen.all():
            yield split, rows
        elif chosen.any():
            yield split, {name: _select(values, chosen) for name, values in rows.items()}


def _select(values: Any, chosen: np.ndarray) -> Any:
    return (
        values[chosen]
        if isinstance(values, np.ndarray)
        else [v for v, keep in zip(values, chosen, strict=True) if keep]
    )


def split_files(names: Sequence[str], options: SplitOptions) -> dict[str, str]:
    """The split of each whole file or folder, by a keyed hash of its name (a path relative to the source).

    A split with a fraction above 0 gets one at least where two are left, so that a small corpus has a test split, too.
    """
    key = f"distdl-split|{options.split_seed}" if options.split_seed else "distdl-split"

    def place(name: str) -> float:
        digest = hashlib.blake2b(name.encode(), digest_size=8, key=key.encode()).digest()
        return int.from_bytes(digest, "little") / 2.0**64

    found, begin = dict.fromkeys(names, "train"), 0.0
    for split, fraction in (("test", options.test_fraction), ("validation", options.validation_fraction)):
        free = [name for name in names if found[name] == "train"]
        chosen = [name for name in free if begin <= place(name) < begin + fraction]
        if not chosen and fraction > 0 and len(free) > 1:
            chosen = [min(free, key=place)]
        found |= dict.fromkeys(chosen, split)
        begin += fraction
    return found


def check_files(options: SplitOptions, by: str = "files", how: str = "whole files are held out") -> dict[str, Any]:
    """The record of a split by whole files, or in another way that looks at no values. InputError: options that ask for a
    split by what is in the rows."""
    check_split(options)
    asked = [name for name in WAYS if getattr(options, name)]
    if asked:
        raise InputError(f"{how}, so that {asked[0]} says nothing", fix=f"leave {asked[0]} out")
    fractions = {name: getattr(options, name) for name in ("test_fraction", "validation_fraction")}
    return {"by": by, "seed": options.split_seed, **fractions}


def asked_beyond_fraction(options: SplitOptions) -> list[str]:
    """The options that ask for more than a test fraction."""
    others = [each for each in fields(SplitOptions) if each.name not in ("test_fraction", *NAMES)]
    return [each.name for each in others if getattr(options, each.name) != each.default]


def check_heeded(source: str, options: Any, info: Mapping[str, Any]) -> None:
    """InputError where options ask for a split that the source knows nothing of: it would be ignored in silence."""
    if not isinstance(options, SplitOptions) or "split" in info:
        return
    if ignored := asked_beyond_fraction(options):
        what = f"the source {source} does not share its rows out by {' or '.join(ignored)}"
        raise InputError(what, allowed="test_fraction")
