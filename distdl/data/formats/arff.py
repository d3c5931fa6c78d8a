"""Weka's ARFF (.gz too) as a table: numbers, nominal values, strings and dates, dense or sparse (`series/arff.py`).

Series in ARFF (a relational attribute, as the UEA archive has them) are read by the source `ts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from distdl.data.advice import Advice, Wish, table_advice
from distdl.data.bad_rows import BadRows
from distdl.data.raw import Prepared
from distdl.data.series.arff import ArffFile, Attribute, is_missing
from distdl.data.series.lines import number
from distdl.data.series.pairs import find_pair
from distdl.data.table.options import TableOptions
from distdl.data.table.prepare import prepare_table
from distdl.data.table.reader import Counted, Table
from distdl.errors import InputError

CHUNK_VALUES = 1 << 18
NOT_PLAIN = ("'", '"', "{", "\\", "\t", "\r", "\0")
"""Signs of quoted and of sparse rows, and of what CSV has a meaning of its own for."""
TYPES = {"numeric": pa.float64(), "nominal": pa.string(), "string": pa.string(), "date": pa.timestamp("ms")}


@dataclass(frozen=True)
class Options(TableOptions):
    """Options of the source `arff`."""

    path: str
    """The file; `Name_TEST.arff` beside `Name_TRAIN.arff` is the split `test`."""
    test_path: str = field(default="", kw_only=True)
    """A file of the same attributes that becomes the split `test`; then nothing is held out of `path`."""


def prepare(options: Options) -> Prepared:
    """`x` float32 (F,), and `label` int64 or `y` float32."""
    train, test, notes = find_pair(options.path, options.test_path, (".arff",))
    bad = BadRows(options)
    others: dict[str, Table] = {"test": ArffTable(test, bad)} if test else {}
    prepared = prepare_table(options, ArffTable(train, bad), others, bad)
    notes += prepared.info.get("notes", [])
    return replace(prepared, info={**prepared.info, "notes": notes})


def open_table(path: str, options: Options, bad: BadRows | None = None) -> Table:
    """The table of a file."""
    return ArffTable(path, bad)


class ArffTable:
    """An ARFF file as a table."""

    def __init__(self, path: str, bad: BadRows | None = None) -> None:
        self.path = path
        self._file = ArffFile(path)
        self._counted = Counted()
        self._left_out = set(self._bad_lines(bad)) if bad and bad.wanted else set[int]()
        if bags := [a.name for a in self._file.attributes if a.kind == "relational"]:
            raise InputError(
                f"the attribute {bags[0]} of {path} holds tables, not values", fix="as series: distdl data prepare ts"
            )
        self.schema = pa.schema({a.name: TYPES[a.kind] for a in self._file.attributes})
        self.names: list[str] = self.schema.names
        self.classes: dict[str, list[str]] = {}
        """None: nominal values come as text, in the one order of classes."""

    def _lines(self) -> Iterator[tuple[int, str]]:
        return ((n, line) for n, line in self._file.lines() if n not in self._left_out)

    def _bad_lines(self, bad: BadRows) -> Iterator[int]:
        """The lines that are no rows of these attributes; each is set aside."""
        for n, line in self._file.lines():
            where = f"{self.path}:{n}"
            row: list[str] = []
            with bad.row(where, line, reason="damaged line"):
                row = self._file.row(line, where)
            for value, attribute in zip(row, self._file.attributes):
                try:
                    if not is_missing(value):
                        _value(value, attribute, where)
                except InputError as error:
                    bad.refused(where, error, line, f"no {attribute.kind} value", attribute.name)
                    break
            if where in bad:
                yield n

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """The chosen columns; None is missing. InputError names line and value of what is not of its type."""
        places = [self.names.index(name) for name in names]
        lines, at_once = self._lines(), max(1, CHUNK_VALUES // len(self.names))
        while some := list(islice(lines, at_once)):
            yield self._plain(some, places) or self._careful(some, places)

    def _plain(self, lines: list[tuple[int, str]], places: list[int]) -> pa.RecordBatch | None:
        """Some rows by Arrow's reader of CSV, to the same bits. None: something stands there that it reads otherwise, or
        that is to be refused."""
        text = "\n".join(line for _, line in lines)
        attributes = [self._file.attributes[i] for i in places]
        if any(sign in text for sign in NOT_PLAIN) or any(a.kind == "date" for a in attributes):
            return None
        every = [str(i) for i in range(len(self.names))]
        kinds = {every[i]: pa.float64() if a.kind == "numeric" else pa.string() for i, a in zip(places, attributes)}
        content = text.encode()
        try:
            table = pyarrow.csv.read_csv(
                pa.BufferReader(content),
                pyarrow.csv.ReadOptions(use_threads=False, block_size=len(content) + 1, column_names=every),
                pyarrow.csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
                pyarrow.csv.ConvertOptions(
                    column_types=kinds, include_columns=list(kinds), null_values=["?"], strings_can_be_null=True
                ),
            )
        except pa.ArrowInvalid:
            return None
        found = [_as_declared(table[every[i]].combine_chunks(), a) for i, a in zip(places, attributes)]
        if len(table) != len(lines) or any(column is None for column in found):
            return None
        return pa.record_batch(found, schema=pa.schema([self.schema.field(i) for i in places]))

    def _careful(self, lines: list[tuple[int, str]], places: list[int]) -> pa.RecordBatch:
        rows = [self._file.row(line, f"{self.path}:{n}") for n, line in lines]
        numbers = [n for n, _ in lines]
        fields = [self.schema.field(i) for i in places]
        columns = [self._column([row[i] for row in rows], self._file.attributes[i], numbers) for i in places]
        return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, fields)], schema=pa.schema(fields))

    def _column(self, values: list[str], attribute: Attribute, lines: list[int]) -> Any:
        if attribute.kind == "numeric":
            try:  # the common case, several times as fast
                found = np.array([float(value) for value in values])
                if np.isfinite(found).all() and not any("_" in value for value in values):
                    return found
            except ValueError:
                pass
        return [
            None if is_missing(value) else _value(value, attribute, f"{self.path}:{n}")
            for value, n in zip(values, lines)
        ]

    def place(self, row: int) -> str:
        """`file:line`, found by reading again: blank lines and comments count."""
        return self.places([row])[0]

    def places(self, rows: Sequence[int]) -> list[str]:
        """The same of several rows, in rising order."""
        return self._counted.places(rows, lambda: (f"{self.path}:{n}" for n, _ in self._lines()), self.path)


def _as_declared(values: pa.Array, attribute: Attribute) -> pa.Array | None:
    """None: a number is not finite, or a nominal value is none of those declared."""
    if attribute.kind == "numeric":
        return values if pc.all(pc.is_finite(values)).as_py() in (True, None) else None
    trimmed = pc.utf8_trim_whitespace(values)
    trimmed = pc.if_else(pc.equal(trimmed, "?"), pa.scalar(None, pa.string()), trimmed)
    if attribute.kind == "string":
        return trimmed
    known = pc.is_in(trimmed, value_set=pa.array([*attribute.values, None], pa.string()))
    return trimmed if pc.all(known).as_py() in (True, None) else None


def _value(text: str, attribute: Attribute, where: str) -> Any:
    """A value of its type."""
    allowed = ""
    if attribute.kind == "string":
        return str(text)
    if attribute.kind == "nominal":
        if text in attribute.values:
            return str(text)
        allowed = ", ".join(attribute.values[:20])
    elif attribute.kind == "numeric":
        found = number(text)
        if abs(found) < float("inf"):
            return found
        allowed = "a finite number, or ? for a missing one"
    else:
        try:
            return datetime.strptime(text, attribute.form)
        except ValueError:
            allowed = f"a date as {datetime(2024, 12, 31, 23, 59, 58).strftime(attribute.form)}"
    raise InputError(f"the {attribute.kind} attribute {attribute.name} is {text!r:.60}", where=where, allowed=allowed)


ENDINGS = (".arff",)


def advise(path: str, wish: Wish) -> Advice:
    """What to predict, for `distdl init`."""
    return table_advice(ArffTable(find_pair(path, "", ENDINGS)[0]), wish, {"path": path})
