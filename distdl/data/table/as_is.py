"""A table whose columns are taken as they are: numbers, lists of numbers of one shape, text and files as bytes."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distdl.data.bad_rows import BadRows
from distdl.data.manifest import ITEM_BYTES, VARIABLE, Column
from distdl.data.pictures import Look, make_look, need_pillow, picture_record, read_picture
from distdl.data.raw import Prepared, Rows
from distdl.data.splits import Splitter
from distdl.data.table.options import TableOptions
from distdl.data.table.reader import Table
from distdl.data.table.set_aside import Nowhere, without_odd
from distdl.data.table.stream import Part
from distdl.data.values import check_finite, numbered, only_answers
from distdl.errors import InputError, Problem, did_you_mean

ROWS_BYTES = 16 << 20
"""Of the rows that are made at a time: pictures are much larger than their files."""


def prepare_as_is(options: TableOptions, table: Table, others: dict[str, Table], bad: BadRows) -> Prepared:
    """All columns but those of `drop=`, under the names of `rename=`; `a.b`, a field inside another, is `a_b`."""
    kept = new_names(options, table.path, table.names)
    first = next(table.batches(list(kept.values())), None)
    if first is None:
        raise InputError(f"{table.path} has no rows")
    begin = [first.column(i).drop_null() if bad.wanted else first.column(i) for i in range(len(kept))]
    columns = {name: _column(table, old, values) for (name, old), values in zip(kept.items(), begin, strict=True)}
    pictures = [name for name, old in kept.items() if getattr(table, "media", {}).get(old) in ("", "Image")]
    if options.size and not pictures:
        what = f"size= makes pixels of pictures, and {table.path} has none as files"
        raise InputError(what, fix="of their names with label= or target=; or leave size= out")
    look = _look(options) if options.size and pictures else None
    if look and options.size:
        columns |= {name: Column("uint8", (options.channels, *options.size)) for name in pictures}
    if bad.wanted:
        table, *rest = _without_bad([table, *others.values()], columns, kept, look, options, bad)
        others = dict(zip(others, rest, strict=True))
    splitter = Splitter(
        options,
        names=list(kept),
        label="label" if "label" in kept else "",
        where=table.path,
        place=table.place,
        tested="test" in others,
        validated="validation" in others,
    )
    if splitter.looks:
        splitter.look(_rows(table, columns, kept, look))

    def chunks() -> Iterator[tuple[str, Rows]]:
        shares = itertools.chain(
            splitter.share(numbered(_rows(table, columns, kept, look))),
            ((split, rows) for split, other in others.items() for rows in numbered(_rows(other, columns, kept, look))),
        )
        for split, rows in shares:
            yield split, {name: values for name, values in rows.items() if name not in splitter.apart}

    def place(split: str, column: str, row: int) -> str:
        return others.get(split, table).place(row)

    named = {name: table.classes[old] for name, old in kept.items() if old in table.classes}
    preparation = {name: {"kind": "class", "version": 1, "classes": names} for name, names in named.items()}
    if look and options.size:
        preparation |= {name: picture_record(look, options.size) for name in pictures}
    info: dict[str, Any] = {"split": splitter.record()}
    if len(named) == 1:
        info["classes"] = next(iter(named.values()))
    if pictures and not look:
        some = ", ".join(pictures)
        info["notes"] = [f"{table.path}: the pictures of {some} stay files, as bytes; size=HEIGHTxWIDTH makes pixels"]
    learned = {name: column for name, column in columns.items() if name not in splitter.apart}
    return Prepared(learned, chunks(), info, preparation, place=place, bad=bad)


def _without_bad(
    tables: Sequence[Table],
    columns: dict[str, Column],
    kept: dict[str, str],
    look: Look | None,
    options: TableOptions,
    bad: BadRows,
) -> list[Table]:
    """The tables without rows that cannot be used: empty, of another shape, not finite, or a picture that is damaged."""
    names = [kept[name] for name in columns]
    real = {name: kept[name] for name, column in columns.items() if column.dtype.startswith("float")}
    by = [options.split_group, options.split_time, options.split_column]
    gaps: dict[str, bool] = {}
    for table in tables if real else ():
        found = only_answers(table.batches(list(real.values())), list(real))
        gaps = {name: found[name] and gaps.get(name, True) for name in real}

    def attempt(part: Part) -> None:
        nowhere = Nowhere(tables[0])
        for i, (name, column) in enumerate(columns.items()):
            values = part.batch.column(i)
            if look and is_bytes(values.type) and column.dtype != VARIABLE:
                _pictures(nowhere, kept[name], values, 0, look)
                continue
            numbers = _values(nowhere, kept[name], column, values, 0)
            if name in real:
                check_finite(numbers, name, gaps=gaps[name] and name not in by)

    sound = [without_odd(table, names, attempt, bad) for table in tables]
    bad.check(sum(batch.num_rows for table in sound for batch in table.batches(names[:1])))
    return sound


def _look(options: TableOptions) -> Look:
    need_pillow("of tables with pictures")
    return make_look(options.channels, options.size, "stretch", None, "white")


def new_names(options: TableOptions, path: str, names: list[str]) -> dict[str, str]:
    """New name -> name in the file, of the columns that are kept."""
    new: dict[str, str] = {}
    problems = []
    for pair in options.rename:
        old, colon, name = pair.rpartition(":")
        if not (colon and old and name):
            problems.append(Problem(f"rename= holds '{pair}'", allowed="old:new"))
        new[old] = name
    for key, wanted in (("rename", new), ("drop", [n for n in options.drop if n not in new.values()])):
        problems += [
            Problem(f"{path} has no column '{name}', which {key}= names", fix=did_you_mean(name, names))
            for name in wanted
            if name and name not in names
        ]
    kept = {new.get(name, name.replace(".", "_")): name for name in names}
    if len(kept) < len(names):
        problems.append(Problem(f"two columns of {path} would have one name", fix="rename=old:new"))
    if problems:
        raise InputError(*problems)
    return {name: old for name, old in kept.items() if name not in options.drop}


def _column(table: Table, name: str, values: pa.Array) -> Column:
    """The column type of a column of a file; lists get the length of the first row."""
    if is_bytes(values.type):
        return Column(VARIABLE)
    shape: list[int] = []
    while is_list(values.type):
        if not len(values) or not values[0].is_valid:
            break
        if not (size := len(values[0].as_py())):
            what = f"the column '{name}' has a list without values, whose length is that of all others"
            raise InputError(what, where=table.place(0), fix=f"drop={name}, or give all rows lists of one length")
        shape.append(size)
        values = values.flatten()
    dtype = "uint8" if pa.types.is_boolean(values.type) else str(values.type).replace("halffloat", "float16")
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    if dtype not in ITEM_BYTES:
        raise InputError(
            f"the column '{name}' of {table.path} has the type {values.type}",
            allowed="numbers, lists of numbers of one length, text, binary",
            fix=f"drop={name}; or label= or target=, and dates, decimals and categories become numbers",
        )
    return Column(dtype, tuple(shape))


def _rows(table: Table, columns: dict[str, Column], kept: dict[str, str], look: Look | None) -> Iterator[Rows]:
    row, most = 0, max(1, ROWS_BYTES // sum(column.row_bytes or 1 for column in columns.values()))
    for batch in table.batches([kept[name] for name in columns]):
        for start in range(0, batch.num_rows, most):
            part, first = batch.slice(start, most), row + start
            yield {
                name: _pictures(table, kept[name], part.column(i), first, look)
                if look and is_bytes(part.column(i).type) and column.dtype != VARIABLE
                else _values(table, kept[name], column, part.column(i), first)
                for i, (name, column) in enumerate(columns.items())
            }
        row += batch.num_rows


def _pictures(table: Table, name: str, values: pa.Array, row: int, look: Look) -> np.ndarray:
    """Files of pictures as pixels (n, C, H, W). InputError that names the row: there is none, or it cannot be read."""
    if values.null_count:
        raise _empty(table, name, row + pc.index(pc.is_null(values), True).as_py())
    files = enumerate(values.to_pylist(), row)
    return np.stack([read_picture(io.BytesIO(file), f"the picture in {table.place(i)}", look) for i, file in files])


def _values(table: Table, name: str, column: Column, values: pa.Array, row: int) -> Any:
    """A column of a batch: array (n, *shape) or list of bytes. InputError: an empty value, a list of another length."""
    if values.null_count:
        raise _empty(table, name, row + pc.index(pc.is_null(values), True).as_py())
    if column.dtype == VARIABLE:
        return values.cast(pa.large_binary()).to_pylist()
    flat = values
    for depth, size in enumerate(column.shape):
        a_row = math.prod(column.shape[:depth])  # lists of this depth in each row
        if flat.null_count:
            raise _empty(table, name, row + pc.index(pc.is_null(flat), True).as_py() // a_row, "a list of ")
        lengths = pc.list_value_length(flat)
        wrong = pc.index(pc.not_equal(lengths, size), True).as_py()
        if wrong >= 0:
            raise InputError(
                f"the column '{name}' has a list of {lengths[wrong]} values, the first has {size}",
                where=table.place(row + wrong // a_row),
                fix="pad or cut all rows to one length",
            )
        flat = flat.flatten()
    if flat.null_count:
        a_row = math.prod(column.shape)
        raise _empty(table, name, row + pc.index(pc.is_null(flat), True).as_py() // a_row, "a list of ")
    numbers = flat.to_numpy(zero_copy_only=False)
    return (numbers.astype(np.uint8) if pa.types.is_boolean(flat.type) else numbers).reshape(len(values), *column.shape)


def _empty(table: Table, name: str, row: int, what: str = "") -> InputError:
    return InputError(
        f"{what}the column '{name}' has an empty value",
        where=table.place(row),
        fix=f"fill it, or drop={name}; or label= or target=, and missing= says what becomes of empty values",
    )


def is_list(kind: pa.DataType) -> bool:
    """Whether each value is a list."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether each value is text or bytes of any length."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in (*tests, pa.types.is_fixed_size_binary))
