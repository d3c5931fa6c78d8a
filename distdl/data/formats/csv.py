"""CSV files (.gz too) with numeric features and a class or a number to predict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv

from distdl.data.raw import Prepared, open_raw
from distdl.data.table.options import TableOptions
from distdl.data.table.prepare import prepare_table
from distdl.data.table.reader import Table
from distdl.errors import InputError


@dataclass(frozen=True)
class Options(TableOptions):
    """Options of the source `csv`."""

    path: str
    """The file."""
    names: tuple[str, ...] = ()
    """Names of the columns where the file has no header line."""
    delimiter: str = ","
    """The character between two values; `tab` for a tabulator."""
    test_path: str = ""
    """A file of the same columns that becomes the split `test`; then nothing is held out of `path`."""


def prepare(options: Options) -> Prepared:
    """`x` float32 (F,), and `label` int64 or `y` float32."""
    others: dict[str, Table] = {"test": CsvTable(options.test_path, options)} if options.test_path else {}
    return prepare_table(options, CsvTable(options.path, options), others)


class CsvTable:
    """A CSV file, read as text block by block: a value that is no number can then be named with its line."""

    def __init__(self, path: str, options: Options):
        self.path, self._options = path, options
        open_raw(path).close()
        header = self._open(None).schema.names
        self.names = [name.strip() for name in options.names or header]
        if len(set(self.names)) < len(self.names):
            raise InputError(f"{path} has two columns of the same name: {', '.join(self.names)}")
        self.schema = pa.schema(dict.fromkeys(self.names, pa.string()))
        self.classes: dict[str, list[str]] = {}

    def _open(self, names: list[str] | None) -> Any:
        delimiter = "\t" if self._options.delimiter == "tab" else self._options.delimiter
        convert = {} if names is None else {"column_types": dict.fromkeys(names, pa.string()), "include_columns": names}
        read = pyarrow.csv.ReadOptions(
            column_names=self.names if names else self._options.names or None, use_threads=False
        )
        read.skip_rows = 1 if names and not self._options.names else 0  # the header, once its names are known
        try:
            return pyarrow.csv.open_csv(
                self.path,
                read_options=read,
                parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
                convert_options=pyarrow.csv.ConvertOptions(**convert),
            )
        except (pa.ArrowException, ValueError, OSError) as error:
            raise self._bad(error) from error

    def _bad(self, error: Exception) -> InputError:
        return InputError(
            f"{self.path} is not a CSV file that can be read: {error}", fix="check delimiter= and the row that is named"
        )

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """The chosen columns as strings, about a megabyte at a time."""
        reader = self._open(names)
        try:
            yield from reader
        except (pa.ArrowException, OSError) as error:
            raise self._bad(error) from error

    def place(self, row: int) -> str:
        """`file:line`; blank lines, which are skipped, are not counted."""
        return f"{self.path}:{row + (1 if self._options.names else 2)}"
