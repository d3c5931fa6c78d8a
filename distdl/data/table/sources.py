"""What all sources of tables do with `path=` and `test_path=`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from distdl.data.bad_rows import BadRows
from distdl.data.inputs import check_not_the_same
from distdl.data.raw import Prepared
from distdl.data.table.as_is import prepare_as_is
from distdl.data.table.options import TableOptions
from distdl.data.table.prepare import prepare_table
from distdl.data.table.reader import Table


def prepare_tables(
    options: TableOptions, path: str, test_path: str, open_table: Callable[[str, BadRows], Table]
) -> Prepared:
    """`x`, and `label` or `y`, of the table at `path`; the one at `test_path` is the split `test`. InputError: the two
    are the same file."""
    check_not_the_same(path, test_path)
    bad = BadRows(options)
    table = open_table(path, bad)
    others = {"test": open_table(test_path, bad)} if test_path else {}
    return with_notes(prepare_table(options, table, others, bad), [table, *others.values()])


def prepare_typed(options: TableOptions, path: str, test_path: str, open_table: Callable[[str], Table]) -> Prepared:
    """The same of files whose columns have types: without a label, target or features all columns as they are."""
    check_not_the_same(path, test_path)
    return prepare_splits(options, open_table(path), {"test": open_table(test_path)} if test_path else {})


def prepare_splits(options: TableOptions, table: Table, others: Mapping[str, Table]) -> Prepared:
    """The same of tables that are open; `others`: split -> the table that is that split."""
    chosen, bad = options.label or options.target or options.features, BadRows(options)
    prepared = (prepare_table if chosen else prepare_as_is)(options, table, dict(others), bad)
    return with_notes(prepared, [table, *others.values()])


def with_notes(prepared: Prepared, tables: list[Table]) -> Prepared:
    """With what the readers recognised that a person should know: it is said, and kept in the manifest."""
    notes = [note for table in tables for note in getattr(table, "notes", [])]
    notes += prepared.info.get("notes", [])
    return dataclasses.replace(prepared, info={**prepared.info, "notes": notes}) if notes else prepared
