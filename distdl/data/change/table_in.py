"""Files that are tables, opened by what they are; and what the words of a CSV file are, for a file whose columns have
types."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from distdl.data.formats import arff, csv
from distdl.data.inputs import plain_path
from distdl.data.prepare import parsed_options
from distdl.data.recognise import recognise
from distdl.data.store import is_remote, shown
from distdl.data.table.arrow_table import ENDINGS as ARROW_ENDINGS
from distdl.data.table.arrow_table import open_arrow
from distdl.data.table.files import open_files
from distdl.data.table.json_table import ENDINGS as JSON_ENDINGS
from distdl.data.table.json_table import JsonTable
from distdl.data.table.parquet_table import open_parquet
from distdl.data.table.reader import Table
from distdl.data.table.values import NA
from distdl.errors import InputError

OPEN: dict[str, Callable[[str], Table]] = {
    "parquet": open_parquet,
    "arrow": open_arrow,
    "jsonl": lambda path: open_files(path, JSON_ENDINGS, JsonTable),
    "arff": arff.ArffTable,
}
"""Format -> what opens it; CSV has options."""
READING = ("names", "header", "delimiter", "encoding", "decimal", "thousands")
"""The options of how a CSV file is read."""


def kind_of(path: str) -> str:
    """The format of a table. InputError: it is none, or there is no such file."""
    if is_remote(path):
        name = plain_path(path).lower()
        by_ending = {"parquet": (".parquet", ".pq"), "arrow": ARROW_ENDINGS, "jsonl": JSON_ENDINGS, "arff": (".arff",)}
        return next((kind for kind, endings in by_ending.items() if name.endswith(endings)), "csv")
    pattern = "*" in path and not Path(path).exists()
    found = recognise(_first(path)) if pattern else recognise(path)
    if found not in (*OPEN, "csv"):
        raise InputError(
            f"{path} is read as {found}, which is no table",
            allowed="csv, jsonl, parquet, arrow, arff; or a data set",
            fix=f"prepare it, then take the data set: distdl data prepare {found} TARGET path={path}",
        )
    return found


def _first(pattern: str) -> str:
    import glob

    found = sorted(glob.glob(pattern, recursive=True))
    if not found:
        raise InputError(f"no file fits the pattern {pattern}", fix="check the path")
    return found[0]


def open_table(path: str, told: Mapping[str, Any]) -> Table:
    """The table of a file, a folder of files or a pattern. `told`: how a CSV file is read. InputError."""
    kind = kind_of(path)
    if kind == "csv":
        options = parsed_options(csv.Options, "a CSV file", {**told, "path": path})
        return csv.open_table(path, options)
    if told:
        raise InputError(f"{next(iter(told))}= says how a CSV file is read, and {shown(path)} is {kind}")
    return OPEN[kind](path)


class Typed:
    """A table of words whose columns have the types that all their words fit: whole numbers, numbers, dates. Its words for
    nothing are null in a column of numbers or dates, and words in a column of words. `notes` says what that changes."""

    def __init__(self, table: Table):
        self.table, self.path, self.names = table, table.path, table.names
        self.classes, self.place = table.classes, table.place
        fits: dict[str, list[pa.DataType]] = {name: list(TYPES) for name in self.names}
        words: dict[str, set[str]] = {name: set() for name in self.names}
        filled: set[str] = set()
        for batch in table.batches(self.names):
            for name, column in zip(self.names, batch.columns, strict=True):
                value, gone = _without_nothing(column)
                words[name] |= gone
                if value.null_count < len(value):
                    filled.add(name)
                fits[name] = [kind for kind in fits[name] if _cast(value, kind) is not None]
        self.schema = pa.schema(
            {name: fits[name][0] if name in filled and fits[name] else pa.string() for name in self.names}
        )
        nothing = {name: words[name] - {""} for name in self.names if self.schema.field(name).type != pa.string()}
        self.notes = [
            f"{self.path}: {', '.join(map(repr, sorted(some)))} in the column '{name}' of numbers or dates is empty now"
            for name, some in nothing.items()
            if some
        ]

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """As of the table, in these types."""
        schema = pa.schema([self.schema.field(name) for name in names])
        for batch in self.table.batches(names):
            columns = []
            for field, column in zip(schema, batch.columns, strict=True):
                kept = column if field.type == pa.string() else _cast(_without_nothing(column)[0], field.type)
                assert kept is not None
                columns.append(kept)
            yield pa.record_batch(columns, schema=schema)


WHOLE_DIGITS, REAL_DIGITS = 15, 17
"""Of numbers that float64 keeps."""
TYPES = (pa.int64(), pa.float64(), pa.date32(), pa.timestamp("s"))


def typed(table: Table) -> Table:
    """The same with types, where it is one of words alone."""
    return Typed(table) if all(field.type == pa.string() for field in table.schema) else table


def _without_nothing(column: pa.Array) -> tuple[pa.Array, set[str]]:
    """Words without blanks around them, null where they mean nothing; and which words these were."""
    trimmed = pc.utf8_trim_whitespace(column)
    nothing = pc.is_in(trimmed, value_set=pa.array(NA, pa.string()))
    gone = set(trimmed.filter(nothing).unique().to_pylist()) if pc.any(nothing).as_py() else set()
    return pc.if_else(nothing, pa.scalar(None, pa.string()), trimmed), gone


def _too_long(words: pa.Array) -> pa.Array:
    """Which words have more digits than float64 keeps: ids, above all."""
    whole = pc.match_substring_regex(words, r"^-?\d+$")
    digits = pc.replace_substring_regex(pc.replace_substring_regex(words, "[eE].*$", ""), r"\D", "")
    count = pc.utf8_length(pc.replace_substring_regex(digits, "^0+", ""))
    return pc.greater(count, pc.if_else(whole, WHOLE_DIGITS, REAL_DIGITS))


def _cast(words: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """The words in a type that says the same; None: it does not. 007 and +1 are no numbers, as they would not come back."""
    try:
        values = pc.cast(words, kind)
    except pa.ArrowInvalid:
        return None
    if kind == pa.int64():
        return values if pc.all(pc.equal(pc.cast(values, pa.string()), words)).as_py() is not False else None
    if kind == pa.float64():
        odd = pc.match_substring_regex(words, r"^\+|^-?0\d|[xXnN_]")
        return values if pc.any(pc.or_(odd, _too_long(words))).as_py() is not True else None
    return values
