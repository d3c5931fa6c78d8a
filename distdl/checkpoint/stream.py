"""Tensors that are read when they are written, and .safetensors files written one tensor at a time.

A checkpoint larger than memory passes through: what is read is a mapping of the file, and at most one tensor is a copy.
The format (https://huggingface.co/docs/safetensors): 8 bytes, the header's length as a little-endian integer; the header,
JSON of name -> dtype, shape and [begin, end) within the data; the data.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distdl.errors import DataCorrupt

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Lazy:
    """A tensor that is read when it is needed."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def to(self, dtype: torch.dtype) -> Lazy:
        """The same in another dtype."""
        return self if dtype == self.dtype else replace(self, dtype=dtype, read=lambda: self.read().to(dtype))

    def t(self) -> Lazy:
        """The transpose of a matrix."""
        return replace(self, shape=self.shape[::-1], read=lambda: self.read().t().contiguous())


def whole(tensor: Tensor) -> Lazy:
    """A tensor that is there already: a small one, or a mapping of a file."""
    return Lazy(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def open_safetensors(path: Path) -> tuple[dict[str, Lazy], dict[str, str]]:
    """The tensors of a file by name, and its metadata. Raises DataCorrupt where it is not a sound one."""
    try:
        file = safe_open(str(path), framework="pt")
        tensors = {}
        for name in file.keys():  # noqa: SIM118 - not a dict
            part = file.get_slice(name)
            tensors[name] = Lazy(tuple(part.get_shape()), DTYPES[part.get_dtype()], partial(file.get_tensor, name))
        return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DataCorrupt(f"{path} is not a whole .safetensors file: {error}") from None
    except KeyError as error:
        raise DataCorrupt(f"{path} holds tensors of the unknown dtype {error}") from None


class Written(NamedTuple):
    """A file that was written."""

    xxh3: str
    """xxh3-64 of its bytes, in hexadecimal."""
    blocks: str
    """That of each BLOCK bytes, one after the other: who reads a part of it can tell that it is sound."""


BLOCK = 1 << 20
"""Bytes that have a checksum of their own: what a reader takes at the least."""


class _Sums:
    """The checksums of what is written."""

    def __init__(self) -> None:
        self._whole, self._block, self._room = xxhash.xxh3_64(), xxhash.xxh3_64(), BLOCK
        self._blocks: list[str] = []

    def add(self, content: memoryview) -> None:
        self._whole.update(content)
        while len(content):
            part, content = content[: self._room], content[self._room :]
            self._block.update(part)
            self._room -= len(part)
            if not self._room:
                self._end_block()

    def _end_block(self) -> None:
        self._blocks.append(self._block.hexdigest())
        self._block, self._room = xxhash.xxh3_64(), BLOCK

    def done(self) -> Written:
        if self._room < BLOCK:
            self._end_block()
        return Written(self._whole.hexdigest(), "".join(self._blocks))


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.flatten().view(torch.uint8).numpy().data


def write_safetensors(path: Path, tensors: Mapping[str, Lazy], metadata: Mapping[str, str] | None = None) -> Written:
    """Writes and flushes a new file, one tensor at a time. Returns its checksums.

    Raises OSError where the disk does not take it, DataCorrupt where a tensor is not what its source promised.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # so that all lie aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].bytes
        place = {"dtype": NAMES[tensors[name].dtype], "shape": tensors[name].shape, "data_offsets": [begin, end]}
        header[name] = place
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    sums = _Sums()
    with path.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
            sums.add(memoryview(part))
        for name in order:
            value = tensors[name].read()
            if (tuple(value.shape), value.dtype) != (tensors[name].shape, tensors[name].dtype):
                raise DataCorrupt(f"{name} is {value.dtype} {list(value.shape)}, and its source said something else")
            content = bytes_of(value.contiguous())
            file.write(content)
            sums.add(content)
        file.flush()
        os.fsync(file.fileno())
    return sums.done()
