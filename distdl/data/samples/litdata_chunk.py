"""A chunk of litdata -> its items, packed in any of the ways that the layout has."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from distdl.data.raw import READ_BYTES
from distdl.errors import InputError

FRAMED = b"LDFZ01\0\0"
"""Items packed by the hundreds: a table of frames, then the frames."""
ARROW = b"LDARW01\0"
"""The last bytes of a chunk whose rows lie in an Arrow file behind the items."""
IN_MEMORY_BYTES = 64 << 20
"""Of an unpacked chunk; a larger one is unpacked to a temporary file."""
LARGEST_BYTES = 1 << 30
"""Of what must be unpacked at once."""


@dataclass(frozen=True)
class Chunk:
    """A file as index.json describes it."""

    path: Path
    items: int
    size_bytes: int
    """Before the whole file is packed."""
    compression: str
    level: str
    """What is packed: sample, batch, or the whole chunk."""


def open_chunk(chunk: Chunk) -> Iterator[bytes | dict[str, Any]]:
    """The items one after another: bytes, or a row of plain values. InputError: the chunk is damaged."""
    if not chunk.path.is_file():
        raise InputError(f"there is no file {chunk.path}, which index.json names", fix="copy it, too")
    if chunk.compression.partition(":")[0] not in ("", "zstd"):
        raise InputError(f"{chunk.path} is packed as {chunk.compression!r}", allowed="zstd")
    try:
        with _unpacked(chunk) as file:
            yield from _items(chunk, file)
    except (struct.error, ValueError, OSError, pa.ArrowException) as error:
        raise InputError(f"{chunk.path} is damaged: {error}", fix="copy it again") from error


def _unpacked(chunk: Chunk) -> BinaryIO:
    """The file, of the size that is recorded."""
    file: Any = open(chunk.path, "rb")  # noqa: SIM115 - the caller closes it
    if chunk.compression and chunk.level in ("", "chunk") and chunk.path.name.endswith(".zstd.bin"):
        file.close()
        file = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES)  # noqa: SIM115 - the caller closes it
        with pa.CompressedInputStream(str(chunk.path), "zstd") as stream:
            while (block := stream.read(READ_BYTES)) and file.tell() <= chunk.size_bytes:
                file.write(block)
    size = file.seek(0, 2)
    if size != chunk.size_bytes:
        file.close()
        raise ValueError(f"it has {size:,} bytes, index.json says {chunk.size_bytes:,}")
    file.seek(0)
    return file


def _items(chunk: Chunk, file: BinaryIO) -> Iterator[bytes | dict[str, Any]]:
    head = file.read(len(FRAMED))
    if head == FRAMED:
        yield from _framed(chunk, file)
        return
    (n,) = struct.unpack_from("<I", head)
    if n != chunk.items or 4 * (n + 2) > chunk.size_bytes:  # before so many bytes are asked for
        raise ValueError(f"it says that it holds {n:,} items, index.json {chunk.items:,}")
    file.seek(4)
    places = np.frombuffer(file.read(4 * (n + 1)), "<u4").astype(np.int64)
    if len(places) != n + 1 or places[0] != 4 * (n + 2) or (np.diff(places) < 0).any() or places[-1] > chunk.size_bytes:
        raise ValueError("the places of its items do not follow each other")
    if places[-1] < chunk.size_bytes:
        yield from _arrow_rows(chunk, file, int(places[-1]))
        return
    for size in np.diff(places).tolist():
        content = file.read(size)
        yield _inflated(content) if chunk.compression and chunk.level == "sample" else content


def _inflated(content: bytes) -> bytes:
    with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as stream:
        unpacked: bytes = stream.read(LARGEST_BYTES + 1)
    if len(unpacked) > LARGEST_BYTES:
        raise ValueError(f"an item unpacks to more than {LARGEST_BYTES:,} bytes")
    return unpacked


def _framed(chunk: Chunk, file: BinaryIO) -> Iterator[bytes]:
    version, _, n, _, frames = struct.unpack("<HHIII", file.read(16))
    if version != 1 or n != chunk.items or frames > n or 4 * (n + 7) > chunk.size_bytes:
        raise ValueError(f"frames of version {version} with {n:,} items, index.json says {chunk.items:,}")
    places = np.frombuffer(file.read(4 * (n + 1)), "<u4").astype(np.int64)
    table = [struct.unpack("<IIQII", file.read(24)) for _ in range(frames)]
    expected = 0
    for first, count, at, packed_bytes, size in table:
        if (
            first != expected
            or first + count > n
            or size > LARGEST_BYTES
            or places[first + count] - places[first] != size
        ):
            raise ValueError(f"the frame of item {first} does not fit its items")
        if at + packed_bytes > chunk.size_bytes:
            raise ValueError(f"the frame of item {first} lies behind the end")
        file.seek(at)
        content = pa.decompress(file.read(packed_bytes), size, "zstd", asbytes=True)
        begin = int(places[first])
        for i in range(first, first + count):
            yield content[int(places[i]) - begin : int(places[i + 1]) - begin]
        expected = first + count
    if expected != n:
        raise ValueError(f"its frames hold {expected:,} of {n:,} items")


def _arrow_rows(chunk: Chunk, file: BinaryIO, start: int) -> Iterator[dict[str, Any]]:
    file.seek(chunk.size_bytes - 12)
    size, magic = struct.unpack("<I8s", file.read(12))
    if magic != ARROW or chunk.size_bytes - 12 - size != start:
        raise ValueError("it goes on behind its last item")
    file.seek(start)
    reader = pa.ipc.open_file(pa.BufferReader(file.read(size)))
    rows = 0
    for i in range(reader.num_record_batches):
        for row in reader.get_batch(i).to_pylist():
            rows += 1
            yield row
    if rows != chunk.items:
        raise ValueError(f"it has {rows:,} rows, index.json says {chunk.items:,}")
