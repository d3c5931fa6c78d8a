"""Several files that are one table."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

import pyarrow as pa

from distdl.data.inputs import find_files
from distdl.data.store import shown
from distdl.data.table.reader import SECTION_BYTES, Table, cut, grouped, places_of
from distdl.errors import InputError


def open_files(path: str, endings: tuple[str, ...], open_one: Callable[[str], Table]) -> Table:
    """The table of a file, or of all files of a folder or a pattern, one after another in the order of their names."""
    files = find_files(path, endings)
    return open_one(files[0]) if len(files) == 1 else Files(shown(path), [open_one(file) for file in files])


def _size(table: Table) -> int:
    """Bytes of its file; of one that is elsewhere, as many as a section has."""
    with suppress(OSError):
        return os.path.getsize(table.path)
    return SECTION_BYTES


class Files:
    """Tables of the same columns, as one. InputError: they are not the same."""

    def __init__(self, path: str, tables: list[Table]):
        self.path, self.tables = path, tables
        self.names, self.schema = tables[0].names, tables[0].schema
        self.classes: Mapping[str, list[str]] = tables[0].classes
        self.notes = [note for table in tables for note in getattr(table, "notes", [])]
        self._rows: list[int | None] = [None] * len(tables)
        for table in tables[1:]:
            self._check(table)

    def _check(self, table: Table) -> None:
        first = self.tables[0]
        other, missing = set(table.names) - set(self.names), set(self.names) - set(table.names)
        if other or missing:
            more = f" has the column {', '.join(sorted(other))}" if other else ""
            less = f" lacks the column {', '.join(sorted(missing))}" if missing else ""
            raise InputError(f"{table.path}{more}{' and' if more and less else ''}{less}, unlike {first.path}")
        for name in self.names:
            here, there = table.schema.field(name).type, self.schema.field(name).type
            if here != there:
                raise InputError(f"the column '{name}' is {here} in {table.path}, but {there} in {first.path}")
        if dict(table.classes) != dict(self.classes):
            raise InputError(f"the classes of {table.path} have other names than those of {first.path}")

    def cut(self) -> list[Table]:
        """The sections of all files; small files are one together."""
        found: list[Table] = []
        sizes = [_size(table) for table in self.tables]
        for files in grouped(sizes):
            if len(files) == 1:
                found += cut(self.tables[files[0]])
            else:
                section = copy.copy(self)
                section.tables, section._rows = [self.tables[i] for i in files], [None] * len(files)
                found.append(section)
        return found if len(found) > 1 else [self]

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """The rows of all files."""
        for i, table in enumerate(self.tables):
            rows = 0
            for batch in table.batches(names):
                rows += batch.num_rows
                yield batch
            self._rows[i] = rows

    def place(self, row: int) -> str:
        """Where a row is in its own file."""
        return self.places([row])[0]

    def places(self, rows: Sequence[int]) -> list[str]:
        """The same of several, in rising order."""
        found: list[str] = []
        first = 0
        for i, table in enumerate(self.tables):
            here = [
                row - first for row in rows[len(found) :] if i == len(self.tables) - 1 or row < first + self._count(i)
            ]
            found += places_of(table, here) if here else []
            if len(found) == len(rows):
                break
            first += self._count(i)
        return found

    def _count(self, number: int) -> int:
        """The rows of a file."""
        count = self._rows[number]
        if count is None:
            count = sum(batch.num_rows for batch in self.tables[number].batches(self.names[:1]))
            self._rows[number] = count
        return count
