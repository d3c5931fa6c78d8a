"""Read one split of a data set: memory-mapped shards, one NumPy gather per call, checksums on first touch.

A fixed-shape column is a constant-stride run of bytes in every record batch. Per column there is one NumPy view that
spans the address range of all mapped buffers; a gather is one fancy index into it, one copy per row and no Python per
row. Only addresses of real rows are ever indexed, so the gaps between two maps are never touched.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from distdl.data.manifest import VARIABLE, Column, Manifest, Shard, Split, read_manifest
from distdl.data.messages import Compressed, record_batches
from distdl.data.native import native
from distdl.data.store import cached_shard, is_remote, local_file
from distdl.data.write import arrow_schema
from distdl.errors import DataCorrupt, InputError

VERIFY = ("first_touch", "open", "off")
Take = Callable[[tuple[int, ...], str], np.ndarray]
MAX_VIEW_BYTES = 1 << 62  # NumPy refuses arrays, even overlapping views, whose elements add up to more


def shard_path(location: str | os.PathLike[str], shard: Shard, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The local file of a shard, in the folder or the cached copy of a remote one. DataCorrupt: a wrong size."""
    if is_remote(location):
        cache = Path(cache_dir) if cache_dir is not None else None
        return cached_shard(os.fspath(location), shard.file, shard.bytes, shard.checksum, cache)
    path = local_file(location, shard.file)
    if not path.is_file():
        raise DataCorrupt(f"the shard {path} is missing{_cure(location)}")
    size_bytes = path.stat().st_size
    if size_bytes != shard.bytes:  # before the map: touching a map beyond the end of its file kills the process
        kind = "truncated" if size_bytes < shard.bytes else "too long"
        raise DataCorrupt(
            f"the shard {path} is {kind}: it has {size_bytes:,} bytes, the manifest says {shard.bytes:,}"
            f"{_cure(location)}"
        )
    return path


def _cure(location: str | os.PathLike[str]) -> str:
    return (
        f"\n    fix: `distdl data verify {os.fspath(location)}` lists all damage; copy the data set again or "
        "prepare it again with `distdl data prepare ... --overwrite`"
    )


class MappedShard:
    """One memory-mapped shard: per record batch the buffers of its columns. DataCorrupt: it is not what was written."""

    def __init__(self, path: Path, shard: Shard, manifest: Manifest, location: str):
        self.shard, self.location, self.rows_per_batch = shard, location, manifest.rows_per_batch
        self._map = pa.memory_map(str(path)).read_buffer()
        try:
            reader = pa.ipc.open_file(pa.BufferReader(self._map))
            if not reader.schema.equals(arrow_schema(manifest.columns)):
                raise DataCorrupt(f"the columns in the shard {path} are not those of the manifest{_cure(location)}")
            batches = record_batches(self._map, reader.schema)
        except Compressed as error:
            raise self.corrupt(error.args[0], "it is compressed, which no shard is, and is not unpacked") from None
        except (pa.ArrowException, OSError) as error:
            raise DataCorrupt(f"the shard {path} is corrupt, Arrow cannot read it: {error}{_cure(location)}") from error
        expected = [self._rows(i) for i in range(len(shard.batches))]
        if [batch.num_rows for batch in batches] != expected:
            raise DataCorrupt(
                f"the record batches in the shard {path} have other sizes than the manifest says{_cure(location)}"
            )
        self.buffers = [self._checked_buffers(i, batch, manifest.columns) for i, batch in enumerate(batches)]
        self._batches = batches  # the buffers' owners

    def _rows(self, i: int) -> int:
        return min(self.rows_per_batch, self.shard.rows - i * self.rows_per_batch)

    def _checked_buffers(self, i: int, batch: pa.RecordBatch, columns: dict[str, Column]) -> dict[str, list[pa.Buffer]]:
        """The buffers of a batch's columns, cut to the bytes that count and proven to lie inside the map."""
        result: dict[str, list[pa.Buffer]] = {}
        for (name, column), array in zip(columns.items(), batch.columns, strict=True):
            storage = array.storage if isinstance(array, pa.ExtensionArray) else array
            used = storage.buffers()[1:] if column.dtype == VARIABLE else storage.buffers()[-1:]
            sizes = [8 * (self._rows(i) + 1)] if column.dtype == VARIABLE else [self._rows(i) * column.row_bytes]
            for buffer, size_bytes in zip(used, sizes, strict=False):
                if buffer is None or buffer.size < size_bytes:
                    raise self.corrupt(i, f"the column '{name}' is too short")
            buffers = [used[0].slice(0, sizes[0])]
            if (
                column.dtype == VARIABLE
            ):  # the last offset is the number of bytes; checked where records are cut out, too
                total = int(np.frombuffer(buffers[0], np.int64)[-1])
                available = used[1].size if used[1] is not None else 0
                if not 0 <= total <= available:
                    raise self.corrupt(i, f"the column '{name}' points outside its data")
                buffers.append(used[1].slice(0, total) if used[1] is not None else pa.py_buffer(b""))
            for buffer in buffers:
                inside = (
                    self._map.address <= buffer.address
                    and buffer.address + buffer.size <= self._map.address + self._map.size
                )
                if buffer.size and not inside:
                    raise self.corrupt(i, f"the column '{name}' lies outside the file")
            result[name] = buffers
        return result

    def verify(self, i: int) -> None:
        """Compare record batch i with its checksum. DataCorrupt."""
        digest = xxhash.xxh3_64()
        for buffers in self.buffers[i].values():
            for buffer in buffers:
                digest.update(buffer)
        if digest.hexdigest() != self.shard.batches[i]:
            raise self.corrupt(i, f"its checksum is {digest.hexdigest()}, the manifest says {self.shard.batches[i]}")

    def corrupt(self, i: int, what: str) -> DataCorrupt:
        first = i * self.rows_per_batch
        return DataCorrupt(
            f"the shard {self.shard.file} of {self.location} is corrupt in record batch {i} (rows {first:,} to "
            f"{first + self._rows(i) - 1:,} of that shard): {what}{_cure(self.location)}"
        )


