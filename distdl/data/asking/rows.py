"""Rows as programs send them, in JSON: objects by the columns of the table, texts, files in base64, lists of numbers.

Each is looked at by itself and before any other, so that what is wrong with one spoils none, and what comes of it depends
on nothing that stands beside it. From there on it goes the way of a row of a file.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from distdl.columns import Column
from distdl.data.asking.cells import OfTable
from distdl.data.asking.files import file_column
from distdl.data.asking.open import Ways
from distdl.data.asking.question import Question
from distdl.data.asking.sent import file_of, missing, object_of, picture_of, picture_told, shown
from distdl.data.asking.texts import Sentences, Texts, of_texts
from distdl.data.pictures import KIND as PICTURE
from distdl.data.raw import Rows
from distdl.errors import InputError

CELLS = 1 << 20
"""Characters of texts that are asked about at a time, filled up to the longest."""
Row = Any
"""What a row of JSON became, ready to be asked about."""


class Reader(Protocol):
    """How the rows of one model are read."""

    def read(self, row: Any) -> tuple[Row, list[str]]:
        """A row, and what a person should know of it. InputError: it cannot be read."""
        ...

    def questions(self, rows: Sequence[Row]) -> Iterable[Question]:
        """All of them, in their order."""
        ...

    def columns(self) -> list[dict[str, Any]]:
        """What a row holds, in plain values."""
        ...

    def example(self) -> Any:
        """A row of JSON that can be read; None where none is at hand."""
        ...


def reader_of(ways: Ways, unknown: str = "refuse") -> Reader:
    """`unknown`: whether words of a category that training did not see and has no place for `refuse` a row, or `answer`."""
    if ways.of_tables:
        return OfTable(ways.record, unknown)
    if (found := file_column(ways.by_record)) is not None:
        return OfFiles(*found)
    if ways.lines is not None:
        return OfTexts(ways.lines)
    return OfArrays(ways.asked)


# -- files -------------------------------------------------------------------------------------------------------------


class OfFiles:
    """Pictures or recordings, each a file in base64: by itself, or as the value of the column's name."""

    def __init__(self, name: str, record: Mapping[str, Any], make: Callable[[io.BytesIO], Rows]) -> None:
        self.name, self.record, self._make = name, record, make

    def read(self, row: Any) -> tuple[Row, list[str]]:
        notes = []
        if isinstance(row, Mapping):
            strange = [key for key in row if key != self.name]
            if self.name not in row:
                raise missing(self.name, [self.name], strange)
            notes = [f"'{key}' is nothing that the model reads, and is left alone" for key in strange]
            row = row[self.name]
        content = (picture_of if self.record["kind"] == PICTURE else file_of)(self.name, row)
        return self._make(io.BytesIO(content)), notes

    def questions(self, rows: Sequence[Row]) -> Iterator[Question]:
        yield _question({name: np.stack([row[name] for row in rows]) for name in rows[0]})

    def columns(self) -> list[dict[str, Any]]:
        if self.record["kind"] == PICTURE:
            return [{"name": self.name, **picture_told(self.record)}]
        about = {"rate_hz": self.record["rate_hz"], "samples": self.record["samples"]}
        return [{"name": self.name, "kind": "recording", "as": "a file in base64", **about, "null": False}]

    def example(self) -> Any:
        return None


# -- texts -------------------------------------------------------------------------------------------------------------


class OfTexts:
    """Texts: strings, or objects with one as `text`."""

    def __init__(self, lines: Texts | Sentences) -> None:
        self.lines = lines

    def read(self, row: Any) -> tuple[Row, list[str]]:
        if isinstance(row, str):
            return row, []
        row = object_of(row, ["text"])
        strange = [key for key in row if key != "text"]
        if "text" not in row:
            raise missing("text", ["text"], strange)
        if not isinstance(row["text"], str):
            raise InputError(f"'text' has the value {shown(row['text'])}", allowed="a string")
        return row["text"], [f"'{key}' is nothing that the model reads, and is left alone" for key in strange]

    def questions(self, rows: Sequence[Row]) -> Iterator[Question]:
        some: list[str] = []
        longest = 0
        for text in rows:
            longest = max(longest, len(text))
            if some and longest * (len(some) + 1) > CELLS:
                yield from of_texts(self.lines, (("", one) for one in some))
                some, longest = [], len(text)
            some.append(text)
        yield from of_texts(self.lines, (("", one) for one in some))

    def columns(self) -> list[dict[str, Any]]:
        return [{"name": "text", "kind": "text", "null": False}]

    def example(self) -> Any:
        return {"text": "Once upon a time"}


# -- numbers as the model reads them -----------------------------------------------------------------------------------


class OfArrays:
    """Objects of the model's own columns: numbers and lists of them. Where it reads one alone, its value by itself, too."""

    def __init__(self, asked: Mapping[str, Column]) -> None:
        self.asked = asked

    def read(self, row: Any) -> tuple[Row, list[str]]:
        if len(self.asked) == 1 and not isinstance(row, Mapping):
            row = {next(iter(self.asked)): row}
        row = object_of(row, list(self.asked))
        strange = [key for key in row if key not in self.asked]
        for name in self.asked:
            if name not in row:
                raise missing(name, list(self.asked), strange)
        notes = [f"'{key}' is no column that the model reads, and is left alone" for key in strange]
        return {name: values_of(name, column, row[name]) for name, column in self.asked.items()}, notes

    def questions(self, rows: Sequence[Row]) -> Iterator[Question]:
        """Rows of one shape together."""
        some: list[Row] = []
        for row in rows:
            if some and any(row[name].shape != some[0][name].shape for name in row):
                yield _question({name: np.stack([one[name] for one in some]) for name in some[0]})
                some = []
            some.append(row)
        yield _question({name: np.stack([one[name] for one in some]) for name in some[0]})

    def columns(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "kind": "numbers", "shape": list(column.shape), "allowed": column.allowed(), "null": False}
            for name, column in self.asked.items()
        ]

    def example(self) -> Any:
        return None


def values_of(name: str, column: Column, value: Any) -> np.ndarray:
    """A nested list of numbers as the array that a column holds. InputError: it is none, has another shape, or holds what
    the column does not."""
    try:
        found = np.array(value)
    except (ValueError, OverflowError):
        found = np.array(None)
    if found.dtype.kind not in "iufb" or (found.dtype.kind == "f" and not np.isfinite(found).all()):
        raise InputError(f"'{name}' has the value {shown(value)}", allowed="numbers, in lists of equal lengths")
    if len(found.shape) != len(column.shape) or any(a not in (None, b) for a, b in zip(column.shape, found.shape)):
        wanted = ", ".join("any" if size is None else str(size) for size in column.shape)
        raise InputError(f"'{name}' has the shape {list(found.shape)}", allowed=f"the shape [{wanted}]")
    whole = column.kind in ("class", "whole")
    if whole and (found != np.trunc(found)).any():
        raise InputError(f"'{name}' holds numbers that are not whole", allowed=column.allowed())
    low = -math.inf if column.low is None else column.low
    high = math.inf if column.high is None else column.high
    wrong = (found < low) | (found > high)
    wrong &= ~np.isin(found, [known for known in (column.missing, column.filler) if known is not None])
    if wrong.any():
        raise InputError(f"'{name}' holds {found[wrong].flat[0].item()!r}", allowed=column.allowed())
    return found.astype(np.int64 if whole else np.float32)


def _question(rows: Rows) -> Question:
    count = len(next(iter(rows.values())))
    return Question({"row": list(range(count))}, rows, np.ones(count, bool))
