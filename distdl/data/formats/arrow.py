"""Arrow files, streams and Feather files: features and a label or target as in CSV, or all columns as they are.

Which of them a file is, its first bytes tell.
"""

from __future__ import annotations

from dataclasses import dataclass

from distdl.data.raw import Prepared
from distdl.data.table.arrow_table import open_arrow
from distdl.data.table.options import TableOptions
from distdl.data.table.sources import prepare_typed


@dataclass(frozen=True)
class Options(TableOptions):
    """Options of the source `arrow`. Without label, target and features all columns are taken as they are."""

    path: str
    """The file, a folder of files, a pattern with *, or a URI."""
    test_path: str = ""
    """The same for rows that become the split `test`; then nothing is held out of `path`."""


def prepare(options: Options) -> Prepared:
    """`x` and `label` or `y` as for CSV; or all columns: numbers, lists of one length, text and binary as bytes."""
    return prepare_typed(options, options.path, options.test_path, open_arrow)
