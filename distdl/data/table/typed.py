"""Files whose columns have types (Parquet, Arrow, Hugging Face): what the columns are once all that is only a way of
storing is undone.

    dictionary, run-end encoded      the values themselves
    string_view, binary_view         string, binary
    struct                           a column for each field, by dotted path: `size.height`
    struct<bytes, path> of           the bytes; a path without bytes is refused, as the picture is not in the file
      Hugging Face pictures, sound
    class numbers of Hugging Face    numbers, whose names are in `classes`; -1 is no label: null
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from distdl.data.store import shown
from distdl.data.table.reader import doubled
from distdl.errors import InputError

BATCH_BYTES = 4 << 20
MAX_ROWS = 1 << 16
INDEX = "__index_level_"
"""How pandas calls an index that it stores as a column."""


class TypedTable:
    """A file with types; a reader gives its schema and its batches as they are stored."""

    first_row = 0
    """In the file, of a section of it."""

    def __init__(self, location: str, schema: pa.Schema):
        self.path = shown(location)
        self._ways: dict[str, tuple[str, tuple[int, ...]]] = {}  # column -> the stored one, and the fields inside it
        self.media: dict[str, str] = {}
        """Columns of pictures or sounds, each value a whole file -> what `datasets` calls them: Image, Audio, or ''."""
        self.notes: list[str] = []
        fields: list[pa.Field] = []
        for field in schema:
            if field.name.startswith(INDEX):
                self.notes.append(f"{self.path}: the index that pandas stored, {field.name}, is left out")
            else:
                fields += self._leaves(field.name, field.type, field.name, ())
        self.names: list[str] = [field.name for field in fields]
        double = doubled(self.names)
        if double:
            raise InputError(f"{self.path} has two columns of the same name: {', '.join(double)}")
        self.schema = pa.schema(fields)
        features = hugging_face_features(schema.metadata or {})
        self.media.update((name, features[name].get("_type", "")) for name in self.media if name in features)
        self.classes: Mapping[str, list[str]] = {
            name: [str(item) for item in feature["names"]]
            for name, feature in features.items()
            if name in self._ways and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
        }
        self._as_stored = {
            name
            for name, (stored, way) in self._ways.items()
            if not way and name not in self.classes and self.schema.field(name).type == schema.field(stored).type
        }

    def _leaves(self, name: str, kind: pa.DataType, stored: str, way: tuple[int, ...]) -> Iterator[pa.Field]:
        if pa.types.is_struct(kind) and not is_media(kind):
            for i, field in enumerate(kind):
                yield from self._leaves(f"{name}.{field.name}", field.type, stored, (*way, i))
            return
        if is_media(kind):
            self.media[name] = ""
        self._ways[name] = (stored, way)
        yield pa.field(name, plain_type(kind))

    def stored(self, names: list[str]) -> list[str]:
        """The columns of the file that hold these."""
        return list(dict.fromkeys(self._ways[name][0] for name in names))

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """The chosen columns, in the order of `names`, a few megabytes at a time."""
        schema = pa.schema([self.schema.field(name) for name in names])
        as_stored, row = self._as_stored.issuperset(names), self.first_row
        try:
            for batch in self._stored_batches(self.stored(names)):
                if as_stored:
                    yield batch.select(names)
                else:
                    place = lambda i, first=row: self.place(first + i)  # noqa: E731
                    yield pa.record_batch([self._column(batch, name, place) for name in names], schema=schema)
                row += batch.num_rows
        except (pa.ArrowException, OSError, KeyError) as error:
            raise InputError(
                f"{self.path} cannot be read behind row {row}: {shown(error)}", fix=how_to_fix(error)
            ) from error

    def _stored_batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        raise NotImplementedError

    def place(self, row: int) -> str:
        """The row's number from 0."""
        return f"{self.path}, row {row}"

    def _column(self, batch: pa.RecordBatch, name: str, place: Callable[[int], str]) -> pa.Array:
        stored, way = self._ways[name]
        values = batch.column(stored)
        if name in self._as_stored:
            return values
        for i in way:
            values = pc.struct_field(values, [i])
        if name in self.media:
            return _media_bytes(values, name, place)
        values = plain_values(values)
        if name in self.classes and pa.types.is_integer(values.type):
            values = pc.if_else(pc.less(values, 0), pa.scalar(None, values.type), values)
        return values


def is_media(kind: pa.DataType) -> bool:
    """Whether a column holds the files of pictures or sounds, as `datasets` stores them."""
    if not pa.types.is_struct(kind) or {field.name for field in kind} != {"bytes", "path"}:
        return False
    content = kind.field("bytes").type  # null where no row of a file of paths has any
    return bool(pa.types.is_binary(content) or pa.types.is_large_binary(content) or pa.types.is_null(content))


def _media_bytes(values: pa.Array, name: str, place: Callable[[int], str]) -> pa.Array:
    names = [field.name for field in values.type]
    content = pc.struct_field(values, [names.index("bytes")])
    path = pc.struct_field(values, [names.index("path")])
    lost = pc.and_(pc.is_null(content), pc.is_valid(path))
    if pc.any(lost).as_py():
        row = pc.index(lost, True).as_py()
        raise InputError(
            f"the column '{name}' holds the path {path[row].as_py()!r} and not the file itself",
            where=place(row),
            fix="write it so that it holds the files: datasets' save_to_disk and push_to_hub do, to_parquet does not; or "
            "read the folder of files itself (source images)",
        )
    return content.cast(pa.binary()) if pa.types.is_null(content.type) else content


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of `plain_values`."""
    if is_media(kind):
        content = kind.field("bytes").type
        return pa.binary() if pa.types.is_null(content) else content
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    return {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}.get(kind, kind)


def plain_values(values: pa.Array) -> pa.Array:
    """A column without what is only a way of storing it."""
    kind = values.type
    if isinstance(kind, pa.BaseExtensionType):
        return plain_values(values.storage)
    if pa.types.is_dictionary(kind):
        return plain_values(values.dictionary_decode())
    if pa.types.is_run_end_encoded(kind):
        return plain_values(pc.run_end_decode(values))
    wanted = plain_type(kind)
    return values if wanted == kind else pc.cast(values, wanted)


def hugging_face_features(metadata: Mapping[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """Column -> what `datasets` writes of it into a schema. What is no such thing says nothing."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def rows_a_batch(total_bytes: int, rows: int) -> int:
    """How many rows make a few megabytes."""
    return max(1, min(MAX_ROWS, BATCH_BYTES * rows // max(1, total_bytes)))


def pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch in parts of a few megabytes, without a copy."""
    size = rows_a_batch(batch.nbytes, batch.num_rows)
    for start in range(0, batch.num_rows, size):
        yield batch.slice(start, size)


def how_to_fix(error: Exception) -> str:
    """What to say about what a library cannot read."""
    if "Expected all lists to be of size" in str(error):
        return (
            "a column of lists of one fixed size has an empty value, which pyarrow below 26 writes and cannot read: "
            "store it as lists of any size, or fill it"
        )
    return "the file may be damaged: make it again, or download it again"
