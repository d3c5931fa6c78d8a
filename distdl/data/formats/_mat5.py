"""Whether a MATLAB file of version 5 to 7 is sound, before SciPy reads it: SciPy trusts what the file says of itself.

A file is a header of 128 bytes and elements, each a type, a size and its content in multiples of 8 bytes; an array is an
element of elements: flags, sizes, name, numbers. Here the types and sizes are followed and nothing is kept.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from typing import BinaryIO

HEADER_BYTES = 128
PIECE_BYTES = 1 << 20
MATRIX, COMPRESSED = 14, 15
ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}
"""Of the types of numbers."""
TEXTS = (1, 2, 3, 4, 16, 17, 18)
CELL, STRUCT, OBJECT, CHAR, SPARSE, FUNCTION, OPAQUE = 1, 2, 3, 4, 5, 16, 17
NUMBERS = range(6, 16)
MOST_LEVELS = 50


def check(file: BinaryIO) -> None:
    """ValueError or zlib.error: the file is damaged, and where."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    order = {b"IM": "<", b"MI": ">"}.get(file.read(HEADER_BYTES)[126:])
    if order is None:
        raise ValueError("its header says no order of bytes")
    while (at := file.tell()) < size:
        tag = file.read(8)
        if len(tag) < 8:
            raise ValueError(f"it ends within the element at byte {at}")
        kind, count = struct.unpack(f"{order}II", tag)
        if kind not in (MATRIX, COMPRESSED) or at + 8 + count > size:
            raise ValueError(f"the element at byte {at} has the type {kind} and {count:,} bytes, of {size - at - 8:,}")
        try:
            if kind == MATRIX:
                _Elements(_Plain(file), order).matrix(count)
            else:
                unpacked = _Unpacked(file, count)
                _Elements(unpacked, order).inner_matrix()
                unpacked.end()
        except (ValueError, zlib.error) as error:
            raise ValueError(f"the variable at byte {at} is damaged: {error}") from error
        file.seek(at + 8 + count)


class _Plain:
    """The bytes of a file as they are."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def take(self, count: int) -> bytes:
        return self._file.read(count)

    def skip(self, count: int) -> None:
        self._file.seek(count, os.SEEK_CUR)


class _Unpacked:
    """The bytes of a compressed element, a piece at a time."""

    def __init__(self, file: BinaryIO, count: int) -> None:
        self._file, self._left, self._zlib, self._have = file, count, zlib.decompressobj(), b""

    def _more(self) -> bool:
        packed = self._zlib.unconsumed_tail
        if not packed:
            packed = self._file.read(min(PIECE_BYTES, self._left))
            self._left -= len(packed)
        if not packed or self._zlib.eof:
            return False
        self._have += self._zlib.decompress(packed, PIECE_BYTES)
        return True

    def take(self, count: int) -> bytes:
        while len(self._have) < count and self._more():
            pass
        found, self._have = self._have[:count], self._have[count:]
        return found

    def skip(self, count: int) -> None:
        while count > 0:
            part = len(self.take(min(count, PIECE_BYTES)))
            if not part:
                raise ValueError("it ends early")
            count -= part

    def end(self) -> None:
        """To the end, where zlib compares its checksum."""
        while self._more():
            self._have = b""
        if not self._zlib.eof:
            raise ValueError("it ends early")


class _Elements:
    def __init__(self, content: _Plain | _Unpacked, order: str) -> None:
        self._content, self._order, self._read, self._level = content, order, 0, 0

    def inner_matrix(self) -> None:
        """An array within another element: its type and size, then itself."""
        kind, count = struct.unpack(f"{self._order}II", self._take(8))
        if kind != MATRIX:
            raise ValueError(f"an array has the type {kind}")
        self.matrix(count)

    def matrix(self, count: int) -> None:
        """The content of an array of so many bytes."""
        if count == 0:
            return
        begin = self._read
        self._level += 1
        if self._level > MOST_LEVELS:
            raise ValueError("it has too many levels")
        flags = self._ints(6, 8)
        kind, parts = flags[0] & 0xFF, 1 + (flags[0] >> 11 & 1)  # the real and the imaginary part
        if kind == OPAQUE:
            for _ in range(3):
                self._skip_one(TEXTS)
            self.inner_matrix()
        else:
            self._body(kind, parts, count)
        self._level -= 1
        if self._read - begin != count:
            raise ValueError(f"an array says that it has {count:,} bytes, and has {self._read - begin:,}")

    def _body(self, kind: int, parts: int, count: int) -> None:
        sizes = self._ints(5)
        if not 2 <= len(sizes) <= 32 or min(sizes) < 0:
            raise ValueError(f"an array has the sizes {sizes[:5]}")
        values = math.prod(sizes)
        self._skip_one(TEXTS)  # its name
        if kind in NUMBERS:
            for _ in range(parts):
                self._skip_one(ITEM_BYTES, values)
        elif kind == CHAR:
            self._skip_one(TEXTS)
        elif kind == SPARSE:
            for _ in range(2 + parts):
                self._skip_one(ITEM_BYTES)
        elif kind == FUNCTION:
            self.inner_matrix()
        elif kind in (CELL, STRUCT, OBJECT):
            if kind == OBJECT:
                self._skip_one(TEXTS)
            if kind != CELL:
                (length,) = self._ints(5, 4)
                names = self._skip_one(TEXTS)
                if length < 1 or names % length:
                    raise ValueError("the names of its fields have no common length")
                values *= names // length
            if values > count // 8:
                raise ValueError(f"it has {values:,} parts in {count:,} bytes")
            for _ in range(values):
                self.inner_matrix()
        else:
            raise ValueError(f"an array is of the class {kind}")

    def _take(self, count: int) -> bytes:
        found = self._content.take(count)
        if len(found) < count:
            raise ValueError("it ends early")
        self._read += count
        return found

    def _tag(self) -> tuple[int, int, bytes | None]:
        """Type and size of an element; its content where it is no longer than four bytes and stands in the tag."""
        tag = self._take(8)
        kind, count = struct.unpack(f"{self._order}II", tag)
        if kind >> 16:
            kind, count = kind & 0xFFFF, kind >> 16
            if count > 4:
                raise ValueError(f"a small element has {count} bytes")
            return kind, count, tag[4 : 4 + count]
        return kind, count, None

    def _ints(self, kind: int, count: int | None = None) -> tuple[int, ...]:
        """A short element of 32-bit whole numbers."""
        found, size, content = self._tag()
        if found != kind or size % 4 or size > 128 or (count is not None and size != count):
            raise ValueError(f"an element has the type {found} and {size:,} bytes")
        if content is None:
            content = self._take(-(-size // 8) * 8)[:size]
        return struct.unpack(f"{self._order}{size // 4}{'I' if kind == 6 else 'i'}", content)

    def _skip_one(self, kinds: dict[int, int] | tuple[int, ...], values: int | None = None) -> int:
        """Pass over an element of one of these types, of so many numbers; its size in bytes."""
        kind, size, content = self._tag()
        if kind not in kinds:
            raise ValueError(f"an element has the type {kind}")
        if values is not None and size != values * ITEM_BYTES[kind]:
            raise ValueError(f"{values:,} numbers have {size:,} bytes of the type {kind}")
        if content is None:
            padded = -(-size // 8) * 8
            self._content.skip(padded)
            self._read += padded
        return size
