"""A table of labels beside files, as competitions publish them: a CSV with a column of file names and one of labels."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from distdl.data.bad_rows import UNLABELLED, BadRows
from distdl.data.folders import Files, some_names
from distdl.data.table.dialect import BLANKS, SAMPLE_BYTES, delimiter_of
from distdl.errors import InputError, did_you_mean


def labels_of(files: Files, table: str, columns: tuple[str, str], what: str, bad: BadRows) -> dict[int, str]:
    """Number of a file -> its label, '' where it has none and is set aside. `columns`: those of names and of labels.
    InputError: table and files do not fit."""
    by_name: dict[str, int | None] = {name: n for n, name in enumerate(files.names)}
    short: dict[str, int | None] = {}
    for name, n in by_name.items():
        path = PurePosixPath(name)
        for key in {path.name, path.stem, str(path.with_suffix(""))} - {name}:
            short[key] = None if key in short else n  # two files: the table must say which
    found: dict[int, str] = {}
    absent: list[str] = []
    above = ["", _only_folder(files), str(PurePosixPath(table).parent) + "/"]
    for line, name, label in _rows_of(files, table, columns):
        where = f"{table}:{line}"
        name = name.removeprefix("./")
        paths = [folder + name for folder in above]
        known = (names.get(path) for path in paths for names in (by_name, short))
        number = next((n for n in known if n is not None), None)
        if number is None and name in short:
            raise InputError(f"{where}: '{name}' is the name of several files", fix="give their paths")
        if not label and bad.wanted:
            bad.add(where, f"'{name}' has no label", reason=UNLABELLED, content=name)
        elif not label:
            raise InputError(f"{where}: '{name}' has no label", fix="fill it in, or remove the row")
        if number is None:
            absent.append(f"{name} ({where})")
        elif found.setdefault(number, label) != label:
            raise InputError(f"{where}: '{name}' has the labels '{found[number]}' and '{label}'", fix="keep one row")
    if absent:
        raise InputError(
            f"{len(absent):,} files of {table} are not in {files.place}, or no {what}: {some_names(absent)}",
            fix="remove these rows, or check the endings and the path",
        )
    return found


def _only_folder(files: Files) -> str:
    """The folder that all files lie in, with a slash, as archives have one; or nothing."""
    outer = {name.split("/")[0] if "/" in name else "" for name in files.names}
    return f"{outer.pop()}/" if len(outer) == 1 and outer != {""} else ""


def _rows_of(files: Files, table: str, columns: tuple[str, str]) -> Iterator[tuple[int, str, str]]:
    """Line, file and label of each row."""
    here, inside = Path(table), table
    file: BinaryIO | None = here.open("rb") if here.is_file() else files.extra(inside)
    file = file or files.extra(_only_folder(files) + inside)
    if file is None:
        raise InputError(f"there is no file {table}, neither here nor in {files.place}", fix="check the path")
    with file:
        head = file.read(SAMPLE_BYTES)
        file.seek(0)
        delimiter = delimiter_of(head.decode("utf-8-sig", "replace"), len(head) < SAMPLE_BYTES)
        yield from _rows_in(file, table, columns, "," if delimiter == BLANKS else delimiter)


def _rows_in(file: BinaryIO, table: str, columns: tuple[str, str], delimiter: str) -> Iterator[tuple[int, str, str]]:
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = next(rows, [])
            for name in columns:
                if name not in header:
                    raise InputError(
                        f"{table} has no column '{name}'",
                        allowed=", ".join(header),
                        fix=did_you_mean(name, header) + "  label_columns=FILE,LABEL names the two",
                    )
            file_at, label_at = (header.index(name) for name in columns)
            for row in rows:
                if row and len(row) != len(header):
                    what = f"{table}:{rows.line_num}: {len(row)} values, the header has {len(header)}"
                    raise InputError(what, fix="quote commas that belong to a value")
                if row:
                    yield rows.line_num, row[file_at].strip(), row[label_at].strip()
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{table}:{rows.line_num + 1}: {error}", fix="save it as CSV in UTF-8") from error
