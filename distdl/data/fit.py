"""Whether the columns of a data set are what a family reads: shape, type and values, before anything starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from distdl.columns import NO_LABEL, Column, in_digits
from distdl.data.manifest import VARIABLE, Manifest, Values
from distdl.errors import Problem

Reads = Mapping[str, Mapping[str, Column]]
"""Who reads -> column -> what is asked of it."""

FLOATS = ("float16", "float32", "float64")
EXACT = 1 << 24
"""Whole numbers up to here are themselves as float32."""


def misfits(
    where: str, manifest: Manifest, reads: Reads, splits: Mapping[str, Callable[[], Mapping[str, Values]]]
) -> list[Problem]:
    """All that does not fit. `splits`: name -> a function that gives what its values are, or {} where that is not known."""
    problems: list[Problem] = []
    fitting: dict[str, dict[str, Column]] = {}
    for who, columns in reads.items():
        for name, column in columns.items():
            found = list(_of_type(where, manifest, who, name, column))
            problems += found
            if not found and column.kind != "any":
                fitting.setdefault(who, {})[name] = column
        problems += _unread(where, manifest, who, columns)
    if not fitting:
        return problems
    for split, look in splits.items():
        values = look()
        for who, columns in fitting.items():
            for name, column in columns.items():
                if name in values:
                    problems += _Check(where, manifest, split, who, name, column, values[name]).problems()
                if column.lengths in values and column.lengths not in columns:
                    problems += _padded(where, manifest, split, who, name, column, values[column.lengths])
    return list(dict.fromkeys(problems))


def _unread(where: str, manifest: Manifest, who: str, columns: Mapping[str, Column]) -> Iterator[Problem]:
    """Columns without which those that are read would be taken for something else: which tokens count, and of which
    document each is. Whoever wrote the data set names them."""
    for name in columns:
        for other in manifest.preparation.get(name, {}).get("beside", ()):
            if other not in columns:
                what = f"{who} reads {name!r} without {other!r}: rows hold several documents, and filling"
                fix = f"model.{other}: true, where the family has that key; or prepare the data with packing=stream"
                yield Problem(what, where, fix=fix)


def _padded(
    where: str, manifest: Manifest, split: str, who: str, name: str, column: Column, lengths: Values
) -> Iterator[Problem]:
    """Rows with fewer steps than they have room for, which the reader would take for values."""
    room = manifest.columns[name].shape[-2]
    if lengths.low is None or lengths.low >= room:
        return
    told = f"{column.lengths!r} is {in_digits(lengths.low)} of {room}"
    what = f"{who} reads {name!r} step by step, and rows have padding: {told}"
    fix = f"model.{column.lengths}: true, where the family has that key; or prepare rows of one length (length=)"
    yield Problem(f"split {split!r}, row {lengths.low_row:,}: {what}", where, fix=fix)


def _of_type(where: str, manifest: Manifest, who: str, name: str, column: Column) -> Iterator[Problem]:
    """What is wrong with a column whatever its values."""
    if name not in manifest.columns:
        have = ", ".join(f"{n} {list(c.shape)}" for n, c in manifest.columns.items())
        yield Problem(
            f"{who} reads a column {name!r}, and the data set has none", where, f"the columns of the data set: {have}"
        )
        return
    have, shape = manifest.columns[name].dtype, manifest.columns[name].shape
    if len(shape) != len(column.shape) or any(b is not None and a != b for a, b in zip(shape, column.shape)):
        what = f"{who} expects {name!r} of shape {list(column.shape)} for a sample"
        fix = f"change the model's shape to {list(shape)}, or prepare the data in the expected shape"
        yield Problem(f"{what}; the data set has {list(shape)}", where, fix=fix)
    elif column.kind == "any":
        return
    elif have == VARIABLE:
        what = f"{who} reads {name!r} as numbers, and the data set has strings of bytes"
        yield Problem(what, where, fix="decode them when the data set is prepared")
    elif column.kind in ("class", "whole") and have in FLOATS:
        what = f"{who} reads {name!r} as whole numbers ({column.meaning}), and the data set has {have}"
        yield Problem(what, where, "an integer type, such as int64 or uint8", f"prepare {name!r} as int64")


@dataclasses.dataclass(frozen=True)
class _Check:
    """The values of one column in one split against what is asked of it."""

    where: str
    manifest: Manifest
    split: str
    who: str
    name: str
    column: Column
    values: Values

    def problems(self) -> list[Problem]:
        return [*self._not_finite(), *self._answers(), *self._range(), *self._all_missing()]

    def problem(self, row: int, what: str, fix: str, allowed: str = "") -> Problem:
        place = f"split {self.split!r}, row {row:,}, column {self.name!r}"
        return Problem(f"{place}: {what}", self.where, allowed or f"for {self.who}: {self.column.allowed()}", fix)

    def _not_finite(self) -> Iterator[Problem]:
        count, row = self.values.not_finite
        if count and self.column.kind != "answer":
            more = f" (the first of {count:,})" if count > 1 else ""
            yield self.problem(row, f"a value is NaN or infinite{more}", "fill it in, or leave such rows out")

    def _answers(self) -> Iterator[Problem]:
        values = self.values
        if self.column.kind == "answer" and values.minus_1[0] and values.low is not None and values.low >= 1:
            what = f"the answers are 1 and -1, without any 0: every -1 ({values.minus_1[0]:,}) would count as missing"
            yield self.problem(values.minus_1[1], what, "write 0 for a negative answer, or -100 for a missing one")

    def _all_missing(self) -> Iterator[Problem]:
        if self.column.missing is not None and self.values.high is None and self.values.minus_100[0]:
            what = f"every value of the split is {NO_LABEL}: there is nothing to learn from or to measure"
            yield self.problem(0, what, "label some rows, or set data.eval_split: null where it is that split")

    def _range(self) -> Iterator[Problem]:
        if self.column.kind == "answer":
            return
        (low, high), ends = self._bounds(), self._ends()
        for value, row in ends:
            if (low is not None and value < low) or (high is not None and value > high):
                what = f"the {self.column.meaning or 'value'} is {in_digits(value)}"
                yield self.problem(row, what, self._cure(value), self._allowed(high))
        if self._bytes_of_sample() and self.values.high == 1 and not self.values.plus_255[0]:
            what = "the bytes are 0 and 1 only, and bytes are divided by 255: nothing would be above 0.004"
            yield self.problem(self.values.high_row, what, "store float32, or bytes of 0 and 255")
        value, row = max(ends, key=lambda end: abs(end[0]), default=(0, 0))
        if self._becomes_float32() and abs(value) > EXACT:
            what = f"{in_digits(value)} is read as float32, which does not have every whole number beyond {EXACT:,}"
            yield self.problem(row, what, "scale it, and store float32", f"whole numbers up to {EXACT:,}, or float32")

    def _bounds(self) -> tuple[float | None, float | None]:
        low, high = self.column.low, self.column.high
        if self._bytes_of_sample():
            return None, None
        if self.column.within in self.manifest.columns:
            room = self.manifest.columns[self.column.within].shape
            high = min(room[0], high if high is not None else room[0]) if room else high
        return low, high

    def _allowed(self, high: float | None) -> str:
        """In words, where another column bounds it."""
        if not self.column.within:
            return ""
        low = in_digits(self.column.low or 0)
        return f"{low} to {in_digits(high or 0)}, the places of {self.column.within!r}"

    def _ends(self) -> list[tuple[float, int]]:
        """The smallest and the largest value, with their rows; what is missing is none of them."""
        values, ends = self.values, []
        if values.low is not None and values.high is not None:
            ends = [(values.low, values.low_row), (values.high, values.high_row)]
        apart = {-1: values.minus_1, -100: values.minus_100, 255: values.plus_255}
        ends += [(v, row) for v, (n, row) in apart.items() if n and v not in (self.column.missing, self.column.filler)]
        return ends

    def _bytes_of_sample(self) -> bool:
        return self.column.kind == "sample" and self._dtype() == "uint8"

    def _becomes_float32(self) -> bool:
        have = self._dtype()
        return have not in FLOATS and self.column.kind in ("real", "sample") and read_as(self.column, have) == "float32"

    def _dtype(self) -> str:
        return self.manifest.columns[self.name].dtype

    def _cure(self, value: float) -> str:
        column = self.column
        if column.within:
            return "correct the column, or prepare the data set again"
        if column.kind == "sample":
            return "store uint8, which is scaled, or divide by the largest value when the data set is prepared"
        if column.high == 1 and "pixel" in column.meaning and value > 1 and not column.key:
            return "write 0 and 1 (`mask > 0` of a mask of 0 and 255)"
        if column.key and column.high is not None and value > column.high:
            also = " (a mask of 0 and 255 becomes one of 0 and 1 by `mask > 0`)" if "pixel" in column.meaning else ""
            return f"model.{column.key}: {int(value) + 1}, or number them from 0{also}"
        if column.missing is not None and value < 0:
            return f"number them from 0, and write {column.missing} where there is none"
        return "correct the column, or prepare the data set again"


def class_notes(
    manifest: Manifest,
    reads: Reads,
    train: str,
    evaluation: str | None,
    counted: Mapping[str, Sequence[int]] | None = None,
) -> list[str]:
    """What the numbers of rows of the classes say that is no mistake, and yet nobody may have meant. Data sets of older
    versions do not tell them: then `counted` does, column -> training rows of each class, or nobody."""
    notes = []
    asked = {name: column for columns in reads.values() for name, column in columns.items() if column.kind == "class"}
    for name, column in asked.items():
        found = manifest.statistics.get(train, {}).get(name)
        classes = found.classes if found else None
        if classes is None and counted and name in counted:
            classes = {number: rows for number, rows in enumerate(counted[name]) if rows}
        if classes is None or column.high is None:
            continue
        names = manifest.preparation.get(name, {}).get("classes") or manifest.info.get("classes") or []
        learned = {number for number in classes if number != column.missing}
        never = [number for number in range(int(column.high) + 1) if number not in learned]
        if len(learned) == 1:
            notes.append(
                f"every {name!r} of the split {train!r} is {_class(min(learned), names)}: nothing is told apart"
            )
        elif never:
            key = f"model.{column.key or 'classes'} is {int(column.high) + 1}"
            have, they = ("have", "they are") if len(never) > 1 else ("has", "it is")
            what = f"{key}, and {_several(never, names)} {have} no row in the split {train!r}"
            notes.append(f"{what}: {they} never learned")
        tested = manifest.statistics.get(evaluation or "", {}).get(name)
        unseen = {n: c for n, c in ((tested and tested.classes) or {}).items() if n in never}
        if unseen:
            rows = sum(unseen.values())
            what = f"{rows:,} row{'s' if rows > 1 else ''} of the split {evaluation!r} {'are' if rows > 1 else 'is'} of"
            notes.append(f"{what} {_several(list(unseen), names)}, which the split {train!r} does not have")
    return notes


def _class(number: int, names: list[str]) -> str:
    return f"class {number}" + (f" ({names[number]})" if 0 <= number < len(names) else "")


def _several(numbers: list[int], names: list[str], most: int = 5) -> str:
    told = ", ".join(_class(number, names) for number in numbers[:most])
    return told + (f" and {len(numbers) - most:,} more" if len(numbers) > most else "")


def read_as(column: Column, dtype: str, fp64: bool = False) -> str:
    """The type in which a column of the data set is handed out: one that the family computes with.

    Classes and lengths become int64, rows of tokens stay as small as they are stored; reals become float32, but bytes of a
    sample, which are scaled where they are read. float64 stays where the family computes in it.
    """
    if column.kind == "class" or (column.kind == "whole" and not column.shape):
        return "int64"
    if column.kind == "whole":
        return dtype
    if column.kind not in ("real", "sample") or (column.kind == "sample" and dtype == "uint8"):
        return dtype
    if dtype == "float64":
        return dtype if fp64 else "float32"
    return "float64" if fp64 and dtype not in FLOATS else "float32"


def conversions(manifest: Manifest, reads: Reads, fp64: bool = False) -> dict[str, str]:
    """Column -> the type that it is read in, where the data set has another."""
    asked: dict[str, Column] = {}
    for columns in reads.values():
        asked = {**columns, **asked}  # the family's own word counts before a teacher's
    found = {}
    for name, column in asked.items():
        have: Any = manifest.columns.get(name)
        if have is not None and have.dtype != VARIABLE and (to := read_as(column, have.dtype, fp64)) != have.dtype:
            found[name] = to
    return found


def unlabelled(reads: Reads, values: Mapping[str, Values]) -> tuple[str, ...]:
    """The columns that have a value for "missing" and hold it."""
    asked = {name: column for columns in reads.values() for name, column in columns.items()}
    return tuple(
        sorted(n for n, c in asked.items() if c.missing is not None and n in values and values[n].minus_100[0] > 0)
    )
