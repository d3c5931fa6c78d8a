"""The values of a column as the split rules want them: names and codes, or whole numbers in the order of time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distdl.errors import InputError

MOST_KEYS = 1 << 20
"""Different times that are told apart; beyond it neighbours count as one."""
PENDING_ROWS = 1 << 18

Places = Callable[[int], str]


def coded(values: Any, column: str, place: Places, row: int) -> tuple[list[str], np.ndarray]:
    """The distinct values as text, and of each row its number among them: (n,) int64. InputError: one is missing."""
    encoded = _arrow(values, column).dictionary_encode()
    names = _texts(encoded.dictionary)
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    empty = np.array([not name for name in names] + [True])[codes]  # the last is that of -1
    if empty.any():
        raise _missing(column, place(row + int(empty.argmax())))
    numbers: dict[str, int] = {}
    renumbered = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)  # two may be one text
    return list(numbers), renumbered[codes]


def ordered(values: Any, column: str, place: Places, row: int, kind: str) -> tuple[np.ndarray, str]:
    """Times or numbers as whole numbers of the same order, and their kind, which must be that of the chunks before.
    InputError: a value that is neither, or is missing."""
    array = _arrow(values, column)
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        array = _read(pc.utf8_trim_whitespace(array), column, place, row)
    if array.null_count:
        raise _missing(column, place(row + array.is_null().to_pylist().index(True)))
    if pa.types.is_integer(array.type):
        found, keys = "whole", array.to_numpy(zero_copy_only=False).astype(np.int64)
    elif pa.types.is_floating(array.type):
        real = array.to_numpy(zero_copy_only=False).astype(np.float64) + 0.0  # -0.0 is 0.0
        if not np.isfinite(real).all():
            raise _missing(column, place(row + int((~np.isfinite(real)).argmax())))
        bits = real.view(np.int64)  # positive floats are in the order of their bits, negative ones in the opposite
        found, keys = "number", np.where(bits < 0, bits ^ np.int64(0x7FFFFFFFFFFFFFFF), bits)
    elif pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        since = pc.cast(pc.cast(array, pa.timestamp("us"), safe=False), pa.int64())
        found, keys = "time", since.to_numpy(zero_copy_only=False)
    else:
        raise InputError(f"the column '{column}' holds {array.type}", place(row), allowed="numbers, dates or times")
    if kind and kind != found:
        raise InputError(f"the column '{column}' is a {found} here and a {kind} before", where=place(row))
    return keys, found


def time_in_words(key: int, kind: str) -> str:
    """A key of `ordered` as a person writes it."""
    if kind == "time":
        return str(np.datetime64(key, "us").astype("datetime64[s]")).replace("T00:00:00", "")
    if kind == "number":
        bits = np.int64(key)
        return f"{(bits ^ np.int64(0x7FFFFFFFFFFFFFFF) if bits < 0 else bits).view(np.float64).item():.10g}"
    return str(key)


class Counts:
    """How often each key occurs. `coarsen`: where there are too many, the lowest bits are `dropped`, so that neighbours
    become one; keys that are added then must have lost them already."""

    def __init__(self, dtype: Any, coarsen: bool = False):
        self._keys, self._rows, self._coarsen = np.empty(0, dtype), np.empty(0, np.int64), coarsen
        self._pending: list[np.ndarray] = []
        self._waiting = 0
        self.dropped = 0

    def add(self, keys: np.ndarray) -> None:
        self._pending.append(keys)
        self._waiting += len(keys)
        if self._waiting > max(PENDING_ROWS, len(self._keys)):
            self._merge()

    @property
    def size(self) -> int:
        """How many different keys there are, at least."""
        return len(self._keys)

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """The keys, sorted, and how often each occurs."""
        self._merge()
        return self._keys, self._rows

    def _merge(self) -> None:
        keys, rows = np.unique(np.concatenate([self._keys[:0], *self._pending]), return_counts=True)
        self._pending, self._waiting = [], 0
        self._join(np.concatenate([self._keys, keys]), np.concatenate([self._rows, rows]))
        while self._coarsen and len(self._keys) > MOST_KEYS:
            self.dropped += 1
            self._join(self._keys >> 1, self._rows)

    def _join(self, keys: np.ndarray, rows: np.ndarray) -> None:
        by_key = np.argsort(keys, kind="stable")
        keys, rows = keys[by_key], rows[by_key]
        first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.empty(0, np.int64)
        self._keys, self._rows = keys[first], np.add.reduceat(rows, first) if len(first) else rows


def _arrow(values: Any, column: str) -> Any:
    """The values as one Arrow array without a dictionary."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if not isinstance(values, pa.Array):
        if isinstance(values, np.ndarray) and values.ndim != 1:
            what = f"the column '{column}' has the shape {list(values.shape[1:])} for a row"
            raise InputError(what, allowed="one value for a row, to share the rows out by")
        values = pa.array(values, from_pandas=False)
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


TIMES = {str(kind): kind for kind in (pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC"))}
"""What texts are read as when rows are shared out by time, in this order."""


def _read(texts: Any, column: str, place: Places, row: int) -> Any:
    """Texts as numbers or, where they are none, as ISO dates and times."""
    for kind in TIMES.values():
        try:
            return pc.cast(texts, kind)
        except pa.ArrowInvalid:
            continue
    whole = [reads_as(text) for text in texts.to_pylist()]
    first = next((i for i, kind in enumerate(whole) if not kind), None)
    first = next(i for i, kind in enumerate(whole) if kind != whole[0]) if first is None else first
    value = texts[first].as_py()
    if not value:
        raise _missing(column, place(row + first))
    what = f"the column '{column}' has the value {value!r}, which is no time, or another kind of time than those before"
    raise InputError(
        what, where=place(row + first), allowed="numbers, or dates and times as 2026-11-30 or 2026-11-30T09:30:00"
    )


def reads_as(text: str | None) -> str:
    """The type that a text is read as when rows are shared out by time; '': it is none."""
    for kind in TIMES.values():
        try:
            pc.cast(pa.scalar(text, pa.string()), kind)
            return str(kind) if text else ""
        except pa.ArrowInvalid:
            continue
    return ""


def _texts(values: Any) -> list[str]:
    """The values as people write them; a missing one is empty."""
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    try:
        texts = pc.utf8_trim_whitespace(pc.cast(values, pa.string())).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # bytes that are no text, or what Arrow does not write
        found = (
            (v.decode("utf-8", "backslashreplace") if isinstance(v, bytes) else str(v)) for v in values.to_pylist()
        )
        texts = [text.strip() for text in found]
    return [text or "" for text in texts]


def _missing(column: str, where: str) -> InputError:
    what = f"the column '{column}' has no value here, and rows are shared out by it"
    return InputError(what, where=where, fix="fill it in, or leave the row out")
