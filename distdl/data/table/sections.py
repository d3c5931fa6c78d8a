"""A large table in sections, each of which can be read without those before it: by several workers at once, or again where
a preparation that was stopped goes on.

Where a table is cut hangs on the table alone, never on the number of workers, and whatever is added up over its sections is
added up in their order: so every number of workers gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import accumulate
from typing import TypeVar

from distdl.data import workers
from distdl.data.splits import Splitter
from distdl.data.table.files import Files
from distdl.data.table.reader import Table, cut
from distdl.data.table.stream import Kept, Part, Renamed, assigned, shared_out, whole_split
from distdl.data.table.vectors import WithVectors
from distdl.errors import InputError

R = TypeVar("R")
_Counted = tuple[int, list[tuple[int, list[int]]]]
"""Rows of a section; and of each table in it that leaves some out, the rows it has seen and those it has left out."""
OfParts = Callable[[Iterable[Part]], Iterable[R]]


class Miscounted(Exception):
    """Rows are left out of a section of which none was taken to be."""


class Sections:
    """The rows of a table, each in its split. `splitter`: says in which; or `split`: all of them are that one.
    `whole`: it is one section."""

    def __init__(
        self, table: Table, splitter: Splitter | None = None, split: str = "train", whole: bool = False
    ) -> None:
        self.table, self.splitter, self.split = table, splitter, split
        self._tables = [table] if whole else cut(table)
        self._first = [0]
        """The first row of each section, and how many rows there are; from `_count` on."""
        if len(self._tables) > 1:
            self._count(exact=splitter is None)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._tables)

    @property
    def rows(self) -> int | None:
        """How many rows they have; None: that is not known before they are read."""
        return self._first[-1] if self.count > 1 else None

    def each(self, function: OfParts[R], names: list[str], begin: int = 0) -> Iterator[tuple[int, R]]:
        """(number of the section, what the function gives for its parts with these columns), in their order, from one of
        them on. What the function holds goes to other processes."""
        if self.count == 1:
            parts = (
                shared_out(self.table, names, self.splitter)
                if self.splitter
                else whole_split(self.table, names, self.split)
            )
            yield from ((0, result) for result in function(parts))
            return
        items = [(i, self._tables[i], *self._first[i : i + 2]) for i in range(begin, self.count)]
        yield from workers.current().each(partial(_of_section, function, names, self.splitter, self.split), items)

    def count_again(self) -> None:
        """After `Miscounted`: look at every section for rows that are left out."""
        self._count(exact=True)

    def _count(self, exact: bool) -> None:
        """How many rows each section has: they are shared out by their numbers. Unless `exact`, none is taken to be left
        out of a section whose rows its file tells, as that would take a pass over all of it."""
        if self.splitter and self.splitter.looks and self.splitter.columns:
            columns = list(self.splitter.columns)
            batches = self.table.batches(columns)
            self.splitter.look({name: batch.column(i) for i, name in enumerate(columns)} for batch in batches)
        levels = list(_kept(self.table))
        told = [None if exact else _rows_of_file(table) for table in self._tables]
        found: list[_Counted] = [(rows or 0, [(rows or 0, [])] * len(levels)) for rows in told]
        unknown = [i for i, rows in enumerate(told) if rows is None]
        counted = workers.current().each(_counted, [self._tables[i] for i in unknown])
        for i, of_section in zip(unknown, counted, strict=True):
            found[i] = of_section
        for level, kept in enumerate(levels):
            kept.take_over(of_levels[level] for _, of_levels in found)
        self._first = [0, *accumulate(rows for rows, _ in found)]
        if self.splitter and not self.splitter.columns:
            self.splitter.settle(self._first[-1])


class Elsewhere:
    """Stands for a table in another process, which has not the whole of it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def place(self, row: int) -> str:
        """Nothing: what fails there is called once more where this is known."""
        return ""


def files_of(table: Table) -> tuple[str, ...]:
    """The files that a table is read from; () where that is not known."""
    while isinstance(table, Kept | Renamed | WithVectors):
        table = table.table
    if isinstance(table, Files):
        each = [files_of(one) for one in table.tables]
        return tuple(file for files in each for file in files) if all(each) else ()
    return tuple(filter(None, [getattr(table, "location", "")]))


def _kept(table: Table) -> Iterator[Kept]:
    """The tables without some rows that this one is, from the outermost on."""
    while isinstance(table, Kept):
        yield table
        table = table.table


def _rows_of_file(table: Table) -> int | None:
    """Of a section, with those that are left out; None: its file does not tell."""
    while isinstance(table, Kept):
        table = table.table
    return getattr(table, "rows", None)


def _counted(table: Table) -> Iterator[_Counted]:
    rows = sum(batch.num_rows for batch in table.batches(table.names[:1]))
    yield rows, [(kept.passed, kept.left_out) for kept in _kept(table)]


def _of_section(
    function: OfParts[R],
    names: list[str],
    splitter: Splitter | None,
    split: str,
    section: tuple[int, Table, int, int],
) -> Iterator[tuple[int, R]]:
    number, table, first, end = section
    parts = assigned(table, names, splitter, first) if splitter else whole_split(table, names, split, first)
    for result in function(_whole(parts, table, end - first)):
        yield number, result


def _whole(parts: Iterable[Part], table: Table, rows: int) -> Iterator[Part]:
    """InputError: there are not as many rows as were counted."""
    found = 0
    for part in parts:
        found += len(part.rows)
        yield part
    if found != rows and any(kept.left_out for kept in _kept(table)):
        raise Miscounted
    if found != rows:
        what = f"{table.path} had {rows:,} rows in a section where {found:,} are now: it was changed while it was read"
        raise InputError(what, fix="prepare it again when nobody writes to it")
