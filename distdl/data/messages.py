"""The record batches of a shard, looked at before Arrow unpacks them.

A compressed buffer says itself how large it becomes, and Arrow allocates that: 20 kB can declare gigabytes. The shards that
distdl writes are mapped into memory and never compressed, so a compressed one is refused unread.
"""

from __future__ import annotations

import struct

import pyarrow as pa

MAGIC_BYTES = 8
"""`ARROW1` and two zeros, before the first message of a file."""


class Compressed(Exception):
    """A record batch would have to be unpacked. Its number is the first argument."""


def record_batches(file: pa.Buffer, schema: pa.Schema) -> list[pa.RecordBatch]:
    """The record batches of an Arrow file in memory, without a copy. Raises Compressed, or pyarrow's ArrowInvalid."""
    batches: list[pa.RecordBatch] = []
    for message in pa.ipc.MessageReader.open_stream(pa.BufferReader(file.slice(MAGIC_BYTES))):
        if message.type == "schema":
            continue
        if message.type != "record batch":
            raise pa.ArrowInvalid(f"a shard holds record batches, and this is a {message.type}")
        if _is_compressed(memoryview(message.metadata)):
            raise Compressed(len(batches))
        batches.append(pa.ipc.read_record_batch(message, schema))
    return batches


def _is_compressed(metadata: memoryview) -> bool:
    """Whether a message's header, a RecordBatch, has its field 3, `compression` (Arrow's Message.fbs). Arrow itself has
    proven by now that the flatbuffer is sound, and would read the same field."""
    (message,) = struct.unpack_from("<I", metadata, 0)
    (to_header,) = struct.unpack_from("<I", metadata, message + _field(metadata, message, 2))
    return _field(metadata, message + _field(metadata, message, 2) + to_header, 3) > 0


def _field(flatbuffer: memoryview, table: int, number: int) -> int:
    """Where a field lies behind its table; 0: it is not there."""
    (to_vtable,) = struct.unpack_from("<i", flatbuffer, table)
    vtable = table - to_vtable
    (size,) = struct.unpack_from("<H", flatbuffer, vtable)
    at = 4 + 2 * number
    return int(struct.unpack_from("<H", flatbuffer, vtable + at)[0]) if at < size else 0
