"""What the columns of a split look like, for people and for the checks before a run: means, distributions, classes and how
often each is there, lengths. Part of the manifest, and no part of its fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from distdl.data.strict import StrictReader

MOST_PARTS = 128
"""Components of a row of real numbers that have statistics of their own; rows of more are taken as a whole."""
MOST_CLASSES = 1_000
"""Different whole numbers of a column that are counted one by one."""
BINS = 20


@dataclass(frozen=True)
class Part:
    """Some numbers: all of a column, or one component of it, such as a feature of a table."""

    low: float | None
    """Smallest finite value; None: there is none."""
    high: float | None
    mean: float | None
    deviation: float | None
    """Standard deviation, of these numbers themselves (divided by their count)."""
    median: float | None
    missing: int
    """Values that are NaN or infinite."""
    histogram: tuple[int, ...]
    """How many of the finite values lie in each of some bins of equal width, from `low` to `high`; of whole numbers with
    few values each has its own bin."""


@dataclass(frozen=True)
class Statistics:
    """A column in one split."""

    looked_at: int
    """Rows that `parts` tell about: all, or some that chance picked evenly, the same ones every time."""
    parts: tuple[Part, ...] = ()
    """One for the whole column; or one for each component of a short row of real numbers. () for strings of bytes."""
    classes: Mapping[int, int] | None = None
    """Whole number -> rows that have it, of all rows; None: the column is no single whole number, or has too many."""
    lengths: tuple[int, float, int] | None = None
    """Of strings of bytes, of all rows: the shortest, the mean and the longest, in bytes."""


Splits = Mapping[str, Mapping[str, Statistics]]
"""Split -> column -> what it looks like."""


def to_record(splits: Splits) -> dict[str, Any]:
    """What `from_record` reads, as plain values."""
    return {split: {name: _plain(one) for name, one in columns.items()} for split, columns in splits.items()}


def _plain(one: Statistics) -> dict[str, Any]:
    record = asdict(one)
    record["parts"] = [{**part, "histogram": list(part["histogram"])} for part in record["parts"]]
    record["classes"] = None if one.classes is None else {str(value): count for value, count in one.classes.items()}
    record["lengths"] = None if one.lengths is None else list(one.lengths)
    return record


def from_record(splits: Mapping[str, Any], read: StrictReader) -> dict[str, dict[str, Statistics]]:
    """InputError for anything that `to_record` would not have written."""
    return {
        split: {
            name: _read(record, f"statistics of '{name}'", read) for name, record in _mapping(columns, read).items()
        }
        for split, columns in splits.items()
    }


def _mapping(raw: Any, read: StrictReader) -> dict[str, Any]:
    return dict(read.typed(raw, dict, "statistics of a split"))


def _read(raw: Any, what: str, read: StrictReader) -> Statistics:
    read.keys(raw, what, {"looked_at", "parts", "classes", "lengths"})
    parts = read.typed(raw["parts"], list, f"parts of {what}")
    read.need(len(parts) <= MOST_PARTS, f"{what} have {len(parts)} parts")
    return Statistics(
        looked_at=read.count(raw["looked_at"], f"looked_at of {what}"),
        parts=tuple(_part(part, what, read) for part in parts),
        classes=None if raw["classes"] is None else _classes(raw["classes"], what, read),
        lengths=None if raw["lengths"] is None else _lengths(raw["lengths"], what, read),
    )


def _part(raw: Any, what: str, read: StrictReader) -> Part:
    numbers = ("low", "high", "mean", "deviation", "median")
    read.keys(raw, f"a part of {what}", {*numbers, "missing", "histogram"})
    bins = read.typed(raw["histogram"], list, f"the histogram of {what}")
    read.need(len(bins) <= BINS, f"the histogram of {what} has {len(bins)} bins")
    return Part(
        **{key: read.number(raw[key], f"{key} of {what}") for key in numbers},
        missing=read.count(raw["missing"], f"missing of {what}"),
        histogram=tuple(read.count(n, f"the histogram of {what}") for n in bins),
    )


def _classes(raw: Any, what: str, read: StrictReader) -> dict[int, int]:
    found = {}
    for text, count in read.typed(raw, dict, f"classes of {what}").items():
        read.need(text.removeprefix("-").isdecimal() and len(text) < 21, f"a class of {what} is {text!r:.40}")
        found[int(text)] = read.count(count, f"rows of the class {text} of {what}")
    read.need(len(found) <= MOST_CLASSES, f"{what} have {len(found)} classes")
    return found


def _lengths(raw: Any, what: str, read: StrictReader) -> tuple[int, float, int]:
    read.need(type(raw) is list and len(raw) == 3, f"lengths of {what} are {raw!r:.60}")
    low, mean, high = raw
    mean = read.number(mean, f"mean length of {what}")
    read.need(mean is not None, f"lengths of {what} have no mean")
    return read.count(low, f"lengths of {what}"), float(mean or 0), read.count(high, f"lengths of {what}")