def stored_rows(
    location: str,
    manifest: Manifest,
    split: str,
    cache_dir: str | os.PathLike[str] | None = None,
    columns: Sequence[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """The rows of a split in their order, a record batch at a time, each compared with its checksum: per column (of
    `columns`; None: all) an array (n, *shape), which is a view of the file, or a list of n `bytes`. One shard is mapped
    at a time. DataCorrupt."""
    wanted = {name: manifest.columns[name] for name in (manifest.columns if columns is None else columns)}
    for shard in manifest.split(split).shards:
        mapped = MappedShard(shard_path(location, shard, cache_dir), shard, manifest, location)
        for i, buffers in enumerate(mapped.buffers):
            mapped.verify(i)
            yield {
                name: _records(*buffers[name])
                if column.dtype == VARIABLE
                else np.frombuffer(buffers[name][0], column.dtype).reshape(-1, *column.shape)
                for name, column in wanted.items()
            }


def _records(offsets: pa.Buffer, data: pa.Buffer) -> list[bytes]:
    places, content = np.frombuffer(offsets, np.int64).tolist(), memoryview(data)
    return [bytes(content[start:end]) for start, end in itertools.pairwise(places)]


class _FixedColumn:
    """A gather over all record batches, of 2^shift rows each, of one fixed-shape column."""

    def __init__(self, column: Column, buffers: list[pa.Buffer], shift: int):
        self.column, self._shift = column, shift
        self._begins = np.array([buffer.address for buffer in buffers], np.uint64)
        addresses = self._begins.astype(np.int64)
        row_bytes = column.row_bytes
        step = math.gcd(8, row_bytes, *(addresses - addresses[0]).tolist())  # coarser steps allow a wider address range
        low, high = int(addresses.min()), max(buffer.address + buffer.size for buffer in buffers)
        span_bytes = high - low
        self._step, self._offsets = step, addresses - low
        self._view: np.ndarray | None = None
        if span_bytes // step * row_bytes < MAX_VIEW_BYTES:
            memory = (ctypes.c_uint8 * span_bytes).from_address(low)
            self._view = np.ndarray(((span_bytes - row_bytes) // step + 1,), f"V{row_bytes}", memory, strides=(step,))
        else:  # maps too far apart for one view: one view per record batch
            self._parts = [np.frombuffer(buffer, f"V{row_bytes}") for buffer in buffers]

    def gather(self, ids: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Rows, in `out` where given: (n, *shape), contiguous."""
        column = self.column
        found = np.empty((len(ids), *column.shape), column.dtype) if out is None else out
        if fast := native():
            fast.gather(found, self._begins, np.ascontiguousarray(ids), self._shift, column.row_bytes)
            return found
        batches, rows = ids >> self._shift, ids & ((1 << self._shift) - 1)
        whole: np.ndarray = np.ndarray((len(ids),), f"V{column.row_bytes}", found)
        if self._view is not None:
            whole[:] = self._view[(self._offsets[batches] + rows * column.row_bytes) // self._step]
        else:
            for batch in np.unique(batches).tolist():
                whole[batches == batch] = self._parts[batch][rows[batches == batch]]
        return found


class _VariableColumn:
    """Records of varying length: offsets and bytes per record batch, cut out one by one."""

    def __init__(self, buffers: list[list[pa.Buffer]], shift: int):
        self._shift = shift
        self._offsets = [np.frombuffer(offsets, np.int64) for offsets, _ in buffers]
        self._data = [memoryview(data) for _, data in buffers]

    def gather(self, ids: np.ndarray) -> list[bytes]:
        batches, rows = ids >> self._shift, ids & ((1 << self._shift) - 1)
        found = []
        for batch, row in zip(batches.tolist(), rows.tolist(), strict=True):
            start, end = self._offsets[batch][row : row + 2].tolist()
            found.append(bytes(self._data[batch][start:end]))
        return found


class Dataset:
    """One split of a data set, read by row number. Safe to use from several threads.

    `path_or_uri`: the folder of the data set. `split`: such as "train". `verify`: "first_touch" compares the checksum
    of a record batch before its first row is handed out, "open" compares all of them now, "off" none. `cache_dir`:
    where remote shards are copied to, by default $DISTDL_CACHE or ~/.cache/distdl. `verify_again_bytes_per_s`: how fast
    what was verified is compared again, in turn, while rows are handed out; 0: never. `read_as`: column -> the NumPy type
    that it is handed out in, where not as it is stored. InputError: no such data set or split. DataCorrupt: a file is
    missing, has a wrong size or wrong bytes.
    """

    def __init__(
        self,
        path_or_uri: str | os.PathLike[str],
        split: str,
        verify: str = "first_touch",
        cache_dir: str | os.PathLike[str] | None = None,
        verify_again_bytes_per_s: float = 0.0,
        read_as: Mapping[str, str] | None = None,
        manifest: Manifest | None = None,
    ):
        if verify not in VERIFY:
            raise InputError(f"verify is {verify!r}", allowed=", ".join(VERIFY))
        self.location, self.split, self.read_as = os.fspath(path_or_uri), split, dict(read_as or {})
        self.cache_dir = cache_dir
        self.manifest: Manifest = manifest or read_manifest(self.location)
        part: Split = self.manifest.split(split)
        self.rows, self.columns, self.fingerprint = part.rows, self.manifest.columns, self.manifest.fingerprint
        self._shards = [
            MappedShard(shard_path(self.location, shard, cache_dir), shard, self.manifest, self.location)
            for shard in part.shards
        ]
        self._batches = [(shard, i) for shard in self._shards for i in range(len(shard.buffers))]
        self._shift = self.manifest.rows_per_batch.bit_length() - 1
        self._readers = {name: self._reader(name, column) for name, column in self.columns.items()}
        self._verified = np.full(len(self._batches), verify == "off")
        self._lock = threading.Lock()
        if verify == "open":
            self._verify(range(len(self._batches)))
        self._unverified = int((~self._verified).sum())
        self._again = _Again(self, verify_again_bytes_per_s) if verify_again_bytes_per_s and verify != "off" else None

    def __len__(self) -> int:
        return self.rows

    def gather(
        self, indices: np.ndarray | list[int], columns: Sequence[str] | None = None, take: Take = np.empty
    ) -> dict[str, Any]:
        """The rows with these numbers, (n,) integers in any order: per column (of `columns`; None: all) an array
        (n, *shape) of its own, in memory that `take(shape, dtype)` gives, or a list of n `bytes`. IndexError: a number
        outside the split. DataCorrupt: the stored bytes are damaged."""
        indices = np.asarray(indices, np.int64)
        if len(indices) and (indices.min() < 0 or indices.max() >= self.rows):
            raise IndexError(f"row numbers {indices.min()} to {indices.max()} of a split of {self.rows} rows")
        if self._unverified:
            self._verify(np.unique(indices >> self._shift).tolist())
        if self._again:
            self._again.look(len(indices))
        return {name: self._gathered(name, indices, take) for name in (columns or self._readers)}

    def _gathered(self, name: str, indices: np.ndarray, take: Take) -> Any:
        reader, other = self._readers[name], self.read_as.get(name)
        if isinstance(reader, _VariableColumn):
            return reader.gather(indices)
        shape = (len(indices), *reader.column.shape)
        if other is None or other == reader.column.dtype:
            return reader.gather(indices, take(shape, reader.column.dtype))
        found = take(shape, other)
        found[...] = reader.gather(indices)
        return found

    def _reader(self, name: str, column: Column) -> _FixedColumn | _VariableColumn:
        buffers = [shard.buffers[i][name] for shard, i in self._batches]
        if column.dtype == VARIABLE:
            return _VariableColumn(buffers, self._shift)
        return _FixedColumn(column, [b for (b,) in buffers], self._shift)

    def _verify(self, batches: Iterable[int]) -> None:
        for batch in batches:
            if self._verified[batch]:
                continue
            with self._lock:  # a second thread that needs the same batch waits here, then finds it verified
                if not self._verified[batch]:
                    shard, i = self._batches[batch]
                    shard.verify(i)
                    self._verified[batch] = True
                    self._unverified = int((~self._verified).sum())


class _Again:
    """Compares record batches with their checksums again, all in turn, as time and what is read allow.

    A checksum that was right when a batch was first read says nothing about the hours after: the rows come from the page
    cache or the disk again at each gather, where a bit can flip. No faster than `bytes_per_s`, and no more bytes than are
    handed out, so that a small data set is not hashed for nothing.
    """

    def __init__(self, dataset: Dataset, bytes_per_s: float) -> None:
        self._dataset, self._bytes_per_s = dataset, bytes_per_s
        sizes = [sum(b.size for part in shard.buffers[i].values() for b in part) for shard, i in dataset._batches]
        self._sizes, self._row_bytes = sizes, sum(sizes) / max(dataset.rows, 1)
        self._next, self._allowance = 0, 0.0
        self._looked_s = time.monotonic()
        self._sound = np.full(len(sizes), time.time())  # when each batch was last found to be right
        self._lock = threading.Lock()

    def look(self, rows: int) -> None:
        """Spends what has come together since the last look; `rows` are handed out now. DataCorrupt: a batch changed."""
        if not self._lock.acquire(blocking=False):  # another thread is at it
            return
        try:
            now = time.monotonic()
            earned = min((now - self._looked_s) * self._bytes_per_s, rows * self._row_bytes)
            self._looked_s, self._allowance = now, min(self._allowance + earned, max(sum(self._sizes), 1))
            while self._sizes and self._allowance >= self._sizes[self._next]:
                batch, self._next = self._next, (self._next + 1) % len(self._sizes)
                self._allowance -= max(self._sizes[batch], 1)
                if self._dataset._verified[batch]:
                    self._compare(batch)
        finally:
            self._lock.release()

    def _compare(self, batch: int) -> None:
        shard, i = self._dataset._batches[batch]
        try:
            shard.verify(i)
        except DataCorrupt as error:
            clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._sound[batch]))
            raise DataCorrupt(
                f"{error}\n    it was right until {clock} at least and has changed since, on the disk or in memory: what "
                "was learned after that may be wrong,\n    so remove the checkpoints that were written later before the "
                "run is continued"
            ) from None
        self._sound[batch] = time.time()
