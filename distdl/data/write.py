"""Write a data set: chunks of rows in, checksummed Arrow shards and a manifest out, published by one rename.

Everything is written to a temporary folder beside the target (for a URI: in this machine's temporary folder). A
failure, a full disk or an interrupt removes that folder, so there is never half a data set and an older one stays
until the new is complete.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from distdl.data.bad_rows import FILE as BAD_ROWS
from distdl.data.draft import Draft
from distdl.data.manifest import (
    FILE_NAME,
    VARIABLE,
    Column,
    Manifest,
    Shard,
    Split,
    check_columns,
    check_split_name,
    to_json,
)
from distdl.data.publish import put_in_place, upload
from distdl.data.resume import JOURNAL, Begin, Journal, Left, find_left, held, rows_of, say, shard_name, sound_shards
from distdl.data.store import hash_file, is_remote, remote_file, shown
from distdl.data.summary import Summary
from distdl.data.tally import Tally
from distdl.errors import DistdlError, InputError

BATCH_BYTES = 8 << 20  # record batches of 4-16 MiB were the fastest to verify and to fetch
MAX_BATCH_ROWS = 1 << 16
SHARD_BYTES = 128 << 20
VARIABLE_ROW_BYTES = 16 << 10  # the guess for one row of a `bytes` column: a small JPEG, a page of text


def choose_rows_per_batch(columns: Mapping[str, Column]) -> int:
    """The largest power of two of rows that stays within 8 MiB and 65,536 rows."""
    row_bytes = sum(column.row_bytes or VARIABLE_ROW_BYTES for column in columns.values())
    return 1 << int(math.log2(min(MAX_BATCH_ROWS, max(1, BATCH_BYTES // row_bytes))))


def arrow_schema(columns: Mapping[str, Column]) -> pa.Schema:
    """The Arrow schema of the shards: primitives, `arrow.fixed_shape_tensor` lists, and large_binary."""
    return pa.schema([pa.field(name, _arrow_type(column), nullable=False) for name, column in columns.items()])


def _arrow_type(column: Column) -> pa.DataType:
    if column.dtype == VARIABLE:
        return pa.large_binary()
    item = pa.from_numpy_dtype(np.dtype(column.dtype))
    return pa.fixed_shape_tensor(item, column.shape) if column.shape else item


class DatasetWriter:
    """A context manager that turns chunks of rows into a data set; nothing is visible before it leaves without an
    error.

    `target`: a new local folder or URI. `columns`: name to Column. `source`, `options`: where the rows come from, for
    the manifest. `rows_per_batch`: a power of two, or None to choose. `shard_bytes`: size at which a new shard begins, or
    None for 128 MiB. `about`: the manifest's `info` and `preparation`, which may grow while rows are written. After the
    block, `manifest` is what was published. InputError: the target exists (unless `overwrite`), or the rows do not fit the
    columns. DistdlError: the disk failed.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        columns: Mapping[str, Column],
        source: str,
        options: Mapping[str, Any],
        rows_per_batch: int | None = None,
        shard_bytes: int | None = None,
        *,
        about: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ):
        check_columns(columns)
        if rows_per_batch is not None and (rows_per_batch < 1 or rows_per_batch & (rows_per_batch - 1)):
            raise InputError(f"rows_per_batch is {rows_per_batch}", allowed="a power of two")
        self.target, self.columns, self.overwrite = os.fspath(target), dict(columns), overwrite
        self.rows_per_batch = rows_per_batch or choose_rows_per_batch(columns)
        self.shard_bytes = shard_bytes or SHARD_BYTES
        self.manifest: Manifest | None = None
        self._about: dict[str, Any] = {"source": source, "options": dict(options), **(about or {})}
        self._splits: dict[str, _SplitWriter] = {}
        self._draft: Draft | None = None
        self.bad_rows = ""
        """The list of rows that were set aside, which stands beside the shards; no part of the fingerprint."""
        self.key = ""
        """Of what is prepared, where `go_on` may find some of it."""
        self._journal: Journal | None = None
        check_target(self.target, overwrite)

    def __enter__(self) -> DatasetWriter:
        try:
            if is_remote(self.target):
                self._folder = Path(tempfile.mkdtemp(prefix="distdl-prepare-"))
            else:
                target = Path(self.target).absolute()
                left = find_left(target, self.key, self.columns) if self.key else None
                self._draft = Draft(target, left.folder if left else None)
                self._folder = self._draft.folder
        except OSError as error:
            raise InputError(f"cannot write to {self.target}: {error}") from error
        return self

    def go_on(self, sections: int) -> Begin:
        """Keep a journal for raw data in so many sections, and take over what a killed preparation of the same `key` had
        written (resume.py). Before any row is written; `section_done` after those of each section."""
        if self._draft is None:  # a store: nothing is there before all is
            return Begin()
        left = find_left(Path(self.target).absolute(), self.key, self.columns)
        self._journal = Journal(self._folder, self.key, sections)
        if left is None:
            return Begin()
        with held(left) as mine:
            if not mine:
                return Begin()
            begin = self._take_over(left, sections)
            shutil.rmtree(left.folder, ignore_errors=True)
        return begin

    def _take_over(self, left: Left, sections: int) -> Begin:
        shards, loose = [], 0
        for split in sorted({*left.shards, *left.batches}):
            writer = self._splits[split] = _SplitWriter(self, self._folder, split)
            for shard in sound_shards(left, split):
                os.rename(left.folder / shard.file, self._folder / shard.file)
                writer.adopt(shard)
                shards.append(shard.file)
            if len(writer.shards) == len(left.shards.get(split, [])):
                for rows in left.unfinished(split, self.columns):
                    writer.append(rows)
                    loose += len(next(iter(rows.values())))
        begin = left.begin({split: writer.rows for split, writer in self._splits.items()})
        for rows_of_section in left.sections[: begin.section]:
            self.section_done(rows_of_section)
        say(shards, loose, begin, sections)
        return begin

    def section_done(self, rows: Mapping[str, int]) -> None:
        """The rows of one more section of the raw data are written: so many of each split."""
        if self._journal:
            self._journal.section(rows)

    def write(self, split: str, rows: Mapping[str, np.ndarray | Sequence[bytes]]) -> None:
        """Append rows to a split: every column as an array (n, *shape), or n strings of bytes for a `bytes` column."""
        if split not in self._splits:
            check_split_name(split)
            self._splits[split] = _SplitWriter(self, self._folder, split)
        try:
            self._splits[split].append(self._checked(rows))
        except OSError as error:
            raise self._failed(error) from error

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as error:
            raise self._failed(error) from error
        finally:
            for split in self._splits.values():
                split.abandon()
            if self._journal:
                self._journal.close()
            if self._draft:
                self._draft.remove()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _failed(self, error: OSError) -> DistdlError:
        return DistdlError(f"writing the data set {self.target} failed, nothing was published: {error}")

    def _checked(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        if rows.keys() != self.columns.keys():
            raise InputError(
                f"rows with the columns {sorted(rows)} do not fit the data set", allowed=str(sorted(self.columns))
            )
        checked: dict[str, Any] = {}
        for name, column in self.columns.items():
            if column.dtype == VARIABLE:
                checked[name] = list(rows[name])
                continue
            array = np.asarray(rows[name])
            if array.shape[1:] != column.shape or array.ndim == 0 or not np.can_cast(array.dtype, column.dtype, "safe"):
                raise InputError(
                    f"column '{name}' got {array.dtype} values of shape {array.shape}",
                    allowed=f"{column.dtype} of shape (rows, {', '.join(map(str, column.shape))})",
                )
            checked[name] = array
        if len({len(values) for values in checked.values()}) > 1:
            raise InputError(f"columns of unequal length: { ({k: len(v) for k, v in checked.items()}) }")
        return checked

    def _finish(self) -> None:
        splits = {name: split.finish() for name, split in sorted(self._splits.items())}
        splits = {name: split for name, split in splits.items() if split.rows}
        if not splits:
            raise InputError(f"no rows were written to {self.target}", fix="check that the source holds any data")
        about = json.loads(json.dumps(self._about))  # as the manifest will be read again
        self.manifest = Manifest(
            columns=self.columns,
            rows_per_batch=self.rows_per_batch,
            splits=splits,
            values={name: self._splits[name].tally.values() for name in splits},
            statistics={name: self._splits[name].summary.statistics() for name in splits},
            **about,
        )
        with open(self._folder / FILE_NAME, "w", encoding="utf-8") as file:
            file.write(to_json(self.manifest))
            _flush_to_disk(file)
        if self.bad_rows:
            (self._folder / BAD_ROWS).write_text(self.bad_rows, encoding="utf-8")
        if is_remote(self.target):
            upload(self._folder, self.target, self.manifest)
        else:
            check_target(self.target, self.overwrite)  # again: preparing may have taken hours
            assert self._draft is not None
            self._draft.publishable()
            if self._journal:
                (self._folder / JOURNAL).unlink()
            put_in_place(self._folder, Path(self.target).absolute(), self.overwrite)


class _SplitWriter:
    """Collects the rows of one split into record batches and the batches into shards."""

    def __init__(self, writer: DatasetWriter, folder: Path, name: str):
        self.columns, self.rows_per_batch, self.shard_bytes = writer.columns, writer.rows_per_batch, writer.shard_bytes
        self.journal, self.rows = writer._journal, 0
        self.folder, self.name, self.schema = folder, name, arrow_schema(writer.columns)
        self.shards: list[Shard] = []
        self._pending: dict[str, Any] = {
            key: [] if c.dtype == VARIABLE else np.empty((self.rows_per_batch, *c.shape), c.dtype)
            for key, c in self.columns.items()
        }
        self._filled = 0
        self._file: Any = None
        self.tally, self.summary = Tally(self.columns), Summary(self.columns)

    def append(self, rows: Mapping[str, Any]) -> None:
        count, start = len(next(iter(rows.values()))), 0
        self.rows += count
        while start < count:
            take = min(count - start, self.rows_per_batch - self._filled)
            for key, pending in self._pending.items():
                if isinstance(pending, list):
                    pending.extend(rows[key][start : start + take])
                else:
                    pending[self._filled : self._filled + take] = rows[key][start : start + take]
            self._filled += take
            start += take
            if self._filled == self.rows_per_batch:
                self._write_batch()

    def adopt(self, shard: Shard) -> None:
        """A shard that is there already, and stands next."""
        with pa.memory_map(str(self.folder / shard.file)) as source, pa.ipc.open_file(source) as file:
            for i in range(file.num_record_batches):
                numbers = rows_of(file.get_batch(i), self.columns)
                self.tally.add(numbers)
                self.summary.add(numbers, {})
        self.shards.append(shard)
        self.rows += shard.rows
        if self.journal:
            for checksum in shard.batches:
                self.journal.batch(self.name, checksum)
            self.journal.shard(self.name, shard)

    def finish(self) -> Split:
        self._write_batch()
        self._close_shard()
        return Split(sum(shard.rows for shard in self.shards), tuple(self.shards))

    def abandon(self) -> None:
        """Let go of an open file; what it holds is about to be removed."""
        if self._file is not None:
            self._file.close()

    def _write_batch(self) -> None:
        if not self._filled:
            return
        if self._file is None:
            self._file = open(self.folder / self._file_name(), "wb")  # noqa: SIM115 - it spans many calls
            self._arrow = pa.ipc.new_file(self._file, self.schema)
            self._batches: list[str] = []
            self._rows = 0
        arrays, digest, lengths = [], xxhash.xxh3_64(), {}
        for key, pending in self._pending.items():
            array, buffers = _arrow_array(self.columns[key], pending, self._filled)
            arrays.append(array)
            for buffer in buffers:
                digest.update(buffer)
            if isinstance(pending, list):
                lengths[key] = np.diff(np.frombuffer(buffers[0], np.int64, self._filled + 1))
                pending.clear()
        numbers = {key: p[: self._filled] for key, p in self._pending.items() if not isinstance(p, list)}
        self.tally.add(numbers)
        self.summary.add(numbers, lengths)
        self._arrow.write_batch(pa.record_batch(arrays, schema=self.schema))
        self._batches.append(digest.hexdigest())
        if self.journal:
            self.journal.batch(self.name, digest.hexdigest())
        self._rows += self._filled
        self._filled = 0
        if self._file.tell() >= self.shard_bytes:
            self._close_shard()

    def _file_name(self) -> str:
        return shard_name(self.name, len(self.shards))

    def _close_shard(self) -> None:
        if self._file is None:
            return
        self._arrow.close()
        _flush_to_disk(self._file)
        self._file.close()
        self._file = None
        size_bytes, checksum = hash_file(self.folder, self._file_name())
        self.shards.append(Shard(self._file_name(), self._rows, size_bytes, checksum, tuple(self._batches)))
        if self.journal:
            self.journal.shard(self.name, self.shards[-1])


def _arrow_array(column: Column, pending: Any, rows: int) -> tuple[pa.Array, list[Any]]:
    """The Arrow array of the pending rows, without a copy, and the buffers that its checksum covers."""
    if column.dtype == VARIABLE:
        array = pa.array(pending, pa.large_binary())
        return array, [array.buffers()[1], array.buffers()[2] or b""]
    values = pending[:rows].reshape(-1)
    item = pa.from_numpy_dtype(values.dtype)
    flat = pa.Array.from_buffers(item, len(values), [None, pa.py_buffer(values)])
    if not column.shape:
        return flat, [values]
    storage = pa.FixedSizeListArray.from_arrays(flat, math.prod(column.shape))
    return pa.ExtensionArray.from_storage(_arrow_type(column), storage), [values]


def check_target(target: str, overwrite: bool) -> None:
    """InputError where the target is taken, or where overwriting it would destroy something that is no data set."""
    if is_remote(target):
        filesystem, manifest_path = remote_file(target, FILE_NAME)
        if filesystem.get_file_info(manifest_path).is_file and not overwrite:
            raise InputError(
                f"{shown(target)} already holds a data set", fix="choose another target, or pass --overwrite"
            )
        return
    path = Path(target)
    if not path.exists():
        return
    contents = [entry.name for entry in path.iterdir()] if path.is_dir() else [path.name]
    if not path.is_dir() or (contents and not overwrite):
        raise InputError(
            f"{target} already exists",
            fix="choose another target" + (", or pass --overwrite to replace it" if FILE_NAME in contents else ""),
        )
    strange = [name for name in contents if name not in (FILE_NAME, BAD_ROWS) and not name.endswith(".arrow")]
    if contents and (FILE_NAME not in contents or strange):
        raise InputError(
            f"{target} is not only a data set, so it is not overwritten: it holds "
            f"{', '.join(sorted(strange or contents)[:5])}",
            fix="choose another target",
        )


def _flush_to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
