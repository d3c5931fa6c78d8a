"""A column of a table that names pictures, or holds their files: pixels beside its other columns.

Names are paths from the folder that the table lies in; none leads out of it. A path to a picture elsewhere is refused.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from distdl.data.pictures import make_look, need_pillow, picture_record, prepare_picture
from distdl.data.table.kinds import ColumnKind
from distdl.data.table.options import TableOptions
from distdl.data.table.reader import Places, Table
from distdl.data.table.stream import Part
from distdl.errors import InputError, Problem
from distdl.trust import leads_out

PART_BYTES = 32 << 20
"""Of the rows that are made at a time: pictures are much larger than their names."""


def pixels_record(kinds: Sequence[ColumnKind], options: TableOptions, table: Table) -> dict[str, Any]:
    """How the column `image` comes about; {} where size= does not ask for it. InputError: none of the columns has pictures,
    or several have."""
    if not options.size:
        return {}
    names = [kind.name for kind in kinds if kind.kind == "image path"]
    if len(names) != 1:
        told = f"the columns {', '.join(names)} have" if names else "no column has"
        what = f"size= makes pixels of pictures, and {told} some in {table.path}"
        fix = f"drop={','.join(names[1:])}" if names else "kinds=NAME:image_path, or leave size= out"
        raise InputError(what, fix=fix)
    need_pillow("of tables with pictures")
    look = make_look(options.channels, options.size, "stretch", None, "white")
    return {**picture_record(look, options.size), "name": names[0]}


def encode_pixels(record: Mapping[str, Any], column: pa.Array, rows: np.ndarray, table: Places) -> np.ndarray:
    """uint8 (n, C, H, W). InputError that names the row: there is no such picture, or it cannot be read."""
    found = []
    for value, row in zip(column.to_pylist(), rows.tolist(), strict=True):
        try:
            found.append(prepare_picture(record, _file(value, table, record["name"])))
        except InputError as error:
            where = table.place(row)
            raise InputError(*(replace(p, where=where, what=_told(p)) for p in error.problems)) from error
    return np.stack(found) if found else np.empty((0, record["channels"], *record["size"]), np.uint8)


def _told(problem: Problem) -> str:
    return f"{problem.where}: {problem.what}" if problem.where else problem.what


def _file(value: Any, table: Places, name: str) -> Path | BinaryIO:
    if value in (None, "", b""):
        raise InputError(f"the column '{name}' names no picture", fix="fill it in, or leave the row out")
    if isinstance(value, bytes):
        return io.BytesIO(value)
    if "://" in table.path:
        raise InputError(f"pictures are read from this machine, and the table is {table.path}", fix="copy both")
    root = Path(table.path) if Path(table.path).is_dir() else Path(table.path).parent
    file = root / value.strip()
    if leads_out(root, file):
        what = f"the picture '{value}' is outside of {root}, where the table lies"
        raise InputError(what, fix="put the table above the pictures, and write their paths from there")
    if not file.is_file():
        raise InputError(f"there is no picture {file}", fix="write its path from the folder of the table")
    return file


def small_parts(part: Part, record: Mapping[str, Any]) -> Iterator[Part]:
    """A part in pieces whose pictures fit into little memory; the part itself where there are none."""
    if not record:
        yield part
        return
    most = max(1, PART_BYTES // (record["channels"] * record["size"][0] * record["size"][1]))
    for start in range(0, len(part.rows), most):
        yield Part(part.split, part.rows[start : start + most], part.batch.slice(start, most))
