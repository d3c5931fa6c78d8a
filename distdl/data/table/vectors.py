"""Columns of text whose values are lists of numbers: vectors, as pandas and NumPy write them into CSV.

"[0.1, 0.2, 0.3]"        "[0.1 0.2 0.3]"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice

import numpy as np
import pyarrow as pa

from distdl.data.table.reader import Table, cut, places_of
from distdl.data.table.values import is_text

LOOKED_AT = 100
"""Values of a column by which it is taken for vectors."""


def with_vectors(table: Table, others: Mapping[str, Table]) -> tuple[Table, dict[str, Table]]:
    """The tables, whose columns of lists in words are lists of numbers; those of the first one decide."""
    texts = [name for name in table.names if is_text(table.schema.field(name).type) and name not in table.classes]
    first = next(iter(table.batches(texts)), None) if texts else None
    if first is None:
        return table, dict(others)
    found = [name for name, column in zip(texts, first.columns, strict=True) if _are_lists(column)]
    return as_vectors(table, found), {split: as_vectors(other, found) for split, other in others.items()}


def as_vectors(table: Table, names: Sequence[str]) -> Table:
    """The table, of which these columns are lists of numbers, where they are text."""
    found = [name for name in names if name in table.names and is_text(table.schema.field(name).type)]
    return WithVectors(table, found) if found else table


def _are_lists(column: pa.Array) -> bool:
    words = list(islice((word for word in column.to_pylist() if word and word.strip()), LOOKED_AT))
    return bool(words) and all(numbers_of(word) is not None for word in words)


def numbers_of(word: str | None) -> np.ndarray | None:
    """The numbers of a list in words; None: it is none."""
    text = (word or "").strip()
    if not (text.startswith("[") and text.endswith("]")) or "[" in text[1:]:
        return None
    try:
        return np.array(text[1:-1].replace(",", " ").split(), np.float64)
    except ValueError:
        return None


class WithVectors:
    """A table some of whose columns are lists in words. What is no list there is empty."""

    def __init__(self, table: Table, vectors: list[str]) -> None:
        self.table, self.path, self.names, self.classes = table, table.path, table.names, table.classes
        self._vectors = set(vectors)
        self.rows: int | None = getattr(table, "rows", None)
        kind = pa.list_(pa.float64())
        fields = [table.schema.field(name) for name in table.names]
        self.schema = pa.schema([field.with_type(kind) if field.name in self._vectors else field for field in fields])
        self.place, self.places = table.place, partial(places_of, table)

    def cut(self) -> list[Table]:
        """The same of each section of the table."""
        return [WithVectors(section, list(self._vectors)) for section in cut(self.table)]

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """As of the table, its vectors as lists."""
        for batch in self.table.batches(names):
            columns = [
                pa.array(map(numbers_of, column.to_pylist()), pa.list_(pa.float64()))
                if name in self._vectors
                else column
                for name, column in zip(names, batch.columns, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(columns, names)
