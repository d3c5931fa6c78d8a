"""Reads tensors of a checkpoint of any version, whole or in part: the bytes that are asked for and no others, compared as
they come.

    reader = Reader(folder, read_manifest(folder))
    reader.regions("weights/head.weight")                           # where its pieces lie
    reader.read("weights/head.weight", Box((0, 8), (4, 8)))         # the rows 0 to 4, columns 8 to 16
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distdl.checkpoint.blocks import BlockFile
from distdl.checkpoint.layout import MANIFEST, Damaged, entry_name
from distdl.checkpoint.stream import DTYPES, bytes_of
from distdl.layout.boxes import Box, whole

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
_PLACE = re.compile(r"\d+:\d+(,\d+:\d+)*", re.ASCII)
_ROWS_AT_ONCE = 8 << 20
"""Bytes of rows of which columns are asked for."""


class Region(NamedTuple):
    """A piece of a tensor as it is stored."""

    box: Box
    file: str
    entry: str
    """Its name in the file."""


class Reader:
    """The tensors of one checkpoint. Files are opened when something in them is asked for; Damaged is raised where one is
    missing or not what was written."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.names: Sequence[str] = list(manifest["tensors"])
        self._tensors, self._metas = manifest["tensors"], manifest["files"]
        self._block = int(manifest.get("block", 0)) or 1
        self._files: dict[str, BlockFile] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name]["shape"])

    def dtype(self, name: str) -> torch.dtype:
        if (dtype := _DTYPES.get(self._tensors[name]["dtype"])) is None:
            raise self._wrong(name, f"is of the unknown dtype {self._tensors[name]['dtype']}")
        return dtype

    @property
    def bytes_read(self) -> int:
        """So far, checksums' blocks and files' headers included."""
        return sum(file.bytes_read for file in self._files.values())

    def close(self) -> None:
        """Lets go of the files; what is asked for afterwards opens them again."""
        while self._files:
            self._files.popitem()[1].close()

    def regions(self, name: str) -> list[Region]:
        """The pieces of a tensor, which together are all of it. Raises Damaged where the manifest has others."""
        meta, shape = self._tensors[name], self.shape(name)
        if any(type(n) is not int or n < 0 for n in shape):
            raise self._wrong(name, f"has the shape {list(shape)}")
        if "file" in meta:
            return [Region(whole(shape), meta["file"], name)]
        found = [
            Region(self._box(name, text, shape), file, entry_name(name, text))
            for file, texts in meta["pieces"].items()
            for text in texts
        ]
        if (have := sum(region.box.size for region in found)) != math.prod(shape):
            raise self._wrong(name, f"has pieces of {have:,} numbers in all, and it has {math.prod(shape):,}")
        return found

    def read(self, name: str, box: Box | None = None) -> Tensor:
        """A tensor, or a box of it, on the CPU."""
        regions = self.regions(name)
        wanted = whole(self.shape(name)) if box is None else box
        found = [(part, r, self._begin(name, r)) for r in regions if (part := wanted.common(r.box)) is not None]
        if sum(part.size for part, _, _ in found) != wanted.size:
            raise self._wrong(name, f"has no whole {wanted}: its pieces lie over each other")
        out = torch.empty(wanted.shape, dtype=self.dtype(name))
        for part, region, begin in found:
            target = out[part.within(wanted).slices]
            _copy(self._file(region.file), begin, region.box.shape, part.within(region.box), target)
        return out

    def _begin(self, name: str, region: Region) -> int:
        """Where a piece is in its file."""
        entry = self._file(region.file).entries.get(region.entry)
        if entry is None or (entry.shape, entry.dtype) != (region.box.shape, self.dtype(name)):
            raise self._wrong(name, f"is in {region.file} not as said: {region.entry} is {entry and entry[:2]}")
        return entry.begin

    def _file(self, name: str) -> BlockFile:
        if name not in self._files:
            if name not in self._metas or Path(name).name != name:
                raise self._wrong(name, "has no checksum, or lies outside the folder")
            self._files[name] = BlockFile(self.folder, name, self._metas[name], self._block)
        return self._files[name]

    def _box(self, name: str, text: str, shape: Sequence[int]) -> Box:
        ranges = [tuple(map(int, part.split(":"))) for part in text.split(",")] if _PLACE.fullmatch(text) else []
        inside = len(ranges) == len(shape) and all(a < b <= n for (a, b), n in zip(ranges, shape))
        if not inside:
            raise self._wrong(name, f"has the piece {text!r}, and the shape {list(shape)}")
        return Box(tuple(a for a, _ in ranges), tuple(b - a for a, b in ranges))

    def _wrong(self, name: str, what: str) -> Damaged:
        return Damaged(self.folder, f"is damaged: in {MANIFEST}, {name} {what}")


def _copy(file: BlockFile, begin: int, shape: tuple[int, ...], part: Box, out: Tensor) -> None:
    """A part of a tensor that lies in a file from `begin` on. Where it is no run of bytes there, it is read row by row,
    rows that are shorter than a block many at a time and with what lies between them."""
    each, rows = out.element_size(), 0
    while rows < len(shape) and part.shape[rows] == 1:
        rows += 1
    strides = [math.prod(shape[dim + 1 :]) * each for dim in range(len(shape))]
    first = begin + sum(at * stride for at, stride in zip(part.offset, strides))
    if part.shape[rows + 1 :] == shape[rows + 1 :]:
        into = out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype)
        file.read(first, bytes_of(into))
        if into is not out:
            out.copy_(into)
        return
    length, low = strides[rows], part.offset[rows]
    at_once = max(1, _ROWS_AT_ONCE // length) if length <= file.block else 1
    for row in range(0, part.shape[rows], at_once):
        count = min(at_once, part.shape[rows] - row)
        here = part.along(rows, low + row, count)
        target = out.narrow(rows, row, count)
        if count == 1 and at_once == 1:
            _copy(file, begin, shape, here, target)
            continue
        full = here
        for dim in range(rows + 1, len(shape)):
            full = full.along(dim, 0, shape[dim])
        block = torch.empty(full.shape, dtype=out.dtype)
        file.read(begin + sum(at * stride for at, stride in zip(full.offset, strides)), bytes_of(block))
        target.copy_(block[here.within(full).slices])
