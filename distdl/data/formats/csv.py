"""CSV files (.gz too) with numeric features and a class or a number to predict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from distdl.data.advice import BY_ENDING, Advice, Wish, has_ending, table_advice
from distdl.data.formats._lines import is_table, told_by_lines
from distdl.data.formats._tabular import prepare_table
from distdl.data.raw import Prepared, open_raw
from distdl.data.splits import SplitOptions
from distdl.errors import InputError

ENDINGS = (".csv", ".tsv", ".tab")


@dataclass(frozen=True)
class Options(SplitOptions):
    """Options of the source `csv`."""

    path: str
    """The file."""
    label: str = ""
    """Column that holds the class: text or whole numbers."""
    target: str = ""
    """Column that holds the number to predict, instead of a label."""
    features: tuple[str, ...] = ()
    """Numeric columns that make up `x`, in this order; without it all columns but the label or target."""
    names: tuple[str, ...] = ()
    """Names of the columns where the file has no header line."""
    delimiter: str = ","
    """The character between two values; `tab` for a tabulator."""
    test_path: str = ""
    """A file of the same columns that becomes the split `test`; then nothing is held out of `path`."""


def prepare(options: Options) -> Prepared:
    """`x` float32 (F,), and `label` int64 or `y` float32."""
    return prepare_table(options, lambda path: CsvTable(path, options))


class CsvTable:
    """A CSV file, read as text block by block: a value that is no number can then be named with its line."""

    def __init__(self, path: str, options: Options):
        self.path, self._options = path, options
        open_raw(path).close()
        header = self._open(None).schema.names
        self.names = [name.strip() for name in options.names or header]
        if len(set(self.names)) < len(self.names):
            raise InputError(f"{path} has two columns of the same name: {', '.join(self.names)}")

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


def recognise(path: Path) -> float:
    """By the ending; or, of plain text, by lines that are all cut into the same number of values."""
    if has_ending(path, ENDINGS):
        return BY_ENDING
    return 0.8 * BY_ENDING if has_ending(path, (".txt", ".data", ".dat", "")) and is_table(path) else 0.0


def advise(path: str, wish: Wish) -> Advice:
    """What to predict, and how the values are cut, for `distdl init`."""
    options = {"path": path, **told_by_lines(path)}
    return table_advice(CsvTable(path, Options(**options)), wish, options)
