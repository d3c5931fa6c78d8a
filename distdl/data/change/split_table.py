"""The rows of a table in files of their own, by the ways that every source has (splits.py): `train.csv`, `test.csv`, ..."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from distdl.data.change.split import UNHEEDED, sharing_options
from distdl.data.change.table_in import READING, kind_of, open_table
from distdl.data.change.table_out import FORMATS, TableFile, check_free, published
from distdl.data.prepare import sigterm_cleans_up
from distdl.data.progress import Follow, Progress
from distdl.data.splits import SplitOptions, Splitter
from distdl.data.store import shown
from distdl.data.table.reader import Table
from distdl.data.table.stream import shared_out
from distdl.errors import InputError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Options(SplitOptions):
    """How a table is shared out."""

    label: str = ""
    """Column of the classes, for stratify."""
    format: str = ""
    """csv, jsonl, parquet or arrow; without it that of the table."""


def split_table(
    source: str, target: str, given: Mapping[str, Any], overwrite: bool = False, *, follow: Follow | None = None
) -> tuple[dict[str, int], dict[str, Any], list[str]]:
    """Writes each split of the table at `source` as a file of the folder `target`, all columns and every value as they
    were. Returns the rows of each file, how they were shared out, and what a person should know. InputError: rows that
    cannot be shared out so, a target that exists (unless `overwrite`)."""
    reading = {key: value for key, value in given.items() if key in READING}
    options: Options = sharing_options(Options, {key: value for key, value in given.items() if key not in READING})
    check_free(target, overwrite)
    table = open_table(source, reading)
    form = options.format or (kind_of(source) if kind_of(source) in FORMATS else "csv")
    if form not in FORMATS:
        raise InputError(f"format={form}", allowed=", ".join(FORMATS), fix=did_you_mean(form, FORMATS))
    if not (options.test_fraction or options.validation_fraction or options.split_column):
        raise InputError("nothing is held out", allowed="test_fraction=0.1, validation_fraction=0.1, split_column=part")
    if options.label and not options.stratify:
        raise InputError(UNHEEDED, fix="stratify=true, or leave label= out")
    label = options.label if options.stratify else ""
    splitter = Splitter(options, names=table.names, label=label, where=table.path, place=table.place)
    progress = Progress(f"{shown(source)} to {target}", {"path": source})
    with (
        sigterm_cleans_up(target),
        follow(progress) if follow else nullcontext(),
        published(target, overwrite) as draft,
    ):
        rows = _written(table, splitter, draft, form, progress)
    record = splitter.record()
    return rows, record, [*getattr(table, "notes", [])]


def _written(table: Table, splitter: Splitter, draft: Any, form: str, progress: Progress) -> dict[str, int]:
    schema = pa.schema([table.schema.field(name) for name in table.names])
    files: dict[str, TableFile] = {}
    try:
        for part in shared_out(table, table.names, splitter):
            if part.split not in files:
                files[part.split] = TableFile(draft / f"{part.split}.{form}", form, schema)
            files[part.split].write(part.batch)
            progress.rows += part.batch.num_rows
    finally:
        for file in files.values():
            file.close()
    return {file.path.name: file.rows for file in files.values()}
