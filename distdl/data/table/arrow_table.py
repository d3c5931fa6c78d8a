"""Arrow files and streams, and Feather, which is an Arrow file by now: told apart by their first bytes."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from distdl.data.inputs import file_system, open_bytes, unreachable
from distdl.data.store import is_remote, shown
from distdl.data.table.files import open_files
from distdl.data.table.reader import Table, grouped
from distdl.data.table.typed import TypedTable, pieces
from distdl.errors import InputError

ENDINGS = (".arrow", ".feather", ".ipc", ".arrows")
FILE, FEATHER_1, STREAM, STREAM_END = b"ARROW1", b"FEA1", b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\0\0\0\0"
LARGE_BATCH_BYTES = 64 << 20
"""A file with larger ones is mapped, so that a batch need not fit into memory; reading is faster, and holds less."""


def open_arrow(path: str) -> Table:
    """The table of a file, or of all files of a folder or a pattern."""
    return open_files(path, ENDINGS, ArrowTable)


class ArrowTable(TypedTable):
    """An Arrow file or stream. InputError: it is neither, or it is damaged."""

    def __init__(self, location: str):
        self.location, self._mapped = location, False
        self.rows: int | None = None
        self._batches: list[int] = []
        """Those of a section; [] is all."""
        with open_bytes(location) as file:
            first = file.read(8)
        self._is_file = first.startswith(FILE)
        if not self._is_file and not first.startswith(STREAM):
            raise self._other(first)
        try:
            with self._source() as source, self._reader(source, None) as reader:
                schema = reader.schema
                if self._is_file:
                    self._mapped = source.size() > LARGE_BATCH_BYTES * max(1, reader.num_record_batches)
            ended = self._is_file or self._ends()
        except FileNotFoundError as error:
            raise unreachable(location, error) from None
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{shown(location)} is not a whole Arrow file: {shown(error)}",
                fix="whoever wrote it may have been stopped before its end: write it again",
            ) from error
        super().__init__(location, schema)
        self._fields = {name: i for i, name in enumerate(schema.names)}
        if not ended:
            self.notes.append(f"{self.path}: the stream has no end mark: rows may be missing if its writer was stopped")

    def _other(self, first: bytes) -> InputError:
        path = shown(self.location)
        if first.startswith(FEATHER_1):
            return InputError(
                f"{path} is a Feather file of version 1, which is not read any more",
                fix="pyarrow.feather.write_feather(pyarrow.feather.read_table(old), new)",
            )
        known = {
            b"PAR1": "is a Parquet file: use the source parquet",
            b"\x1f\x8b": "is packed by gzip: unpack it first",
        }
        what = next((text for magic, text in known.items() if first.startswith(magic)), "")
        return InputError(
            f"{path} {what}" if what else f"{path} is no Arrow file: it begins with the bytes {first[:6].hex(' ')}",
            allowed="an Arrow file (ARROW1), an Arrow stream, a Feather file of version 2",
        )

    def cut(self) -> list[Table]:
        """Some batches each, of a file; a stream is read from its beginning only."""
        try:
            rows, size = self._rows_of_batches() if self._is_file else [], os.path.getsize(self.location)
        except (pa.ArrowException, OSError):  # of a store; or damaged, which is told where it is read
            return [self]
        found: list[Table] = []
        for batches in grouped([size // len(rows)] * len(rows) if rows else []):
            section = copy.copy(self)
            section._batches = batches
            section.first_row, section.rows = sum(rows[: batches[0]]), sum(rows[i] for i in batches)
            found.append(section)
        return found if len(found) > 1 else [self]

    def _rows_of_batches(self) -> list[int]:
        with pa.memory_map(self.location) as source, self._reader(source, [0]) as reader:
            return [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]

    def _source(self) -> Any:
        if is_remote(self.location):
            filesystem, inside = file_system(self.location)
            return filesystem.open_input_file(inside)
        return pa.memory_map(self.location) if self._mapped else pa.OSFile(self.location)

    def _reader(self, source: Any, columns: list[int] | None) -> Any:
        options = pa.ipc.IpcReadOptions(included_fields=columns, use_threads=False)
        return (
            pa.ipc.open_file(source, options=options) if self._is_file else pa.ipc.open_stream(source, options=options)
        )

    def _ends(self) -> bool:
        with self._source() as source:
            source.seek(max(0, source.size() - len(STREAM_END)))
            return bool(source.read() == STREAM_END)

    def _stored_batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        fields = sorted(self._fields[name] for name in columns)
        for batch in self._file_batches(fields) if self._is_file else self._stream_batches(fields):
            batch.validate(full=True)  # offsets that lead out of a damaged buffer
            yield from pieces(batch)

    def _file_batches(self, fields: list[int]) -> Iterator[pa.RecordBatch]:
        with self._source() as source, self._reader(source, fields) as reader:
            for i in self._batches or range(reader.num_record_batches):
                yield reader.get_batch(i)

    def _stream_batches(self, fields: list[int]) -> Iterator[pa.RecordBatch]:
        with self._source() as source, self._reader(source, fields) as reader:
            yield from reader
