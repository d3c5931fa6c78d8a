"""Where a text file can be cut: behind the end of a record. The file is local and not packed, and of any size: some bytes
of it are looked at, or each once, block by block."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from distdl.data import workers
from distdl.data.table import reader
from distdl.data.unpack import open_unpacked

BLOCK_BYTES = 64 << 10
LINE_FEED, RETURN, QUOTE = 10, 13, 34


class Stretch(io.RawIOBase):
    """The bytes of a file from `begin` to `end`."""

    def __init__(self, path: str, begin: int, end: int) -> None:
        super().__init__()
        self._file, self._left = open(path, "rb", buffering=0), end - begin  # noqa: SIM115 - closed with this
        self._file.seek(begin)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(memoryview(buffer)[: self._left]) or 0
        self._left -= count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def sections_of_lines(path: str) -> list[tuple[int, int]]:
    """(begin, end) of stretches of whole lines; [] where the file is short, packed or elsewhere."""
    size = _size(path)
    cuts = [0]
    with open(path, "rb") if size else io.BytesIO() as file:
        for about in range(reader.SECTION_BYTES, size - reader.SECTION_BYTES, reader.SECTION_BYTES):
            if about >= cuts[-1] and (end := _line_end(file, about)) < size:
                cuts.append(end)
    return list(zip(cuts, [*cuts[1:], size], strict=True)) if len(cuts) > 1 else []


def _line_end(file: Any, at: int) -> int:
    file.seek(at)
    while block := file.read(BLOCK_BYTES):
        if (found := block.find(b"\n")) >= 0:
            return at + found + 1
        at += len(block)
    return int(at)


def _size(path: str) -> int:
    """Bytes of a file that is worth being cut, and can be; 0 of any other."""
    if not os.path.isfile(path) or (size := os.path.getsize(path)) < 2 * reader.SECTION_BYTES:
        return 0
    with open_unpacked(path) as file:
        plain = isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO)
    return size if plain else 0


# -- records that may hold line feeds between quotes -------------------------------------------------------------------


@dataclass(frozen=True)
class Stretches:
    """A part of a file of records."""

    begin: int
    end: int
    rows: int | None
    """Records in it; None: not known, as there are lines in it that are none."""


@dataclass(frozen=True)
class _Ends:
    """The ends of records in a block, if it begins outside of quotes; or if it begins inside."""

    sound: bool
    """Every quote stands where a value begins or ends, or is doubled: then what is between quotes is known for sure."""
    first: int
    """Place behind the first end; -1: there is none."""
    first_is_blank: bool
    rows: int
    """Ends of lines that are not empty."""


def sections_of_records(path: str, delimiter: str) -> list[Stretches]:
    """Stretches of whole records; [] where the file is short, packed, elsewhere, or has quotes inside of values, so that
    only whoever reads it from its beginning knows where a record ends."""
    size, step = _size(path), reader.SECTION_BYTES
    blocks = [(begin, min(begin + step, size)) for begin in range(0, size, step)]
    found: list[Stretches] = []
    inside, begin, rows = False, 0, 0
    for quotes, outside, within in workers.current().each(partial(_look, path, delimiter.encode()), blocks):
        ends = within if inside else outside
        if not ends.sound:
            return []
        inside ^= bool(quotes % 2)
        if ends.first < 0:
            continue
        first = 0 if ends.first_is_blank else 1
        if begin or rows:
            found.append(Stretches(begin, ends.first, rows + first if found else None))
            begin, rows = ends.first, -first
        rows += ends.rows
    if not found or inside:
        return []
    with open(path, "rb") as file:
        file.seek(size - 1)
        rows += file.read(1) not in (b"\n", b"\r")
    joined = found[:1]
    for stretch in [*found[1:], Stretches(begin, size, rows)]:
        if stretch.rows:
            joined.append(stretch)
        else:  # empty lines alone, which are no table
            joined[-1] = replace(joined[-1], end=stretch.end)
    return joined


def _look(path: str, delimiter: bytes, block: tuple[int, int]) -> Any:
    """(quotes in a block, ends of records if it begins outside of them, if it begins inside), once."""
    begin, end = block
    lead = min(begin, 2)
    with open(path, "rb") as file:
        file.seek(begin - lead)
        data = file.read(end - begin + lead + 1)
    length = end - begin
    values = np.frombuffer(b"\n" * (2 - lead) + data + b"\n" * (begin - lead + len(data) == end), np.uint8)
    returns = 2 + np.flatnonzero(values[2 : 2 + length] == RETURN) if b"\r" in data else np.empty(0, np.int64)
    sound = bool((values[returns + 1] == LINE_FEED).all())
    quotes = 2 + np.flatnonzero(values[2 : 2 + length] == QUOTE) if b'"' in data else np.empty(0, np.int64)
    feeds = 2 + np.flatnonzero(values[2 : 2 + length] == LINE_FEED)
    between = np.searchsorted(quotes, feeds) % 2
    at = begin - 2
    outside = _ends(
        values, feeds[between == 0], sound and _is_sound(values, quotes[::2], quotes[1::2], delimiter, at), at
    )
    inside = _ends(
        values, feeds[between == 1], sound and _is_sound(values, quotes[1::2], quotes[::2], delimiter, at), at
    )
    yield len(quotes), outside, inside


def _ends(values: np.ndarray, feeds: np.ndarray, sound: bool, at: int) -> _Ends:
    before = values[feeds - 1]
    blank = (before == LINE_FEED) | ((before == RETURN) & (values[feeds - 2] == LINE_FEED))
    if not len(feeds):
        return _Ends(sound, -1, False, 0)
    return _Ends(sound, at + int(feeds[0]) + 1, bool(blank[0]), len(feeds) - int(blank.sum()))


def _is_sound(values: np.ndarray, opening: np.ndarray, closing: np.ndarray, delimiter: bytes, at: int) -> bool:
    ends = [*delimiter, LINE_FEED, RETURN, QUOTE]
    begins = np.isin(values[opening - 1], ends) | (opening + at <= 3)  # behind a byte order mark
    return bool(begins.all() and np.isin(values[closing + 1], ends).all())
