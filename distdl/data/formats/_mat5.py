"""Whether a MATLAB file of version 5 to 7 is sound, before SciPy reads it: SciPy trusts what the file says of itself. And
where its arrays lie, so that those of numbers are read in pieces, which SciPy cannot.

A file is a header of 128 bytes and elements, each a type, a size and its content in multiples of 8 bytes; an array is an
element of elements: flags, sizes, name, numbers. Here the types and sizes are followed and nothing is kept but places.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np

HEADER_BYTES = 128
PIECE_BYTES = 1 << 20
TAG_BYTES = 8
MATRIX, COMPRESSED = 14, 15
ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}
"""Of the types of numbers."""
TEXTS = (1, 2, 3, 4, 16, 17, 18)
CELL, STRUCT, OBJECT, CHAR, SPARSE, FUNCTION, OPAQUE = 1, 2, 3, 4, 5, 16, 17
NUMBERS = range(6, 16)
MOST_LEVELS = 50
LATER_BYTES = 1 << 16
"""Of numbers in a compressed variable that are unpacked, and compared with its checksum, when they are read: once."""
LONGEST_NAME = 1 << 20
"""Bytes of the names of a structure's fields, by which these are found."""
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Type of numbers -> NumPy's, as they lie in the file: in as few bytes as hold them."""
CLASSES = dict(zip(NUMBERS, ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"), strict=True))
"""Class of an array of numbers -> NumPy's type."""


CALLED = {CELL: "cell", STRUCT: "struct", OBJECT: "object", CHAR: "char", SPARSE: "sparse", FUNCTION: "function"}
CALLED |= dict(zip(NUMBERS, ("double", "single", *(f"{sign}int{n}" for n in (8, 16, 32, 64) for sign in ("", "u")))))
CALLED |= {OPAQUE: "opaque"}
"""Class of an array -> its name in MATLAB."""


@dataclass(frozen=True)
class Place:
    """An array of a file, and where its numbers lie."""

    kind: int
    """Its class."""
    sizes: tuple[int, ...]
    variable: int
    """Place in the file of the variable that it is, or is a part of."""
    packed_bytes: int = 0
    """Of that variable; 0: it is not compressed."""
    at: int = 0
    """Place of the first number, in the file or in the unpacked variable."""
    stored: str = ""
    """Type of the numbers there; empty where it holds others than real ones."""
    logical: bool = False

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The type that MATLAB gives the numbers."""
        return np.dtype(bool if self.logical else CLASSES[self.kind])

    @property
    def called(self) -> str:
        """The name of its class."""
        return "logical" if self.logical else CALLED.get(self.kind, "")

    @property
    def bytes(self) -> int:
        return math.prod(self.sizes) * np.dtype(self.stored).itemsize


class _Later(Exception):
    """What follows is looked at when it is read."""


def check(file: BinaryIO) -> dict[str, Place]:
    """The arrays by their names, the fields of a structure by dotted paths. ValueError or zlib.error: the file is damaged,
    and where."""
    found: dict[str, Place] = {}
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
                _Elements(_Plain(file), order, Place(0, (), at, at=at + 8), found).matrix(count, "")
            else:
                unpacked = Unpacked(file, count)
                _Elements(unpacked, order, Place(0, (), at, count), found).inner_matrix("")
                unpacked.end()
        except _Later:
            pass
        except (ValueError, zlib.error) as error:
            raise damaged(at, error) from error
        file.seek(at + 8 + count)
    return found


def damaged(variable: int, error: Exception) -> ValueError:
    """What is wrong with the variable there."""
    return ValueError(f"the variable at byte {variable} is damaged: {error}")


class _Plain:
    """The bytes of a file as they are."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def take(self, count: int) -> bytes:
        return self._file.read(count)

    def skip(self, count: int) -> None:
        self._file.seek(count, os.SEEK_CUR)


class Unpacked:
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
    """The arrays of a variable, one within the other. `begin`: what is common to their places."""

    def __init__(self, content: _Plain | Unpacked, order: str, begin: Place, found: dict[str, Place]) -> None:
        self._content, self._order, self._read, self._level = content, order, 0, 0
        self._begin, self._found = begin, found

    def inner_matrix(self, path: str | None = None) -> None:
        """An array within another element: its type and size, then itself."""
        kind, count = struct.unpack(f"{self._order}II", self._take(8))
        if kind != MATRIX:
            raise ValueError(f"an array has the type {kind}")
        self.matrix(count, path)

    def matrix(self, count: int, path: str | None = None) -> None:
        """The content of an array of so many bytes. `path`: its name; '': it says it itself; None: it has none."""
        if count == 0:
            return
        begin = self._read
        self._level += 1
        if self._level > MOST_LEVELS:
            raise ValueError("it has too many levels")
        flags = self._ints(6, 8)
        kind, parts = flags[0] & 0xFF, 1 + (flags[0] >> 11 & 1)  # the real and the imaginary part
        if kind == OPAQUE:
            name = self._text().decode("ascii", "replace")
            if path := name if path == "" else path:
                self._found[path] = replace(self._begin, kind=kind)
            for _ in range(2):
                self._skip_one(TEXTS)
            self.inner_matrix()
        else:
            self._body(kind, parts, count, path, bool(flags[0] >> 9 & 1))
        self._level -= 1
        self._refuse_unless(self._read - begin, count)

    def _refuse_unless(self, found: int, promised: int) -> None:
        if found != promised:
            raise ValueError(f"an array says that it has {promised:,} bytes, and has {found:,}")

    def _body(self, kind: int, parts: int, count: int, path: str | None, logical: bool) -> None:
        sizes = self._ints(5)
        if not 2 <= len(sizes) <= 32 or min(sizes) < 0:
            raise ValueError(f"an array has the sizes {sizes[:5]}")
        values = math.prod(sizes)
        name = self._text().decode("ascii", "replace")
        path = name if path == "" else path
        if path:
            self._found[path] = replace(self._begin, kind=kind, sizes=sizes, logical=logical)
        if kind in NUMBERS:
            stored, size, content = self._one(ITEM_BYTES, values)
            if path and parts == 1:
                at = self._begin.at + self._read - (4 if content is not None else 0)
                self._found[path] = replace(self._found[path], at=at, stored=self._order + STORED[stored])
            if parts == 1 and self._level == 1 and self._begin.packed_bytes and size >= LATER_BYTES:
                self._refuse_unless(self._read + -(-size // 8) * 8 - TAG_BYTES, count)
                raise _Later
            self._pass_over(size, content)
            for _ in range(parts - 1):
                self._skip_one(ITEM_BYTES, values)
        elif kind == CHAR:
            self._skip_one(TEXTS)
        elif kind == SPARSE:
            for _ in range(2 + parts):
                self._skip_one(ITEM_BYTES)
        elif kind == FUNCTION:
            self.inner_matrix()
        elif kind in (CELL, STRUCT, OBJECT):
            self._parts(kind, values, count, path)
        else:
            raise ValueError(f"an array is of the class {kind}")

    def _parts(self, kind: int, values: int, count: int, path: str | None) -> None:
        """The arrays of a cell array or of structures."""
        if kind == OBJECT:
            self._skip_one(TEXTS)
        fields: list[str] = []
        if kind != CELL:
            (length,) = self._ints(5, 4)
            names = self._text()
            if length < 1 or len(names) % length:
                raise ValueError("the names of its fields have no common length")
            each = (names[i : i + length] for i in range(0, len(names), length))
            fields = [one.split(b"\0")[0].decode("ascii", "replace") for one in each] if path and values == 1 else []
            values *= len(names) // length
        if values > count // 8:
            raise ValueError(f"it has {values:,} parts in {count:,} bytes")
        for i in range(values):
            self.inner_matrix(f"{path}.{fields[i]}" if fields else None)

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

    def _text(self) -> bytes:
        """A name, or several."""
        kind, size, content = self._tag()
        if kind not in TEXTS or size > LONGEST_NAME:
            raise ValueError(f"a name has the type {kind} and {size:,} bytes")
        return self._take(-(-size // 8) * 8)[:size] if content is None else content

    def _one(self, kinds: dict[int, int] | tuple[int, ...], values: int | None) -> tuple[int, int, bytes | None]:
        """The tag of an element of one of these types, of so many numbers."""
        kind, size, content = self._tag()
        if kind not in kinds:
            raise ValueError(f"an element has the type {kind}")
        if values is not None and size != values * ITEM_BYTES[kind]:
            raise ValueError(f"{values:,} numbers have {size:,} bytes of the type {kind}")
        return kind, size, content

    def _pass_over(self, size: int, content: bytes | None) -> None:
        if content is None:
            padded = -(-size // 8) * 8
            self._content.skip(padded)
            self._read += padded

    def _skip_one(self, kinds: dict[int, int] | tuple[int, ...], values: int | None = None) -> None:
        """Pass over an element of one of these types, of so many numbers."""
        _, size, content = self._one(kinds, values)
        self._pass_over(size, content)
