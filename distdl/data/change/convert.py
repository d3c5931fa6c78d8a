"""What was prepared as files that any program reads, in the units and words of the raw file; and one format of tables as
another.

A data set with several splits becomes a file for each, or one file whose column `split` says them: `split_column=split`
reads it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distdl.data.change.origin import Stored, is_dataset, stored
from distdl.data.change.table_in import READING, open_table, typed
from distdl.data.change.table_out import TableFile, check_free, format_of, published
from distdl.data.manifest import VARIABLE, Column
from distdl.data.preparation import record_of
from distdl.data.prepare import parsed_options, sigterm_cleans_up
from distdl.data.progress import Follow, Progress
from distdl.data.raw import Rows
from distdl.data.read import stored_rows
from distdl.data.split_rules import SPLITS
from distdl.data.store import shown
from distdl.data.table.decode import columns_back, lost, numbers_back, ways_back
from distdl.data.table.reader import Table
from distdl.errors import InputError, did_you_mean

SPLIT = "split"
UNDONE = ("features", "class", "number")
"""Kinds of preparation that have a way back."""


@dataclass(frozen=True)
class Options:
    """How something is converted."""

    format: str = ""
    """csv, jsonl, parquet or arrow, where TARGET is a folder; a file says it by its ending."""
    split: str = ""
    """The split of a data set that is written alone."""
    back: bool = True
    """Whether values of a data set go back to the units and words of its raw file; `no`: as they are stored."""
    drop: tuple[str, ...] = ()
    """Columns that are left out."""


def convert(
    source: str, target: str, given: Mapping[str, Any], overwrite: bool = False, *, follow: Follow | None = None
) -> tuple[dict[str, int], list[str]]:
    """Writes the data set or table at `source` to the file or folder `target`. Returns the rows of each file, and what a
    person should know. InputError: options or columns that the format has no place for, or a target that exists (unless
    `overwrite`)."""
    reading = {key: value for key, value in given.items() if key in READING}
    options: Options = parsed_options(
        Options, "distdl data convert", {key: value for key, value in given.items() if key not in READING}
    )
    form, one_file = format_of(target, options.format)
    check_free(target, overwrite)
    if is_dataset(source):
        if reading:
            raise InputError(f"{next(iter(reading))}= says how a CSV file is read, and {shown(source)} is a data set")
        parts: _Parts = _OfDataset(stored(source), options, one_file)
    else:
        parts = _OfTable(open_table(source, reading), options, form)
    progress = Progress(f"{shown(source)} to {target}", {"path": source})
    progress.total = parts.total
    with (
        sigterm_cleans_up(target),
        follow(progress) if follow else nullcontext(),
        published(target, overwrite) as draft,
    ):
        rows = _written(parts, draft, form, one_file, progress)
    return rows, parts.notes


class _Parts:
    """Record batches, each of a part that is a file of its own unless all go to one."""

    schema: pa.Schema
    total: int | None = None
    notes: list[str]

    def batches(self) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Name of the part, and rows of it."""
        raise NotImplementedError


def _written(parts: _Parts, draft: Path, form: str, one_file: bool, progress: Progress) -> dict[str, int]:
    files: dict[str, TableFile] = {}
    try:
        for part, batch in parts.batches():
            name = draft.name if one_file else f"{part}.{form}"
            if name not in files:
                files[name] = TableFile(draft if one_file else draft / name, form, parts.schema)
            files[name].write(batch)
            progress.rows += batch.num_rows
    finally:
        for file in files.values():
            file.close()
    if not files:
        raise InputError("there are no rows to write")
    return {name: file.rows for name, file in files.items()}


class _OfTable(_Parts):
    """A table in another format."""

    def __init__(self, table: Table, options: Options, form: str):
        if options.split or not options.back:
            raise InputError(f"{table.path} is a table, and split= and back= are of a data set")
        self.table = table if form == "csv" else typed(table)
        unknown = [name for name in options.drop if name and name not in table.names]
        if unknown:
            fix = did_you_mean(unknown[0], table.names)
            raise InputError(f"{table.path} has no column '{unknown[0]}', which drop= names", fix=fix)
        self.names = [name for name in table.names if name not in options.drop]
        kinds = {name: self.table.schema.field(name).type for name in self.names}
        self.schema = pa.schema({n: pa.string() if n in table.classes else kind for n, kind in kinds.items()})
        self.notes = [*getattr(self.table, "notes", [])]
        if self.table is not table:
            self.notes = [*getattr(table, "notes", []), *self.notes]

    def batches(self) -> Iterator[tuple[str, pa.RecordBatch]]:
        for batch in self.table.batches(self.names):
            columns = [
                _named(column, self.table.classes[name]) if name in self.table.classes else column
                for name, column in zip(self.names, batch.columns, strict=True)
            ]
            yield "table", pa.record_batch(columns, schema=self.schema)


def _named(numbers: pa.Array, names: list[str]) -> pa.Array:
    if pa.types.is_string(numbers.type):
        return numbers
    return pa.array([None if number is None else names[number] for number in numbers.to_pylist()], pa.string())


