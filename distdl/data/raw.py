"""What several raw formats need: the result type, packing bytes, reading files that may be packed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from distdl.data.bad_rows import BadRows
from distdl.data.manifest import Column
from distdl.data.unpack import open_unpacked
from distdl.errors import InputError

Rows = dict[str, Any]  # column -> array (n, *shape), or list of bytes

READ_BYTES = 4 << 20


@dataclass(frozen=True)
class Sectioned:
    """Rows that can be read from any section of a file on."""

    count: int
    chunks: Callable[[int], Iterator[tuple[int, tuple[str, Rows]]]]
    """The first section to be read -> pairs of a section and what `Prepared.chunks` gives of it."""
    files: tuple[str, ...]
    """Those that are read; () where that is not known."""


@dataclass(frozen=True)
class Prepared:
    """A raw source, opened: its columns are known, its rows are read while `chunks` is iterated."""

    columns: dict[str, Column]
    chunks: Iterator[tuple[str, Rows]]
    """Pairs of a split and some of its rows, in any sizes."""
    info: dict[str, Any] = field(default_factory=dict)
    """Facts for the manifest, such as the names of the classes."""
    preparation: dict[str, Any] = field(default_factory=dict)
    """Column -> how its values came from the raw ones, as plain values (manifest.py)."""
    place: Callable[[str, str, int], str] | None = None
    """Split, column and row of the file (`values.numbered`) -> where that is, for a person; None: said by split and row."""
    bad: BadRows | None = None
    """The rows that were set aside, or that would be; None: none of this source's rows can be bad alone."""
    sections: Sectioned | None = None
    """Where a large file is read in sections: then `chunks` gives the rows of all of them."""
    rows: int | None = None
    """How many rows there will be, where the source knows it beforehand: then the time left is told."""


def pack_bytes(blocks: Iterable[bytes], context: int) -> Iterator[Rows]:
    """A stream of bytes -> rows `tokens` uint8 (n, context + 1); row i begins at byte i * context, so the last byte
    of a row is the first of the next and every byte is predicted once. What does not fill a last row is left out."""
    if context < 1:
        raise InputError(f"context is {context}", allowed="at least 1")
    rest, size = b"", 0
    for block in blocks:
        rest += block
        size += len(block)
        count = (len(rest) - 1) // context
        if count > 0 and len(rest) >= READ_BYTES:
            yield {"tokens": _windows(rest, count, context)}
            rest = rest[count * context :]
    count = (len(rest) - 1) // context
    if count > 0:
        yield {"tokens": _windows(rest, count, context)}
    elif 0 < size <= context:
        what = f"the text has {size:,} bytes, and a row holds {context + 1:,}: one more than context={context}"
        raise InputError(what, fix="a smaller context, or more text")


def _windows(text: bytes, count: int, context: int) -> np.ndarray:
    flat = np.frombuffer(text, np.uint8)
    return np.lib.stride_tricks.as_strided(flat, (count, context + 1), (context, 1), writeable=False)


def token_columns(context: int) -> dict[str, Column]:
    """The columns of packed bytes."""
    return {"tokens": Column("uint8", (context + 1,))}


BYTE_INFO = {"encoding": "bytes", "vocabulary": 256}


def open_raw(path: str | Path) -> BinaryIO:
    """A raw file, local or remote, opened for reading its bytes, unpacked where it is packed (unpack.py). InputError: there
    is none; while it is read: it is damaged."""
    return open_unpacked(path)


def read_blocks(path: str | Path) -> Iterator[bytes]:
    """The bytes of a raw file, a few megabytes at a time. InputError: a damaged file."""
    with open_raw(path) as file:
        while block := file.read(READ_BYTES):
            yield block
