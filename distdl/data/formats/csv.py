"""Tables in text: CSV, TSV and their relatives, with a class or a number to predict."""

from __future__ import annotations

from dataclasses import dataclass

from distdl.data.raw import Prepared
from distdl.data.table.csv_table import CSV_ENDINGS, CsvTable
from distdl.data.table.dialect import Told
from distdl.data.table.files import open_files
from distdl.data.table.options import TableOptions
from distdl.data.table.reader import Table
from distdl.data.table.sources import prepare_tables


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
    return prepare_tables(options, options.path, options.test_path, lambda path: open_table(path, options))


def open_table(path: str, options: Options) -> Table:
    """The table of a file, or of several."""
    told = Told(options.names, options.delimiter, options.encoding, options.header, options.decimal, options.thousands)
    return open_files(path, CSV_ENDINGS, lambda file: CsvTable(file, told, options.label or options.target))