class _OfDataset(_Parts):
    """A data set, whose values go back to what they were in the raw file."""

    def __init__(self, old: Stored, options: Options, one_file: bool):
        self.old, self.back = old, options.back
        known = old.manifest.splits
        if options.split and options.split not in known:
            fix = did_you_mean(options.split, known)
            raise InputError(f"{old.name} has no split '{options.split}'", fix=fix)
        every = [*(name for name in SPLITS if name in known), *sorted(set(known) - set(SPLITS))]
        self.splits = [options.split] if options.split else every
        self.total = sum(known[name].rows for name in self.splits)
        self.told = one_file and len(self.splits) > 1
        self.record = record_of(old.manifest)["columns"] if options.back else {}
        self.dropped = set(options.drop)
        self.notes: list[str] = []
        self.schema = pa.schema(self._fields())
        unknown = self.dropped - self.all_names
        if unknown:
            fix = did_you_mean(sorted(unknown)[0], self.all_names)
            raise InputError(f"{old.name} has no column '{sorted(unknown)[0]}', which drop= names", fix=fix)
        self._tell()

    def _fields(self) -> list[pa.Field]:
        fields: list[pa.Field] = []
        for name, column in self.old.manifest.columns.items():
            record = self._undone(name, column)
            if record and record["kind"] == "features":
                fields += [pa.field(way.name, way.type) for way in ways_back(record)]
            elif record:
                kind = pa.string() if record["kind"] == "class" else pa.float64()
                fields.append(pa.field(record.get("name", name), kind))
            else:
                fields.append(pa.field(name, _type(column)))
        if self.told:
            fields.append(pa.field(SPLIT, pa.string()))
        self.all_names = {field.name for field in fields}
        fields = [field for field in fields if field.name not in self.dropped]
        names = [field.name for field in fields]
        if double := sorted({name for name in names if names.count(name) > 1}):
            fix = f"drop={double[0]}; back=no; or, where that is the split, a folder: one file for each"
            raise InputError(f"two columns would be called '{double[0]}'", fix=fix)
        return fields

    def _undone(self, name: str, column: Column) -> Mapping[str, Any] | None:
        record = self.record.get(name)
        if record is None or record["kind"] not in UNDONE or column.dtype == VARIABLE:
            return None
        if record["kind"] != "features" and column.shape:
            return None  # a mask of classes, a window of numbers: as it is stored
        return record if record["kind"] != "number" or "scale" in record else None

    def _tell(self) -> None:
        kept = [
            f"'{name}' ({record['kind']}) is written as it is stored"
            for name, record in self.record.items()
            if name in self.old.manifest.columns and self._undone(name, self.old.manifest.columns[name]) is None
        ]
        told = [line for record in self.record.values() if record["kind"] == "features" for line in lost(record)]
        gone = [row["column"] for row in self.old.manifest.info.get("kinds", []) if row["becomes"].startswith(LEFT_OUT)]
        if gone and self.back:
            told.append(f"left out when it was prepared, so not here: {', '.join(gone)}")
        self.notes = [*kept, *told]

    def batches(self) -> Iterator[tuple[str, pa.RecordBatch]]:
        for split in self.splits:
            for rows in stored_rows(self.old.path, self.old.manifest, split):
                yield split, self._batch(split, rows)

    def _batch(self, split: str, rows: Rows) -> pa.RecordBatch:
        found: dict[str, pa.Array] = {}
        for name, column in self.old.manifest.columns.items():
            record, values = self._undone(name, column), rows[name]
            if record is None:
                found[name] = _array(values, column)
            elif record["kind"] == "features":
                found.update(columns_back(record, values))
            elif record["kind"] == "class":
                found[record.get("name", name)] = _classes(values, record["classes"], self.old.name, name)
            else:
                found[record.get("name", name)] = pa.array(numbers_back(values, record["scale"]))
        if self.told:
            found[SPLIT] = pa.array([split] * len(next(iter(rows.values()))), pa.string())
        return pa.record_batch([found[name] for name in self.schema.names], schema=self.schema)


LEFT_OUT = "left out"


def _classes(values: np.ndarray, names: list[str], where: str, column: str) -> pa.Array:
    if (wrong := values >= len(names)).any():
        row = int(wrong.argmax())
        what = f"the column '{column}' of {where} has the class {values[row]}, and {len(names)} have names"
        raise InputError(what, fix="back=no writes the numbers")
    words = pa.array(names, pa.string())
    return words.take(pa.array(values, pa.int64(), mask=values < 0))


def _type(column: Column) -> pa.DataType:
    """Lists within lists of fixed length, which every reader knows."""
    if column.dtype == VARIABLE:
        return pa.large_binary()
    kind = pa.from_numpy_dtype(np.dtype(column.dtype))
    for size in reversed(column.shape):
        kind = pa.list_(kind, size)
    return kind


def _array(values: Any, column: Column) -> pa.Array:
    if column.dtype == VARIABLE:
        return pa.array(values, pa.large_binary())
    found = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(column.shape):
        found = pa.FixedSizeListArray.from_arrays(found, size)
    return found
