"""JSON lines (.gz too): one object a line, as a table of its fields, as numbers and lists of one length, or as a text.

With a label, a target or features it is a table. Without one every field becomes a column of numbers as they are, or the
field text= is packed as bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distdl.data.advice import NAMED, Advice, Wish, table_advice
from distdl.data.bad_rows import BadRows
from distdl.data.inputs import check_not_the_same, find_files
from distdl.data.manifest import Column
from distdl.data.raw import BYTE_INFO, Prepared, Rows, pack_bytes, token_columns
from distdl.data.splits import Splitter
from distdl.data.table.as_is import new_names
from distdl.data.table.files import open_files
from distdl.data.table.json_table import ENDINGS, JsonTable, Unforeseen
from distdl.data.table.options import TableOptions
from distdl.data.table.reader import Table
from distdl.data.table.sources import prepare_tables
from distdl.data.text.documents import json_lines
from distdl.errors import InputError

CHUNK_ROWS = 2048
LONG_TEXT = 200
"""Characters of a field that is taken for a text to learn from."""


@dataclass(frozen=True)
class Options(TableOptions):
    """Options of the source `jsonl`. With label=, target= or features= the fields are the columns of a table: numbers,
    words, dates, and fields of an object inside another by dotted path, `size.height`."""

    path: str
    """The file, or a URI; of a table also a folder of files or a pattern with *."""
    text: str = ""
    """Field whose text is packed into rows of bytes; without it, and without a label or target, every field
    becomes a column of numbers."""
    context: int = 128
    """With text: bytes that a row predicts; a row holds one more."""
    test_path: str = ""
    """A file of the same fields that becomes the split `test`; then nothing is held out of `path`."""


def prepare(options: Options) -> Prepared:
    """`x` and `label` or `y`; or a column per field, int64 where all its numbers are whole, else float32; or `tokens` uint8
    (context + 1,)."""
    if options.label or options.target or options.features:
        return _table_from_its_begin(options) or prepare_tables(
            *(options, options.path, options.test_path), lambda path, bad: open_table(path, options, bad)
        )
    check_not_the_same(options.path, options.test_path)
    if options.size:
        raise InputError("size= makes pixels of pictures of a table", fix="name its label= or target=")
    bad = BadRows(options)
    if options.text:
        columns, info = token_columns(options.context), dict(BYTE_INFO)
    else:
        columns, info = _columns([path for path in (options.path, options.test_path) if path], options, bad), {}

    def rows_of(path: str) -> Iterator[Rows]:
        return (
            pack_bytes(_texts(path, options.text, bad), options.context)
            if options.text
            else _rows(path, columns, options, bad)
        )

    names, test = () if options.text else tuple(columns), options.test_path
    label = "label" if "label" in names else ""
    splitter = Splitter(options, names=names, label=label, where=options.path, tested=bool(test))
    chunks = splitter.parts(lambda: rows_of(options.path), (lambda: rows_of(test)) if test else None)
    kept = {name: column for name, column in columns.items() if name not in splitter.apart}
    return Prepared(kept, chunks, {**info, "split": splitter.record()}, bad=bad)


def _table_from_its_begin(options: Options) -> Prepared | None:
    """One large file, whose fields are taken from its beginning: one pass over it less. None: it is none, or what comes
    further down is not foreseen there, or something is refused, which is to be told by one who knows all fields."""
    files = find_files(options.path, ENDINGS)
    if len(files) > 1 or options.bad_rows == "set_aside":
        return None
    opened: list[JsonTable] = []

    def open_one(path: str, bad: BadRows) -> Table:
        if opened:
            return open_table(path, options, bad)
        opened.append(JsonTable(files[0], trusting=True))
        return opened[0]

    try:
        prepared = prepare_tables(options, options.path, options.test_path, open_one)
    except (InputError, Unforeseen):
        return None
    opened[0].proven()
    return prepared


def open_table(path: str, options: Options, bad: BadRows | None = None) -> Table:
    """The table of a file, or of several."""
    return open_files(path, ENDINGS, lambda file: JsonTable(file, bad))


def _records(path: str, options: Options, bad: BadRows) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects without the fields of `drop=`, under the names of `rename=`."""
    if not options.rename and not options.drop:
        yield from json_lines(path, bad)
        return
    kept: dict[str, str] | None = None
    for where, record in json_lines(path, bad):
        kept = kept or new_names(options, path, list(record))
        old = set(kept.values())
        others = {name: value for name, value in record.items() if name not in old and name not in options.drop}
        yield where, {**{name: record[was] for name, was in kept.items() if was in record}, **others}


