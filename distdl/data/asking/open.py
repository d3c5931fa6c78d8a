"""Which way a file is asked about: as its rows were made for training, by the record in the checkpoint."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from distdl.columns import Column
from distdl.data.asking.data_sets import is_data_set, of_data_set, refuse_other_preparation
from distdl.data.asking.files import of_files, reads_files
from distdl.data.asking.question import Asking, Bad
from distdl.data.asking.series import of_many, of_one_scale, of_series
from distdl.data.asking.tables import of_table
from distdl.data.asking.texts import Sentences, Texts, lines_of, of_texts, sentences_of
from distdl.data.bad_rows import BadRowOptions, BadRows
from distdl.data.prepare import source_module
from distdl.data.recognise import recognise
from distdl.data.table.reader import Table
from distdl.data.text.tokens import Tokenizer
from distdl.errors import InputError


@dataclass(frozen=True)
class Ways:
    """What a checkpoint knows of how its rows were made."""

    asked: Mapping[str, Column]
    """The columns that the model reads."""
    record: Mapping[str, Mapping[str, Any]]
    """Column -> how it came from raw values."""
    reading: Mapping[str, Any] = field(default_factory=dict)
    """Options that say how the raw file was written."""
    family: str = ""
    columns: Mapping[str, Column] = field(default_factory=dict)
    """All that the family reads, answers among them."""

    @property
    def by_record(self) -> dict[str, Mapping[str, Any]]:
        """Of the columns that are read."""
        return {name: self.record[name] for name in self.asked if name in self.record}

    @property
    def of_tables(self) -> bool:
        named = "name" in self.by_record.get("image", {})  # pictures that a column of the table names
        return self.record.get("x", {}).get("kind") == "features" and ("x" in self.asked or named)

    @property
    def of_series(self) -> bool:
        """Whether it is series that go on, whose values are restored by the record alone."""
        return set(self.asked) == {"x"} and "label" not in self.record and of_one_scale(self.record.get("x", {}))

    @property
    def of_files(self) -> bool:
        """Whether raw files can be made into what the model reads."""
        return self.of_tables or self.of_series or reads_files(self.by_record) or self.lines is not None

    @cached_property
    def texts(self) -> Texts | None:
        """Of a model that reads tokens of text."""
        if "tokens" not in self.asked:
            return None
        high = self.asked["tokens"].high
        texts = Texts(self.record, 0 if high is None else int(high) + 1)
        return texts if texts.tokenizer else None

    @property
    def lines(self) -> Texts | Sentences | None:
        """What makes lines of text into what the model reads."""
        return self.texts or sentences_of({name: self.record.get(name, {}) for name in self.asked})

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Of a model that reads tokens of text."""
        return self.texts.tokenizer if self.texts else None


@dataclass(frozen=True)
class How:
    """What was said of the files that are asked about."""

    source: str = ""
    """The source that reads a table; '': told from the file."""
    split: str = "test"
    """Of data sets that are prepared."""
    keep: Sequence[str] = ()
    """Columns of a table that go along; `*`: all."""
    field: str = "text"
    """Of JSON lines that hold texts."""
    answers: bool = False
    """Label or target, too, where they are there."""


def questions(ways: Ways, path: str, how: How) -> Asking:
    """The rows of a file, a folder or a data set. InputError: this model cannot be asked about such a thing."""
    if is_data_set(path):
        columns = {**ways.columns, **ways.asked} if how.answers else ways.asked
        refuse_other_preparation(ways.record, path, list(columns))
        return of_data_set(path, how.split, columns, how.keep)
    if ways.of_tables:
        return _of_table(ways, path, how)
    if reads_files(ways.by_record):
        return of_files(ways.by_record, path, ways.record.get("label") if how.answers else None)
    if ways.of_series:
        return of_series(ways.record["x"], path)
    if (read := ways.lines) is not None:
        return of_texts(read, lines_of(path, how.field))
    what = f"how {path} becomes what the family {ways.family} reads ({', '.join(ways.asked)}) is not in the checkpoint"
    fix = "prepare it into a data set (distdl data prepare), and give that folder"
    raise InputError(what, fix=fix)


def _of_table(ways: Ways, path: str, how: How) -> Asking:
    """The rows of a table. Lines that are no rows (too few values, no JSON) are left out, and told of at the end."""
    bad = BadRows(BadRowOptions(bad_rows="set_aside", bad_rows_at_most=1))
    asking = of_table(ways.record, open_table(path, ways, how.source, bad), how.keep, how.answers)

    def portions() -> Iterator[tuple[int, Any]]:
        yield from asking.portions
        lines = [json.loads(line) for line in bad.lines().splitlines()]
        told = [Bad(f"{line.get('file', path)}:{line.get('line', '')}".rstrip(":"), line["what"]) for line in lines]
        if told:
            yield 0, told

    return replace(asking, portions=portions())


def open_table(path: str, ways: Ways, source: str = "", bad: BadRows | None = None) -> Table:
    """A table, read as the one that was trained on was written. InputError: it is none."""
    name = source or recognise(path)
    module = source_module(name)
    if not hasattr(module, "open_table"):
        what = f"{path} is read by the source {name}, which gives no table, and the model was trained on one"
        raise InputError(what, fix="--source csv, jsonl, parquet, arrow or arff")
    known = {key: value for key, value in ways.reading.items() if key in module.Options.__dataclass_fields__}
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
    table: Table = module.open_table(path, module.Options(path=path, **known), bad)
    return table


@contextlib.contextmanager
def spooled(ways: Ways, source: str = "") -> Iterator[str]:
    """Standard input as a file, whose ending says what it holds: it may be read twice, and held by no memory."""
    begins: bytes = getattr(sys.stdin.buffer, "peek", lambda n: b"")(1)  # nothing is taken away
    ending = {"csv": ".csv", "jsonl": ".jsonl", "parquet": ".parquet", "arrow": ".arrow", "arff": ".arff"}.get(source)
    if ending is None:
        of_tsf = set(ways.asked) == {"x"} and of_many(ways.record.get("x", {}))
        ending = ".tsf" if of_tsf else ".jsonl" if begins[:1] == b"{" else ".csv" if ways.of_tables else ".txt"
    with tempfile.TemporaryDirectory(prefix="distdl-stdin-") as folder:
        path = Path(folder) / f"stdin{ending}"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield str(path)


class Rows:
    """Rows in memory as a table."""

    def __init__(self, table: pa.Table) -> None:
        self.path, self.names, self.schema = "the rows", table.column_names, table.schema
        self.classes: dict[str, list[str]] = {}
        self._table = table

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        yield from self._table.select(names).combine_chunks().to_batches()

    def place(self, row: int) -> str:
        return f"row {row}"


def rows_as_table(rows: Any) -> Table:
    """A list of mappings, a mapping of columns, or a table of pandas or Arrow. InputError: something else."""
    try:
        if isinstance(rows, pa.Table):
            return Rows(rows)
        if isinstance(rows, Mapping):
            return Rows(pa.table(dict(rows)))
        if hasattr(rows, "columns"):
            return Rows(pa.Table.from_pandas(rows, preserve_index=False))
        return Rows(pa.Table.from_pylist(list(rows)))
    except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
        what = f"these rows make no table: {error}"
        raise InputError(what, allowed="a list of mappings, a mapping of columns, a DataFrame, or a path") from None
