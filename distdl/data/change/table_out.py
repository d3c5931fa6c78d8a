"""Tables written as files: CSV, JSON lines, Parquet, Arrow. A file or folder appears when it is whole."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from distdl.data.draft import Draft
from distdl.data.store import is_remote
from distdl.errors import DistdlError, InputError, did_you_mean
from distdl.files import publish, sync, sync_folder

ENDINGS = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow"}
ENDINGS |= {".ndjson": "jsonl", ".feather": "arrow", ".ipc": "arrow"}
FORMATS = ("csv", "jsonl", "parquet", "arrow")
GROUP_ROWS, GROUP_BYTES = 1 << 16, 32 << 20
"""Of a Parquet row group, which is held until it is full."""
MOST_COLUMNS = 20_000
"""Of a CSV file, whose columns of lists have one for each number."""


def format_of(target: str, asked: str) -> tuple[str, bool]:
    """(format, whether `target` is one file and no folder). InputError: neither its ending nor `format=` says it."""
    ending = Path(target).suffix.lower()
    found = ENDINGS.get(ending, "")
    if asked and asked not in FORMATS:
        raise InputError(f"format={asked}", allowed=", ".join(FORMATS), fix=did_you_mean(asked, FORMATS))
    if found and asked and found != asked:
        raise InputError(f"format={asked}, and {target} ends with {ending}", fix="leave one of the two out")
    if not found and not asked:
        raise InputError(
            f"{target} does not say what is to be written",
            allowed="a file that ends with " + ", ".join(ENDINGS) + "; or a folder with format=" + " or ".join(FORMATS),
        )
    return found or asked, bool(found)


@contextmanager
def published(target: str, overwrite: bool) -> Iterator[Path]:
    """A path beside the target to write a file or a folder to; it takes the target's place in the end. InputError: the
    target is there (unless `overwrite`), is a URI, or nothing can be written there. DistdlError: the disk failed."""
    place = Path(target).absolute()
    check_free(target, overwrite)
    try:
        draft = Draft(place)
    except OSError as error:
        raise InputError(f"cannot write to {target}: {error}") from error
    inside, aside = draft.folder / place.name, draft.folder / "aside"
    try:
        yield inside
        for path in [inside, *inside.rglob("*")] if inside.is_dir() else [inside]:
            sync_folder(path) if path.is_dir() else sync(path)
        check_free(target, overwrite)
        if place.exists():
            os.rename(place, aside)
        publish(inside, place)
    except OSError as error:
        raise DistdlError(f"writing {target} failed, nothing was published: {error}") from error
    finally:
        if aside.exists() and not place.exists():
            os.rename(aside, place)
        draft.remove()


def check_free(target: str, overwrite: bool) -> None:
    """InputError where the target is a URI, or taken by what is not to be replaced."""
    if is_remote(target):
        raise InputError(f"{target} is a URI", allowed="a path of this machine", fix="write it here, and upload it")
    path = Path(target)
    if not path.exists():
        return
    if not overwrite:
        raise InputError(f"{target} already exists", fix="choose another target, or pass --overwrite to replace it")
    if path.is_dir():
        strange = [one.name for one in path.iterdir() if one.is_dir() or one.suffix not in ENDINGS]
        if strange:
            what = f"{target} is not only files of tables, so it is not overwritten: it holds {', '.join(strange[:5])}"
            raise InputError(what, fix="choose another target")


class TableFile:
    """One file of a table: `write` record batches of its schema, then `close`."""

    def __init__(self, path: Path, form: str, schema: pa.Schema):
        self.path, self.form, self.rows = path, form, 0
        self.schema = flat_schema(schema, str(path.name)) if form == "csv" else schema
        self._wide = schema
        path.parent.mkdir(parents=True, exist_ok=True)
        self._waiting: list[pa.RecordBatch] = []
        self._file: Any = None
        if form == "csv":
            self._check_text()
            self._file = path.open("wb")
            self._file.write((csv_line(self.schema.names) + "\n").encode())
        elif form == "parquet":
            self._file = pq.ParquetWriter(str(path), schema, compression="zstd")
        elif form == "arrow":
            self._file = pa.ipc.new_file(str(path), schema)
        else:
            self._file = path.open("w", encoding="utf-8")

    def write(self, batch: pa.RecordBatch) -> None:
        """Rows of the schema that the file was opened with."""
        if not batch.num_rows:
            return
        if self.form == "csv":
            self._write_csv(self._as_csv(batch))
        elif self.form == "jsonl":
            self._file.writelines(lines(batch, self.rows, self.path.name))
        elif self.form == "arrow":
            self._file.write_batch(batch)
        else:
            self._waiting.append(batch)
            if (
                sum(b.num_rows for b in self._waiting) >= GROUP_ROWS
                or sum(b.nbytes for b in self._waiting) >= GROUP_BYTES
            ):
                self._write_group()
        self.rows += batch.num_rows

    def close(self) -> None:
        """What was written is all there is."""
        if self._waiting:
            self._write_group()
        self._file.close()

    def _write_group(self) -> None:
        self._file.write_table(pa.Table.from_batches(self._waiting, self._wide))
        self._waiting = []

    def _write_csv(self, batch: pa.RecordBatch) -> None:
        """Without quotes where no value needs them; Arrow quotes all words or none."""
        try:
            written = _csv(batch, "none" if batch.num_columns > 1 else "needed")
        except pa.ArrowInvalid:
            written = _csv(batch, "needed")
        self._file.write(written)

    def _check_text(self) -> None:
        if len(self.schema.names) > MOST_COLUMNS:
            what = f"{self.path.name} would have {len(self.schema.names):,} columns"
            raise InputError(what, allowed=f"{MOST_COLUMNS:,} of a CSV file", fix="format=parquet, which holds lists")

    def _as_csv(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        columns: list[pa.Array] = []
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            columns += flat(plain_text(column, name, self.rows, self.path.name))
        if len(columns) > 1:
            columns = [_null_where_empty(column) for column in columns]
        else:  # an empty line would be no row: everything is quoted
            columns = [pc.fill_null(pc.cast(columns[0], pa.string()), "")]
        return pa.record_batch(columns, names=self.schema.names)


def _csv(batch: pa.RecordBatch, quotes: str) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(batch, sink, pyarrow.csv.WriteOptions(include_header=False, quoting_style=quotes))
    return sink.getvalue()


def csv_line(values: list[str]) -> str:
    """Some words as a line of a CSV file."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


