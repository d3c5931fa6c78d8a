"""Arrow files, streams and Feather files: features and a label or target as in CSV, or all columns as they are.

Which of them a file is, its first bytes tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distdl.data.advice import SURE, Advice, Wish, begins_with, by_ending, table_advice
from distdl.data.bad_rows import BadRows
from distdl.data.raw import Prepared
from distdl.data.table.arrow_table import ENDINGS, open_arrow
from distdl.data.table.options import TableOptions
from distdl.data.table.reader import Table
from distdl.data.table.sources import prepare_typed


@dataclass(frozen=True)
class Options(TableOptions):
    """Options of the source `arrow`. Without label, target and features all columns are taken as they are."""

    path: str
    """The file, a folder of files, a pattern with *, or a URI."""
    test_path: str = ""
    """The same for rows that become the split `test`; then nothing is held out of `path`."""


def prepare(options: Options) -> Prepared:
    """`x` and `label` or `y` as for CSV; or all columns: numbers, lists of one length, text, binary and pictures."""
    return prepare_typed(options, options.path, options.test_path, open_arrow)


def open_table(path: str, options: Options, bad: BadRows | None = None) -> Table:
    """The table of a file, or of several. A damaged file is damaged as a whole: none of its rows is bad by itself."""
    return open_arrow(path)


def recognise(path: Path) -> float:
    """By the first bytes; of streams and folders, by the endings."""
    return SURE if begins_with(path, b"ARROW1") or begins_with(path, b"FEA1") else by_ending(path, ENDINGS)


def advise(path: str, wish: Wish) -> Advice:
    """What to predict, for `distdl init`."""
    return table_advice(open_arrow(path), wish, {"path": path})
