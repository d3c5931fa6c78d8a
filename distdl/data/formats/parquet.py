"""Parquet files: features and a label or target as in CSV, or all columns as they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from distdl.data.advice import SURE, Advice, Wish, begins_with, table_advice
from distdl.data.formats._tabular import prepare_table
from distdl.data.manifest import ITEM_BYTES, VARIABLE, Column
from distdl.data.raw import Prepared, Rows
from distdl.data.splits import SplitOptions, check_fraction, hold_out
from distdl.errors import InputError

CHUNK_ROWS = 4096


@dataclass(frozen=True)
class Options(SplitOptions):
    """Options of the source `parquet`. Without label, target and features all columns are taken as they are."""

    path: str
    """The file."""
    label: str = ""
    """Column that holds the class: text or whole numbers."""
    target: str = ""
    """Column that holds the number to predict, instead of a label."""
    features: tuple[str, ...] = ()
    """Numeric columns that make up `x`, in this order; without it all columns but the label or target."""
    test_path: str = ""
    """A file of the same columns that becomes the split `test`; then nothing is held out of `path`."""


def prepare(options: Options) -> Prepared:
    """`x` and `label` or `y` as for CSV; or all columns: numbers, lists of one length, text and binary as bytes."""
    if options.label or options.target or options.features:
        return prepare_table(options, ParquetTable)
    check_fraction(options.test_fraction)
    table = ParquetTable(options.path)
    first = next(table.batches(table.names), None)
    if first is None:
        raise InputError(f"{options.path} has no rows")
    columns = {name: _column(table, name, first.column(i)) for i, name in enumerate(table.names)}

    def chunks() -> Iterator[tuple[str, Rows]]:
        yield from hold_out(_as_they_are(table, columns), 0 if options.test_path else options.test_fraction)
        if options.test_path:
            for rows in _as_they_are(ParquetTable(options.test_path), columns):
                yield "test", rows

    return Prepared(columns, chunks())


class ParquetTable:
    """A Parquet file, read a few thousand rows at a time."""

    def __init__(self, path: str):
        self.path = path
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is not a Parquet file that can be read: {error}") from error
        self.names: list[str] = self._file.schema_arrow.names

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """The chosen columns, in the order of `names`."""
        try:
            for batch in self._file.iter_batches(CHUNK_ROWS, columns=names):
                yield batch.select(names)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise InputError(f"{self.path} cannot be read: {error}") from error

    def place(self, row: int) -> str:
        """The row's number from 0."""
        return f"{self.path}, row {row}"


def _column(table: ParquetTable, name: str, values: pa.Array) -> Column:
    """The column type of a Parquet column; lists get the length of the first row."""
    if _is_text(values.type):
        return Column(VARIABLE)
    shape: list[int] = []
    while _is_list(values.type):
        if not len(values) or not values[0].is_valid:
            break
        shape.append(len(values[0].as_py()))
        values = values.flatten()
    dtype = "uint8" if pa.types.is_boolean(values.type) else str(values.type).replace("halffloat", "float16")
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    if dtype not in ITEM_BYTES:
        raise InputError(
            f"the column '{name}' of {table.path} has the type {values.type}",
            allowed="numbers, lists of numbers of one length, text, binary",
            fix="convert it, or choose columns with features= and label=",
        )
    return Column(dtype, tuple(shape))


def _as_they_are(table: ParquetTable, columns: dict[str, Column]) -> Iterator[Rows]:
    row = 0
    for batch in table.batches(list(columns)):
        yield {
            name: _values(table, name, column, batch.column(i), row) for i, (name, column) in enumerate(columns.items())
        }
        row += batch.num_rows


def _values(table: ParquetTable, name: str, column: Column, values: pa.Array, row: int) -> Any:
    """A column of a batch: array (n, *shape) or list of bytes. InputError: an empty value, a list of another length."""
    if values.null_count:
        bad = next(i for i, value in enumerate(values) if not value.is_valid)
        raise InputError(f"the column '{name}' has an empty value", where=table.place(row + bad))
    if column.dtype == VARIABLE:
        return values.cast(pa.large_binary()).to_pylist()
    count, flat = len(values), values
    for size in column.shape:
        lengths = (
            [len(item) if item.is_valid else 0 for item in flat] if not pa.types.is_fixed_size_list(flat.type) else []
        )
        wrong = next((i for i, length in enumerate(lengths) if length != size), None)
        if wrong is not None:
            parents = math.prod(column.shape[: column.shape.index(size)])
            raise InputError(
                f"the column '{name}' has a list of {lengths[wrong]} values, the first has {size}",
                where=table.place(row + wrong // parents),
                fix="pad or cut all rows to one length",
            )
        flat = flat.flatten()
    if flat.null_count:
        raise InputError(f"the column '{name}' has an empty value in a list", where=table.place(row))
    dtype = np.dtype(column.dtype)
    return flat.to_numpy(zero_copy_only=False).astype(dtype, copy=False).reshape(count, *column.shape)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return any(
        test(kind)
        for test in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_fixed_size_binary,
        )
    )


def recognise(path: Path) -> float:
    """By the file's first bytes."""
    return SURE if begins_with(path, b"PAR1") else 0.0


def advise(path: str, wish: Wish) -> Advice:
    """What to predict, for `distdl init`."""
    return table_advice(ParquetTable(path), wish, {"path": path})
