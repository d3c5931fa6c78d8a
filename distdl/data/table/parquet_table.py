"""Parquet files: one, many, or a folder of `key=value` folders, whose keys are columns."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet

from distdl.data.inputs import file_system, find_files, plain_path, unreachable
from distdl.data.store import is_remote, shown
from distdl.data.table.files import Files
from distdl.data.table.reader import Table, grouped
from distdl.data.table.typed import TypedTable, rows_a_batch
from distdl.errors import InputError

ENDINGS = (".parquet", ".pq")
LOCAL_BUFFER, REMOTE_BUFFER = 64 << 10, 1 << 20
"""Bytes of each column that are read at a time: column chunks may be as large as the file."""
VALUE_BYTES = 8
"""Of each value at least, when it is no longer packed."""
_KEY = re.compile(r"([^/=]+)=([^/]*)/")
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


def open_parquet(path: str) -> Table:
    """The table of a file, or of all files of a folder or a pattern."""
    files = find_files(path, ENDINGS)
    keys = [_keys(file, path) for file in files]
    values = [value for of_file in keys for value in of_file.values() if value != NO_VALUE]
    kind = pa.int64() if all(re.fullmatch(r"-?\d{1,18}", value) for value in values) else pa.string()
    for file, of_file in zip(files, keys, strict=True):
        if of_file.keys() != keys[0].keys():
            raise InputError(f"{shown(file)} lies in folders of other keys than {shown(files[0])}")
    tables: list[Table] = [ParquetTable(file, of_file, kind) for file, of_file in zip(files, keys, strict=True)]
    return tables[0] if len(tables) == 1 else Files(shown(path), tables)


def _keys(file: str, path: str) -> dict[str, str]:
    """What the folders between a path and one of its files are named after."""
    place = plain_path(path)
    root = place.partition("*")[0].rpartition("/")[0] if "*" in place else place
    return {key: unquote(value) for key, value in _KEY.findall(plain_path(file)[len(root) :])}


class ParquetTable(TypedTable):
    """A Parquet file. `keys`: the columns that its folders are named after, and their values."""

    def __init__(self, location: str, keys: Mapping[str, str] | None = None, key_type: pa.DataType | None = None):
        self.location, self._keys = location, dict(keys or {})
        self._key_type = key_type or pa.string()
        self._sound: set[str] = set()  # columns whose checksums have been compared: once is enough
        with self._open() as file:
            schema, metadata = file.schema_arrow, file.metadata
            self.rows: int = metadata.num_rows
            self._groups = list(range(metadata.num_row_groups))
            stored = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
            unpacked = VALUE_BYTES * metadata.num_columns * self.rows
        self._batch_rows = rows_a_batch(max(stored, unpacked), self.rows)
        self._keys = {key: value for key, value in self._keys.items() if key not in schema.names}
        for key in self._keys:
            schema = schema.append(pa.field(key, self._key_type))
        super().__init__(location, schema)

    def cut(self) -> list[Table]:
        """Some row groups each."""
        with self._open() as file:
            metadata = file.metadata
            sizes = [(metadata.row_group(i).total_byte_size, metadata.row_group(i).num_rows) for i in self._groups]
        found: list[Table] = []
        for groups in grouped([size for size, _ in sizes]):
            section = copy.copy(self)
            section._groups = [self._groups[i] for i in groups]
            section.first_row = sum(rows for _, rows in sizes[: groups[0]])
            section.rows = sum(sizes[i][1] for i in groups)
            found.append(section)
        return found if len(found) > 1 else [self]

    def _open(self, verify: bool = True) -> Any:
        path, source = shown(self.location), self.location
        try:
            if is_remote(self.location):
                filesystem, inside = file_system(self.location)
                source = filesystem.open_input_file(inside)
            return pyarrow.parquet.ParquetFile(
                source,
                pre_buffer=False,  # it would hold all that is still to be read
                buffer_size=REMOTE_BUFFER if is_remote(self.location) else LOCAL_BUFFER,
                page_checksum_verification=verify,
            )
        except FileNotFoundError as error:
            raise unreachable(self.location, error) from None
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is not a Parquet file that can be read: {shown(error)}") from error

    def _stored_batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        wanted = [name for name in columns if name not in self._keys]
        with self._open(verify=not self._sound.issuperset(wanted)) as file:
            for batch in file.iter_batches(self._batch_rows, self._groups, columns=wanted, use_threads=False):
                yield self._with_keys(batch, columns)
        self._sound.update(wanted)

    def _with_keys(self, batch: pa.RecordBatch, columns: list[str]) -> pa.RecordBatch:
        for name in columns:
            if name in self._keys:
                value = None if self._keys[name] == NO_VALUE else self._keys[name]
                value = pa.scalar(value, pa.string()).cast(self._key_type)
                batch = batch.append_column(name, pa.repeat(value, batch.num_rows))
        return batch
