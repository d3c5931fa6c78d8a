"""An array of numbers of a MATLAB file of version 5 to 7, read in pieces: the file has it column by column, so that some of
its rows are a run of numbers in each column."""

from __future__ import annotations

import math
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from distdl.data.formats._mat5 import PIECE_BYTES, TAG_BYTES, Place, Unpacked, damaged

HELD_BYTES = 4 << 20
"""Of an array that are read at a time, at least: short runs are slow."""


class Pieces:
    """The array at a place of a file. One that is compressed is unpacked once, to a temporary file where it is large."""

    names: list[str] = []

    def __init__(self, file: BinaryIO, place: Place) -> None:
        self._file, self._place = file, place
        self.shape, self.dtype = place.sizes, place.dtype
        self._unpacked: Any = None

    def blocks(self, axis: int, rows: int) -> Iterator[np.ndarray]:
        """ValueError or zlib.error: the file is not what it was when it was looked at."""
        total = self.shape[axis]
        row_bytes = max(1, self._place.bytes // max(1, total))
        step = rows * max(1, HELD_BYTES // (row_bytes * rows))  # no piece but the last is shorter
        for start in range(0, total, step):
            part = self._part(axis, start, min(total, start + step))
            for at in range(0, part.shape[axis], rows):
                yield part[(slice(None),) * axis + (slice(at, at + rows),)]

    def _part(self, axis: int, start: int, stop: int) -> np.ndarray:
        """A slice along an axis."""
        stored = np.dtype(self._place.stored)
        inner, outer = math.prod(self.shape[:axis]), math.prod(self.shape[axis + 1 :])
        run, begin = inner * (stop - start), inner * start
        found = np.empty((outer, run), stored)
        source, at = self._numbers()
        for i in range(outer if run else 0):
            source.seek(at + stored.itemsize * (i * inner * self.shape[axis] + begin))
            _fill(source, memoryview(found[i].view(np.uint8)))
        reverse = (*reversed(self.shape[axis + 1 :]), stop - start, *reversed(self.shape[:axis]))
        return found.reshape(reverse).transpose().astype(self.dtype, copy=False)

    def _numbers(self) -> tuple[Any, int]:
        """A file, and the place in it where the numbers begin."""
        place = self._place
        if not place.packed_bytes:
            return self._file, place.at
        if self._unpacked is None:
            try:
                self._unpacked = self._unpack()
            except (ValueError, zlib.error) as error:
                raise damaged(place.variable, error) from error
        return self._unpacked, 0

    def _unpack(self) -> Any:
        """The numbers of a compressed variable, which is compared with its checksum."""
        self._file.seek(self._place.variable + TAG_BYTES)
        content, left = Unpacked(self._file, self._place.packed_bytes), self._place.bytes
        content.skip(self._place.at)
        unpacked = tempfile.SpooledTemporaryFile(HELD_BYTES)  # noqa: SIM115 - it lives as long as the array
        while left:
            if not (some := content.take(min(left, PIECE_BYTES))):
                raise ValueError("it ends early")
            unpacked.write(some)
            left -= len(some)
        content.end()
        return unpacked


def _fill(source: Any, buffer: memoryview) -> None:
    while len(buffer):
        if not (count := source.readinto(buffer)):
            raise ValueError("it ends early")
        buffer = buffer[count:]
