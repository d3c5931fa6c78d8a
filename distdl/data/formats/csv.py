"""Tables in text: CSV, TSV and their relatives, with a class or a number to predict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distdl.data.advice import BY_ENDING, Advice, Wish, by_ending, has_ending, table_advice
from distdl.data.bad_rows import BadRows
from distdl.data.inputs import find_files
from distdl.data.raw import Prepared
from distdl.data.table.csv_table import CSV_ENDINGS, CsvTable
from distdl.data.table.dialect import Told, sniff
from distdl.data.table.files import open_files
from distdl.data.table.header import is_number
from distdl.data.table.options import TableOptions
from distdl.data.table.reader import Table
from distdl.data.table.sources import prepare_tables
from distdl.errors import InputError

ENDINGS = (".csv", ".tsv", ".tab")


@dataclass(frozen=True)
class Options(TableOptions):
    """Options of the source `csv`. How the file is written is recognised, and said where it is not what everybody
    expects; what is told here goes before."""

    path: str
    """The file, a folder of files, a pattern with *, or a URI; packed files too (.gz, .bz2, .xz, .zst, .zip)."""
    names: tuple[str, ...] = ()
    """Names of the columns where the file has no header line; with header=yes, names instead of those in it."""
    header: bool | None = None
    """Whether the first line holds the names of the columns; with `no` and without names= they are c0, c1, ..."""
    delimiter: str = ""
    """The character between two values; `tab`, or `blanks` for columns that are lined up by any number of them."""
    encoding: str = ""
    """How the letters are written: utf-8, utf-16, cp1252, latin-1, ..."""
    decimal: str = ""
    """The sign before the decimals of a number: a point or a comma."""
    thousands: str = ""
    """The sign between groups of three digits; `space` for a blank."""
    test_path: str = ""
    """A file of the same columns that becomes the split `test`; then nothing is held out of `path`."""


def prepare(options: Options) -> Prepared:
    """`x` float32 (F,), and `label` int64 or `y` float32."""
    return prepare_tables(options, options.path, options.test_path, lambda path, bad: open_table(path, options, bad))


def open_table(path: str, options: Options, bad: BadRows | None = None) -> Table:
    """The table of a file, or of several."""
    told = _told(options)
    return open_files(path, CSV_ENDINGS, lambda file: CsvTable(file, told, options.label or options.target, bad))


def _told(options: Options) -> Told:
    return Told(options.names, options.delimiter, options.encoding, options.header, options.decimal, options.thousands)


def recognise(path: Path) -> float:
    """By the ending; or, of plain text, by lines that are all cut into the same number of values, some of them numbers."""
    if fit := by_ending(path, ENDINGS):
        return fit
    return 0.8 * BY_ENDING if has_ending(path, (".txt", ".data", ".dat", "")) and _is_table(path) else 0.0


def _is_table(path: Path) -> bool:
    """Whether the first lines are cut into as many values each, two or more, and one of the columns holds numbers: prose
    may have as many commas in each line."""
    try:
        rows = sniff(path, Told()).sample if path.is_file() else ()
    except InputError:
        return False
    if not rows or len(rows[0]) < 2 or len({len(row) for row in rows}) > 1:
        return False
    return any(all(is_number(value) for value in column) for column in zip(*rows))


def advise(path: str, wish: Wish) -> Advice:
    """What to predict, and whether the first line is a row, for `distdl init`."""
    options: dict[str, Any] = {"path": path, **wish.reading}
    because = {}
    dialect = sniff(find_files(path, CSV_ENDINGS)[0], _told(Options(**options)))
    if not dialect.header and not options.keys() & {"names", "header"}:  # names= says that the first line has none
        options["header"], because["header"] = False, (*dialect.why, "the first line holds no names")[-1]
    advice = table_advice(open_table(path, Options(**options)), wish, options)
    return Advice(advice.options, {**because, **advice.because})
