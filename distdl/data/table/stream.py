"""The rows of a table on their way into a data set: renamed, without what is left out, shared out over splits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distdl.data.split_rules import SPLITS
from distdl.data.splits import Splitter
from distdl.data.table.reader import Table, cut, places_of
from distdl.data.table.values import texts
from distdl.errors import InputError, Problem, did_you_mean

PIECE_BYTES = 8 << 20
PIECE_ROWS, PIECE_CELLS, FEW_ROWS = 1 << 16, 1 << 19, 256
"""A piece has no more rows or, beyond a few rows, cells: each becomes a number of 8 bytes, and some copies of it."""


@dataclass(frozen=True)
class Part:
    """Some rows of one batch that belong to one split."""

    split: str
    rows: np.ndarray
    """Their numbers in the table, (n,) int64."""
    batch: pa.RecordBatch


class Renamed:
    """A table whose columns have other names."""

    def __init__(self, table: Table, renamed: Mapping[str, str]) -> None:
        problems = [
            Problem(f"{table.path} has no column '{old}', which rename= names", fix=did_you_mean(old, table.names))
            for old in renamed
            if old not in table.names
        ]
        self._old = {renamed.get(name, name): name for name in table.names}
        if not problems and len(self._old) < len(table.names):
            taken = sorted(new for old, new in renamed.items() if new in table.names and new != old)
            what = f"rename= gives two columns of {table.path} the same name: {', '.join(taken or renamed.values())}"
            problems.append(Problem(what, fix="choose other names"))
        if problems:
            raise InputError(*problems)
        self.table, self.path, self.names = table, table.path, list(self._old)
        fields = [table.schema.field(name) for name in table.names]
        self.schema = pa.schema([of_one.with_name(renamed.get(of_one.name, of_one.name)) for of_one in fields])
        self.classes = {renamed.get(name, name): of_column for name, of_column in table.classes.items()}
        self.place, self.places = table.place, partial(places_of, table)
        self.rows: int | None = getattr(table, "rows", None)
        self._renamed = dict(renamed)

    def cut(self) -> list[Table]:
        """The same of each section of the table."""
        return [Renamed(section, self._renamed) for section in cut(self.table)]

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """As of the table, under the new names."""
        for batch in self.table.batches([self._old[name] for name in names]):
            yield batch.rename_columns(names)


class Kept:
    """A table without the rows in which one of some columns is empty. How many these are is known after a pass."""

    def __init__(self, table: Table, needed: Sequence[str], na: Sequence[str]) -> None:
        self.table, self.needed, self._na = table, list(needed), na
        self.path, self.names, self.schema, self.classes = table.path, table.names, table.schema, table.classes
        self.left_out: list[int] = []
        """The rows that are not there, by their numbers in the file."""
        self.passed = 0
        """Rows of the file that the last pass has seen."""

    def cut(self) -> list[Table]:
        """The same of each section of the table."""
        return [Kept(section, self.needed, self._na) for section in cut(self.table)]

    def refuse_none(self) -> None:
        """InputError where all rows that the last pass has seen are empty there."""
        if self.passed and len(self.left_out) == self.passed:
            what = f"{self.path} has no rows with a '{self.needed[0]}': it is empty in all {self.passed:,}"
            raise InputError(what, fix="predict another column")

    def take_over(self, sections: Iterable[tuple[int, list[int]]]) -> None:
        """(rows of the file, those that are not there) of each section, as a pass over it has found them."""
        self.left_out, self.passed = [], 0
        for rows, left_out in sections:
            self.left_out += (np.array(left_out, np.int64) + self.passed).tolist()
            self.passed += rows

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """The rows that are kept."""
        both, row = list(dict.fromkeys([*names, *self.needed])), 0
        self.left_out, self.passed = [], 0
        for batch in self.table.batches(both):
            empty = np.zeros(batch.num_rows, bool)
            for name in self.needed:
                column = batch.column(both.index(name))
                if column.null_count or not pa.types.is_integer(column.type):
                    empty |= is_empty(column, self._na)
            self.left_out += (row + np.flatnonzero(empty)).tolist()
            row += batch.num_rows
            self.passed = row
            if empty.any():
                batch = batch.filter(pa.array(~empty))
            yield batch.select(names)

    def place(self, row: int) -> str:
        """Where a row that is kept is in the file."""
        return self.places([row])[0]

    def places(self, rows: Sequence[int]) -> list[str]:
        """The same of several, in rising order."""
        return places_of(self.table, before_gone(self.left_out, rows))


class Without:
    """A table without some rows, that are known by their numbers in it, in rising order."""

    def __init__(self, table: Table, left_out: np.ndarray) -> None:
        self.table, self.left_out = table, left_out
        self.path, self.names, self.schema, self.classes = table.path, table.names, table.schema, table.classes
        self.media = getattr(table, "media", {})

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """The other rows."""
        row = 0
        for batch in self.table.batches(names):
            first, last = np.searchsorted(self.left_out, (row, row + batch.num_rows))
            if first < last:
                keep = np.ones(batch.num_rows, bool)
                keep[self.left_out[first:last] - row] = False
                yield batch.filter(pa.array(keep))
            else:
                yield batch
            row += batch.num_rows

    def place(self, row: int) -> str:
        """Where a row that is left is in the file."""
        return self.places([row])[0]

    def places(self, rows: Sequence[int]) -> list[str]:
        """The same of several, in rising order."""
        return places_of(self.table, before_gone(self.left_out, rows))


def before_gone(gone: Sequence[int] | np.ndarray, rows: Sequence[int]) -> list[int]:
    """The numbers that rows had before others were left out; `gone`: the numbers of these, in rising order."""
    gone = np.asarray(gone, np.int64)
    found: list[int] = (np.asarray(rows) + np.searchsorted(gone - np.arange(len(gone)), rows, side="right")).tolist()
    return found


class Undotted:
    """A table one of whose columns of words is read without the dot behind each."""

    def __init__(self, table: Table, name: str) -> None:
        self.table, self._name = table, name
        self.path, self.names, self.schema, self.classes = table.path, table.names, table.schema, table.classes
        self.place = table.place

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """As of the table, but for that column."""
        for batch in self.table.batches(names):
            if self._name in names:
                at = names.index(self._name)
                bare = pc.replace_substring_regex(batch.column(at), pattern=r"\.\s*$", replacement="")
                batch = batch.set_column(at, batch.schema.field(at), bare)
            yield batch


def dotted_word(table: Table, name: str, known: Collection[str], na: Sequence[str]) -> str:
    """A word of a column that is a known one with a dot behind it, where all its first words that are not known are so."""
    first = next((batch.column(0) for batch in table.batches([name]) if batch.num_rows), None)
    if first is None or first.type != pa.string():
        return ""
    new = [word for word in pc.unique(texts(first, na)).to_pylist() if word and word not in known]
    return new[0] if new and all(word.endswith(".") and word[:-1] in known for word in new) else ""


def is_empty(column: pa.Array, na: Sequence[str]) -> np.ndarray:
    """(n,) bool: where there is nothing."""
    nested = pa.types.is_nested(column.type) or pa.types.is_binary(column.type)
    return pc.is_null(column if nested else texts(column, na)).to_numpy(zero_copy_only=False)


def pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Small batches put together, as those of a wide table hold a few rows each, and every column costs something; large
    ones cut."""
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for whole in batches:
        most = min(PIECE_ROWS, max(FEW_ROWS, PIECE_CELLS // max(whole.num_columns, 1)))
        for batch in (whole.slice(i, most) for i in range(0, whole.num_rows, most)):
            waiting.append(batch)
            rows, size = rows + batch.num_rows, size + batch.nbytes
            if rows >= most or size >= PIECE_BYTES:
                yield _joined(waiting)
                waiting, rows, size = [], 0, 0
    if rows:
        yield _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def whole_split(table: Table, names: list[str], split: str, row: int = 0) -> Iterator[Part]:
    """All rows of a table that is one split, or of a section that begins with that row."""
    for batch in pieces(table.batches(names)):
        yield Part(split, np.arange(row, row + batch.num_rows), batch)
        row += batch.num_rows


def shared_out(table: Table, names: list[str], splitter: Splitter) -> Iterator[Part]:
    """The rows of a table, each in its split; the same whenever it is asked."""
    if splitter.looks:
        columns = list(splitter.columns)
        splitter.look({name: batch.column(i) for i, name in enumerate(columns)} for batch in table.batches(columns))
    if splitter.columns:
        yield from assigned(table, names, splitter)
        return
    waiting: dict[int, pa.RecordBatch] = {}  # first row -> a batch some of whose rows may still come

    def numbered() -> Iterator[dict[str, np.ndarray]]:
        row = 0
        for batch in pieces(table.batches(names)):
            waiting[row] = batch
            yield {"row": np.arange(row, row + batch.num_rows)}
            row += batch.num_rows

    for split, chosen in splitter.share(numbered()):
        rows = chosen["row"]
        first = max(start for start in waiting if start <= rows[0])
        for passed in [start for start in waiting if start < first]:
            del waiting[passed]
        yield _part(split, rows, waiting[first], first)


def assigned(table: Table, names: list[str], splitter: Splitter, row: int = 0) -> Iterator[Part]:
    """The rows of a table, or of a section that begins with that row, by a splitter that has seen all of them."""
    both = list(dict.fromkeys([*names, *splitter.columns]))
    for batch in pieces(table.batches(both)):
        columns = {name: batch.column(both.index(name)) for name in splitter.columns}
        which = splitter.assign(columns or {"row": np.arange(batch.num_rows)}, row)
        for number, split in enumerate(SPLITS):
            if (which == number).any():
                yield _part(split, row + np.flatnonzero(which == number), batch.select(names), row)
        row += batch.num_rows


def _part(split: str, rows: np.ndarray, batch: pa.RecordBatch, first: int) -> Part:
    return Part(split, rows, batch if len(rows) == batch.num_rows else batch.take(pa.array(rows - first)))