def _texts(path: str, field: str, bad: BadRows) -> Iterator[bytes]:
    """The text of each object, with a line feed between two."""
    lines = 0
    for where, record in json_lines(path, bad):
        with bad.row(where, record, "no text"):
            if not isinstance(record.get(field), str):
                raise InputError(
                    f"the field '{field}' holds {record.get(field)!r:.60}, not text",
                    where=where,
                    allowed="fields: " + ", ".join(record),
                )
            lines += 1
            yield record[field].encode("utf-8", "surrogatepass") + b"\n"
    bad.check(lines)


def _columns(paths: list[str], options: Options, bad: BadRows) -> dict[str, Column]:
    """Read everything once: shapes come from the first object, a field is int64 until a number in it is not whole."""
    columns: dict[str, Column] = {}
    good = 0
    for path in paths:
        for where, record in _records(path, options, bad):
            with bad.row(where, record, "does not fit"):
                columns = _with_object(columns, where, record)
                good += 1
    bad.check(good)
    if not columns:
        raise InputError(f"{paths[0]} holds no objects")
    return columns


def _with_object(columns: dict[str, Column], where: str, record: dict[str, Any]) -> dict[str, Column]:
    """The columns that hold an object, too. InputError: there are none."""
    arrays = {field: _array(value, field, where) for field, value in record.items()}
    columns = dict(columns) or {field: Column("int64", array.shape) for field, array in arrays.items()}
    if record.keys() != columns.keys():
        raise InputError(
            f"the fields are {', '.join(sorted(record))}",
            where=where,
            allowed=f"those of the first object: {', '.join(sorted(columns))}",
        )
    for field, array in arrays.items():
        if array.shape != columns[field].shape:
            raise InputError(
                f"the field '{field}' has the shape {array.shape}",
                where=where,
                allowed=f"the shape of the first object: {columns[field].shape}",
            )
        if array.dtype.kind == "f":
            columns[field] = Column("float32", array.shape)
    return columns


def _array(value: Any, field: str, where: str) -> np.ndarray:
    """A number or nested list of numbers as int64 or finite float64."""
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        array = np.array(None)
    if array.dtype.kind == "b":
        array = array.astype(np.int64)
    with np.errstate(over="ignore"):
        fits = array.dtype == np.int64 or (array.dtype == np.float64 and np.isfinite(array.astype(np.float32)).all())
    if not fits or not array.size:
        raise InputError(
            f"the field '{field}' holds {value!r:.60}",
            where=where,
            allowed="a finite number, or lists of numbers of one length",
            fix=f"text={field} packs it as bytes" if isinstance(value, str) else "",
        )
    return array


def _rows(path: str, columns: dict[str, Column], options: Options, bad: BadRows) -> Iterator[Rows]:
    pending: list[dict[str, Any]] = []
    for _, record in _records(path, options, bad):
        pending.append(record)
        if len(pending) == CHUNK_ROWS:
            yield _stack(pending, columns)
            pending = []
    if pending:
        yield _stack(pending, columns)


def _stack(records: list[dict[str, Any]], columns: dict[str, Column]) -> Rows:
    return {field: np.array([record[field] for record in records], column.dtype) for field, column in columns.items()}


def advise(path: str, wish: Wish) -> Advice:
    """What to predict, or the text that is packed where the objects have a long one and no label, for `distdl init`."""
    files = find_files(path, ENDINGS)
    _, first = next(json_lines(files[0]), ("", {}))
    texts = {field: len(value) for field, value in first.items() if isinstance(value, str)}
    longest = max(texts, key=lambda field: texts[field], default="")
    labelled = bool(wish.options()) or any(field.lower() in NAMED for field in first)
    if longest and not labelled and (texts[longest] >= LONG_TEXT or len(first) == 1):
        if Path(path).is_dir():
            raise InputError(f"the objects of {path} hold texts", fix=f"--source text field={longest} reads a folder")
        return Advice({"path": path, "text": longest}, {"text": "the field with the longest text of the first object"})
    return table_advice(open_table(path, Options(path=path)), wish, {"path": path})
