"""Where answers are written: CSV, JSON lines or Parquet, a row for each that was asked about, in their order."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distdl.data.asking.question import Question
from distdl.data.asking.told import in_a_cell, plain
from distdl.errors import InputError

FORMATS = ("csv", "jsonl", "parquet")


class Writer(Protocol):
    """Takes columns of equal length."""

    def write(self, columns: Mapping[str, pa.Array]) -> None: ...
    def close(self) -> None: ...


def format_of(out: str, asked: str = "") -> str:
    """The format of a file, by its ending where it was not asked for. InputError: there is none such."""
    found = asked or Path(out).suffix.lower().removeprefix(".") or "csv"
    found = {"ndjson": "jsonl", "pq": "parquet"}.get(found, found) if out != "-" or asked else "csv"
    if found not in FORMATS:
        raise InputError(f"answers are not written as '{found}'", where=out, allowed=", ".join(FORMATS))
    if found == "parquet" and out == "-":
        raise InputError("Parquet is not written to the terminal", fix="--out FILE.parquet")
    return found


@contextlib.contextmanager
def writing(out: str, form: str, overwrite: bool = False) -> Iterator[Writer]:
    """Writes a file, which is there when it is whole; `-`: to stdout. InputError: it is there already, or cannot be."""
    if out == "-":
        yield _Csv(sys.stdout) if form == "csv" else _JsonLines(sys.stdout)
        sys.stdout.flush()
        return
    path = Path(out)
    if path.exists() and not overwrite:
        raise InputError(f"{out} is there already", fix="--overwrite replaces it")
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if form == "parquet":
            writer: Writer = _Parquet(draft)
        else:
            file = draft.open("w", encoding="utf-8", newline="")
            writer = _Csv(file) if form == "csv" else _JsonLines(file)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}", fix="choose another --out") from None
    try:
        yield writer
        writer.close()
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def columns_of(answered: Iterable[tuple[Question, Mapping[str, pa.Array]]]) -> Iterator[dict[str, pa.Array]]:
    """What is to be written of each question: which rows it is about, and the answers to those that could be read. Until
    one is answered nobody knows the answers' columns: questions of bad rows alone wait for it."""
    waiting: list[dict[str, pa.Array]] = []
    empty: dict[str, pa.Array] = {}
    for question, found in answered:
        if not len(question.real):
            continue  # lines that are no rows
        about = {name: pa.array(values) for name, values in question.about.items()}
        if question.real.any():
            columns = {f"predicted {name}" if name in about else name: column for name, column in found.items()}
            empty = {name: column.slice(0, 0) for name, column in columns.items()}
            yield from (_unanswered(earlier, empty) for earlier in waiting)
            waiting = []
            yield {**about, **widened(columns, question.real)}
        elif empty:
            yield _unanswered(about, empty)
        else:
            waiting.append(about)
    yield from waiting


def _unanswered(about: Mapping[str, pa.Array], empty: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
    rows = len(next(iter(about.values())))
    return {**about, **{name: pa.nulls(rows, column.type) for name, column in empty.items()}}


def widened(columns: Mapping[str, pa.Array], real: np.ndarray) -> dict[str, pa.Array]:
    """Columns of the rows that were answered, with nothing in the places of the others."""
    if real.all():
        return dict(columns)
    places = np.cumsum(real) - 1
    take = pa.array(places, pa.int64(), mask=~real)
    return {name: column.take(take) for name, column in columns.items()}


class _Csv:
    def __init__(self, file: IO[str]) -> None:
        self.file, self.names = file, [""]
        self.rows = csv.writer(file, lineterminator="\n")

    def write(self, columns: Mapping[str, pa.Array]) -> None:
        columns = dict(_flat(columns))
        if self.names == [""]:
            self.names = list(columns)
            self.rows.writerow(self.names)
        self.rows.writerows(
            [in_a_cell(value) for value in row] for row in zip(*(plain(c) for c in columns.values()), strict=True)
        )

    def close(self) -> None:
        self.file.close()


def _flat(columns: Mapping[str, pa.Array]) -> Iterator[tuple[str, pa.Array]]:
    """With a column for each value of lists of one length."""
    for name, column in columns.items():
        if pa.types.is_fixed_size_list(column.type):
            size = column.type.list_size
            whole = pa.array(np.arange(len(column)), pa.int64(), mask=~np.asarray(column.is_valid()))
            values = column.drop_null().flatten()
            order = np.cumsum(np.asarray(column.is_valid())) - 1
            for i in range(size):
                at = pa.array(order * size + i, pa.int64(), mask=np.asarray(whole.is_null()))
                yield f"{name}[{i}]", values.take(at)
        else:
            yield name, column


class _JsonLines:
    def __init__(self, file: IO[str]) -> None:
        self.file = file

    def write(self, columns: Mapping[str, pa.Array]) -> None:
        names = list(columns)
        for row in zip(*(plain(column) for column in columns.values()), strict=True):
            self.file.write(json.dumps(dict(zip(names, row)), ensure_ascii=False, default=str) + "\n")

    def close(self) -> None:
        self.file.close()


class _Parquet:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: pq.ParquetWriter | None = None
        self.schema: pa.Schema | None = None

    def write(self, columns: Mapping[str, pa.Array]) -> None:
        table = pa.table(dict(columns))
        if self.writer is None:
            self.schema = table.schema
            self.writer = pq.ParquetWriter(self.path, table.schema)
        self.writer.write_table(table.cast(self.schema))

    def close(self) -> None:
        if self.writer is None:
            pq.write_table(pa.table({}), self.path)
        else:
            self.writer.close()
