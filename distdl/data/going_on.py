"""The rows of a large table for the writer: all of them, or those that a killed preparation had not written yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from distdl import __version__
from distdl.data.raw import Prepared, Rows, Sectioned
from distdl.data.resume import Begin, facts_of_files, key_of
from distdl.data.write import DatasetWriter


def key_of_preparation(prepared: Prepared, source: str, options: Mapping[str, Any], rows_per_batch: int) -> str:
    """What the rows hang on; '' where no other preparation can go on, as it is small or its files are elsewhere."""
    sections = prepared.sections
    files = facts_of_files(sections.files) if sections and sections.files else None
    if sections is None or files is None:
        return ""
    columns = {name: asdict(column) for name, column in prepared.columns.items()}
    facts = (columns, prepared.info, prepared.preparation, sections.count, rows_per_batch)
    return key_of(__version__, source, options, files, *facts)


def going_on(prepared: Prepared, writer: DatasetWriter) -> Prepared:
    """The same, from where the writer can go on."""
    if not writer.key or prepared.sections is None:
        return prepared
    begin = writer.go_on(prepared.sections.count)
    return replace(prepared, chunks=_from(begin, prepared.sections, writer))


def _from(begin: Begin, sections: Sectioned, writer: DatasetWriter) -> Iterator[tuple[str, Rows]]:
    drop, current, counts = dict(begin.drop), begin.section, Counter[str]()
    for section, (split, rows) in sections.chunks(begin.section):
        while current < section:  # whose rows are written: more have been asked for
            writer.section_done(counts)
            current, counts = current + 1, Counter()
        count = len(next(iter(rows.values())))
        counts[split] += count
        known = min(count, drop.get(split, 0))
        drop[split] = drop.get(split, 0) - known
        if known < count:
            yield split, {name: values[known:] for name, values in rows.items()} if known else rows