def _null_where_empty(column: pa.Array) -> pa.Array:
    """NaN and words of no letters say nothing, and are nothing in a CSV file."""
    if pa.types.is_floating(column.type):
        return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if pa.types.is_string(column.type):
        return pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
    if pa.types.is_timestamp(column.type):
        with suppress(pa.ArrowInvalid):  # there are parts of seconds
            return pc.cast(column, pa.timestamp("s", column.type.tz))
    return column


def flat_schema(schema: pa.Schema, where: str) -> pa.Schema:
    """That of a CSV file: `x[0]`, `x[1]` for the numbers of a list of fixed length, text for bytes. InputError: a list
    of any length, a struct, ..."""
    fields = []
    for field in schema:
        kind, names = field.type, [field.name]
        while pa.types.is_fixed_size_list(kind):
            names = [f"{name}[{i}]" for name in names for i in range(kind.list_size)]
            kind = kind.value_type
        if pa.types.is_nested(kind):
            what = f"the column '{field.name}' holds {field.type}, for which {where} has no form"
            raise InputError(what, fix="format=parquet or format=jsonl; or leave it out: drop=" + field.name)
        fields += [pa.field(name, pa.string() if _is_bytes(kind) else kind) for name in names]
    return pa.schema(fields)


def _is_bytes(kind: pa.DataType) -> bool:
    of_bytes = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_large_string)
    return any(test(kind) for test in of_bytes)


def flat(column: pa.Array) -> list[pa.Array]:
    """The columns of `flat_schema` that a column becomes."""
    if not pa.types.is_fixed_size_list(column.type):
        return [column]
    size, inner = column.type.list_size, column.flatten()
    parts = [inner.take(pa.array(np.arange(i, len(inner), size))) for i in range(size)]
    return [one for part in parts for one in flat(part)]


def plain_text(column: pa.Array, name: str, first: int, where: str) -> pa.Array:
    """Bytes as text. InputError names the row whose bytes are none."""
    if not _is_bytes(column.type):
        return column
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        for row, value in enumerate(column.to_pylist(), first):
            try:
                (value or b"").decode("utf-8")
            except UnicodeDecodeError:
                raise InputError(
                    f"{where}, row {row:,}: the column '{name}' holds bytes that are no text",
                    fix=f"format=parquet or format=arrow, which hold bytes; or leave it out: drop={name}",
                ) from None
        raise


def lines(batch: pa.RecordBatch, first: int, where: str) -> Iterator[str]:
    """JSON lines of some rows; NaN and infinity, which JSON does not have, are null."""
    names = batch.schema.names
    columns = [
        [_json(value) for value in plain_text(column, name, first, where).to_pylist()]
        for name, column in zip(names, batch.columns, strict=True)
    ]
    for row in zip(*columns, strict=True):
        yield json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n"


def _json(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_json(one) for one in value]
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, dict):
        return {key: _json(one) for key, one in value.items()}
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
