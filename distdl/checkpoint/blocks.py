"""A file whose bytes are compared, as they are read, with the checksums that its manifest has of them.

The unit is a block (`stream.BLOCK`): a reader of a part takes the blocks that the part touches, and no others. A file of
version 1 has one checksum for the whole: there the first read takes all of it.
"""

from __future__ import annotations

import json
import math
import os
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash

from distdl.checkpoint.layout import Damaged, checksum, refuse_link
from distdl.checkpoint.stream import DTYPES

_AT_ONCE = 16 << 20
"""Bytes that are read in one go."""
_KEPT = 16
"""Blocks that are kept: small tensors lie side by side in one, and are not asked for in their order."""
_HEX = 16
"""Letters of a checksum."""


class Entry(NamedTuple):
    """A tensor of a .safetensors file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    begin: int
    """Of its bytes in the file."""


class BlockFile:
    """One .safetensors file of a checkpoint. Raises Damaged where it is not what was written."""

    def __init__(self, folder: Path, name: str, meta: dict[str, Any], block: int) -> None:
        self.folder, self.name, self.size = folder, name, int(meta["bytes"])
        self.bytes_read = 0
        self.block, self._sums, self._whole = block, meta.get("blocks"), meta["xxh3"]
        self._kept: OrderedDict[int, memoryview] = OrderedDict()
        refuse_link(folder, name)
        try:
            self._file = os.open(folder / name, os.O_RDONLY)
        except FileNotFoundError:
            raise Damaged(folder, f"is not whole: {name} is missing") from None
        self.close = weakref.finalize(self, os.close, self._file)
        """Lets go of the file, which nobody needs to."""
        if os.fstat(self._file).st_size != self.size:
            raise self._damaged()
        if self._sums is None:
            self.bytes_read += self.size
            if checksum(folder / name) != self._whole:
                raise self._damaged()
        elif len(self._sums) != _HEX * math.ceil(self.size / block):
            raise self._damaged("the manifest has not a checksum for each of its blocks")
        self.entries = self._header()

    def read(self, begin: int, into: memoryview) -> None:
        """Fills `into` with the bytes from `begin` on."""
        at, end = begin, begin + len(into)
        while at < end:
            block, skipped = divmod(at, self.block)
            length = min(self.block, self.size - block * self.block)
            if skipped or end - at < length:
                part = self._edge(block)[skipped : skipped + end - at]
                into[at - begin : at - begin + len(part)] = part
            else:
                whole = min(end, at + max(_AT_ONCE, self.block))
                whole -= whole % self.block if whole < self.size else 0
                part = into[at - begin : whole - begin]
                self._take(at, part)
            at += len(part)

    def _edge(self, block: int) -> memoryview:
        """A block of which a part is asked for."""
        if block not in self._kept:
            begin = block * self.block
            content = memoryview(bytearray(min(self.block, self.size - begin)))
            self._take(begin, content)
            self._kept[block] = content
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(block)
        return self._kept[block]

    def _take(self, begin: int, into: memoryview) -> None:
        """Reads whole blocks and compares them."""
        done = 0
        while done < len(into):
            count = os.preadv(self._file, [into[done:]], begin + done)
            if not count:
                raise self._damaged()
            done += count
        self.bytes_read += done
        if (sums := self._sums) is None:
            return
        for at in range(0, done, self.block):
            place = (begin + at) // self.block * _HEX
            if xxhash.xxh3_64_hexdigest(into[at : at + self.block]) != sums[place : place + _HEX]:
                raise self._damaged()

    def _header(self) -> dict[str, Entry]:
        length, begin = bytearray(8), 0
        if self.size >= 8:
            self.read(0, memoryview(length))
            begin = 8 + int.from_bytes(length, "little")
        if not 8 < begin <= self.size:
            raise self._damaged("it is no .safetensors file")
        text = bytearray(begin - 8)
        self.read(8, memoryview(text))
        try:
            header = json.loads(text)
            header.pop("__metadata__", None)
            return {name: self._entry(place, begin) for name, place in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._damaged("it is no .safetensors file") from None

    def _entry(self, place: dict[str, Any], begin: int) -> Entry:
        shape, dtype, (first, last) = tuple(map(int, place["shape"])), DTYPES[place["dtype"]], place["data_offsets"]
        if min(shape, default=0) < 0 or last - first != math.prod(shape) * dtype.itemsize:
            raise ValueError
        if not 0 <= first <= last <= self.size - begin:
            raise ValueError
        return Entry(shape, dtype, begin + first)

    def _damaged(self, why: str = "its checksum differs") -> Damaged:
        return Damaged(self.folder, f"is damaged: {self.name} is not what was written ({why})")
