"""What every reader of tables gives: rows that can be read again and again, without a whole file in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import pyarrow as pa


class Table(Protocol):
    """Rows with named columns. A reader is one (CSV, JSON lines, Parquet, Arrow, ...)."""

    @property
    def path(self) -> str:
        """Where it came from, for a person."""
        ...

    @property
    def names(self) -> list[str]:
        """The columns, in their order; no name stands twice."""
        ...

    @property
    def schema(self) -> pa.Schema:
        """Their types as read. All are strings where a file has no types, as CSV: such a value is read as what it says."""
        ...

    @property
    def classes(self) -> Mapping[str, list[str]]:
        """Column -> the names of its classes, where the file says them: then its values are numbers of classes."""
        ...

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """The rows of these columns, in order, a few megabytes at a time. It may be called again: two passes and more."""
        ...

    def place(self, row: int) -> str:
        """Where a row (from 0) is, for a person: `file:line`."""
        ...


class Places(Protocol):
    """What knows where the rows of a table are."""

    @property
    def path(self) -> str:
        """Where the table came from, for a person."""
        ...

    def place(self, row: int) -> str:
        """Where a row is, for a person."""
        ...


def places_of(table: Table, rows: Sequence[int]) -> list[str]:
    """Where rows (in rising order) are, for a person: in one pass over the file where its lines must be counted."""
    several = getattr(table, "places", None)
    return several(rows) if several else [table.place(row) for row in rows]


class Counted:
    """Where rows are, of a table whose file must be read from its beginning to tell. A row behind the one that was asked
    for last is looked for from there on, so that rows in rising order take one pass, however often somebody asks."""

    def __init__(self) -> None:
        self._coming: Iterator[str] | None = None
        self._passed, self._last = 0, ""

    def places(self, rows: Sequence[int], every: Callable[[], Iterator[str]], path: str) -> list[str]:
        """The places of some rows. `every`: the places of all rows, in their order."""
        return [self._place(row, every) or f"{path}, row {row}" for row in rows]

    def _place(self, row: int, every: Callable[[], Iterator[str]]) -> str:
        if self._coming is None or row < self._passed - 1:
            self._coming, self._passed = every(), 0
        while self._passed <= row:
            if (place := next(self._coming, None)) is None:
                self._coming = None
                return ""
            self._passed, self._last = self._passed + 1, place
        return self._last

    def __reduce__(self) -> tuple[type[Counted], tuple[()]]:
        return Counted, ()  # a table may go to another process, an open file may not


SECTION_BYTES = 16 << 20
"""Of the file, or of what it holds when that is unpacked."""


def cut(table: Table) -> list[Table]:
    """A table in sections of about `SECTION_BYTES`, each of which is one, too: rows on end that can be read without those
    before them. `cut()` of a table gives them; one that has none, as its file can be read from its beginning only, is one
    section. Its attribute `rows`, where there is one, is how many rows it has. Only the whole table knows places."""
    find: Callable[[], list[Table]] | None = getattr(table, "cut", None)
    return find() if find else [table]


def grouped(sizes: Sequence[int]) -> list[list[int]]:
    """Numbers of pieces on end, put together to sections of about `SECTION_BYTES` by their sizes; a larger piece is one by
    itself."""
    found: list[list[int]] = []
    size = 0
    for i, of_piece in enumerate(sizes):
        if not found or max(size, of_piece) >= SECTION_BYTES:
            found.append([])
            size = 0
        found[-1].append(i)
        size += of_piece
    return found


def doubled(names: Sequence[str]) -> list[str]:
    """The names that stand there more than once."""
    return sorted(name for name, count in Counter(names).items() if count > 1)
