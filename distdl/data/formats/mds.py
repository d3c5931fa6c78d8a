"""MDS, the shards of MosaicML's streaming: a folder with an index.json that says columns, sizes and hashes.

    shard:   samples n (uint32), n + 1 places (uint32), the columns again (JSON), the samples
    sample:  the size of each value that has none of its own (uint32 each), then the values

The library compares hashes only where it is told to, and then only of what it downloads: a shard that lies there with a
flipped bit is read. Here the sizes and all recorded hashes are compared before a sample is taken. It also imports the
clients of five clouds and torchvision: that is why a reader of the layout stands in its place.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash

from distdl.data.advice import SURE, Advice, Wish
from distdl.data.manifest import ITEM_BYTES
from distdl.data.raw import READ_BYTES, Prepared
from distdl.data.samples.advice import folder_advice, split_folders
from distdl.data.samples.fields import SampleOptions, prepare_samples
from distdl.data.samples.index import item, lists, plain_name, read_index
from distdl.data.samples.raw_picture import raw_picture
from distdl.data.samples.values import Picture, Sample
from distdl.errors import InputError

IN_MEMORY_BYTES = 64 << 20
"""Of an unpacked shard; a larger one is unpacked to a temporary file."""
LARGEST_BYTES = 1 << 30
UNPACKED = {"zstd": "zstd", "br": "brotli", "gz": "gzip", "bz2": "bz2", "snappy": "snappy"}
"""Compression of MDS -> of pyarrow."""
DTYPES = {8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32", 33: "int32", 34: "float32"}
DTYPES |= {64: "uint64", 65: "int64", 66: "float64"}
PICTURES = ("jpeg", "png")
PLAIN = ("bytes", "str", "int", "json", "str_int", "str_float", "str_decimal", "pil", *PICTURES)
WORN = (ValueError, KeyError, IndexError, TypeError, struct.error, RecursionError)
"""What decoding damaged bytes stumbles over."""


@dataclass(frozen=True)
class Options(SampleOptions):
    """Options of the source `mds`."""

    path: str
    """The folder with index.json."""


def prepare(options: Options) -> Prepared:
    """Pictures uint8 (C, H, W), `label` int64, numbers and arrays as they are, other text and bytes as bytes."""
    train = _Folder(options.path)
    test = _Folder(options.test_path) if options.test_path else None
    notes = [*train.notes, *(test.notes if test else [])]
    return prepare_samples("mds", options, train.read, test.read if test else None, {}, notes)


@dataclass(frozen=True)
class _File:
    """A file as index.json describes it."""

    path: Path
    size_bytes: int
    hashes: dict[str, str]


@dataclass(frozen=True)
class _Shard:
    raw: _File
    packed: _File | None
    compression: str
    samples: int
    config: dict[str, Any]
    """What the shard says of its columns itself."""


class _Folder:
    """Shards that can be read again and again."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.where = str(self.path / "index.json")
        index = read_index(self.path, "an MDS folder")
        if item(index, "version", int, self.where) != 2:
            raise InputError(f"version {index['version']} of MDS", where=self.where, allowed="2")
        self.shards = [self._shard(record) for record in item(index, "shards", list, self.where)]
        if not self.shards:
            raise InputError(f"{self.where} names no shards")
        first = self.shards[0].config
        for shard in self.shards:
            if shard.config != first:
                raise InputError(f"{shard.raw.path.name} has other columns than the first shard", where=self.where)
        self.columns: list[tuple[str, str, int | None]] = list(
            zip(first["column_names"], first["column_encodings"], first["column_sizes"])
        )
        self.compared: set[Path] = set()
        """Shards whose bytes were found to be as recorded: the second pass does not ask again."""
        self.notes: list[str] = []
        unchecked = sum(not (shard.packed or shard.raw).hashes for shard in self.shards)
        if unchecked:
            of_all = f"{unchecked:,} of {len(self.shards):,}"
            self.notes = [f"{self.where} has no hashes of {of_all} shards: only their sizes are compared"]

    def _shard(self, record: Any) -> _Shard:
        if item(record, "format", str, self.where) != "mds" or item(record, "version", int, self.where) != 2:
            raise InputError(f"a shard of the format {record['format']!r}", where=self.where, allowed="mds, version 2")
        config = {
            key: item(record, key, list, self.where) for key in ("column_names", "column_encodings", "column_sizes")
        }
        if len({len(value) for value in config.values()}) > 1 or not all(
            isinstance(value, str) for value in (*config["column_names"], *config["column_encodings"])
        ):
            raise InputError("the columns of a shard are damaged", where=self.where)
        packed = self._file(record["zip_data"]) if record.get("zip_data") else None
        compression = str(record.get("compression") or "").partition(":")[0]
        if packed and compression not in UNPACKED:
            raise InputError(
                f"{packed.path.name} is packed as {compression!r}",
                where=self.where,
                allowed=", ".join(UNPACKED),
                fix="write it with one of these",
            )
        raw = self._file(item(record, "raw_data", dict, self.where))
        return _Shard(raw, packed, compression, item(record, "samples", int, self.where), config)

    def _file(self, record: Any) -> _File:
        name = plain_name(item(record, "basename", str, self.where), self.where)
        hashes = item(record, "hashes", dict, self.where)
        for algorithm in hashes:
            _hasher(algorithm, self.where)
        return _File(self.path / name, item(record, "bytes", int, self.where), hashes)

    def read(self, wanted: Sequence[str]) -> Iterator[Sample]:
        """The samples of all shards, of which only the fields that `wanted` names (or holds parts of) are decoded."""
        chosen = {
            name
            for name, _, _ in self.columns
            if not wanted or any(w == name or w.startswith(f"{name}.") for w in wanted)
        }
        for name, encoding, _ in self.columns:
            if name in chosen:
                _check_encoding(name, encoding, self.where)
        for shard in self.shards:
            with _opened(shard, shard.raw.path not in self.compared) as file:
                self.compared.add(shard.raw.path)
                yield from self._samples(shard, file, chosen)

    def _samples(self, shard: _Shard, file: BinaryIO, chosen: set[str]) -> Iterator[Sample]:
        name, n = shard.raw.path.name, shard.samples
        fits = n > 0 and 4 * (n + 2) <= shard.raw.size_bytes  # before so many bytes are asked for
        head = file.read(4 * (n + 2)) if fits else b""
        if not head or struct.unpack_from("<I", head)[0] != n:
            raise InputError(f"{shard.raw.path} does not hold the {n:,} samples that index.json promises")
        places = np.frombuffer(head, "<u4", offset=4).astype(np.int64)
        if (np.diff(places) < 0).any() or places[0] < len(head) or places[-1] != shard.raw.size_bytes:
            raise InputError(f"{shard.raw.path}: the places of its samples are damaged")
        self._check_config(shard, file.read(int(places[0]) - len(head)))
        for i, size in enumerate(np.diff(places).tolist()):
            where = f"{self.path / name}, sample {i}"
            yield Sample(where, self._fields(file.read(size), chosen, where))

    def _check_config(self, shard: _Shard, text: bytes) -> None:
        try:
            told = json.loads(text)
            same = all(told[key] == value for key, value in shard.config.items())
        except WORN:
            same = False
        if not same:
            raise InputError(f"{shard.raw.path} says other columns of itself than index.json", fix="copy both again")

    def _fields(self, content: bytes, chosen: set[str], where: str) -> dict[str, Any]:
        varying = sum(not size for _, _, size in self.columns)
        if len(content) < 4 * varying:
            raise InputError("the sample ends early", where=where)
        given = iter(struct.unpack_from(f"<{varying}I", content))
        sizes = [size or next(given) for _, _, size in self.columns]
        if 4 * varying + sum(sizes) != len(content):
            raise InputError(f"the sample has {len(content):,} bytes, its values do not fill them", where=where)
        fields, at = {}, 4 * varying
        for (name, encoding, _), size in zip(self.columns, sizes):
            if name in chosen:
                try:
                    fields[name] = _decoded(content[at : at + size], encoding)
                except WORN as error:
                    what = f"the value cannot be read as {encoding}: {error}"
                    raise InputError(what, where=f"{where}, {name}") from error
            at += size
        return fields


def _opened(shard: _Shard, compare: bool) -> BinaryIO:
    """The unpacked bytes of a shard, once its size and hashes are as recorded."""
    if not shard.packed or (shard.raw.path.is_file() and not shard.packed.path.is_file()):
        if compare:
            _compare(shard.raw, shard.raw.path)
        return open(shard.raw.path, "rb")
    if compare:
        _compare(shard.packed, shard.packed.path)
    unpacked: Any = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES)  # noqa: SIM115 - the caller closes it
    try:
        for block in _unpacked(shard.packed.path, shard.compression, shard.raw.size_bytes):
            if unpacked.tell() + len(block) > shard.raw.size_bytes:
                what = f"{shard.packed.path} unpacks to more than the {shard.raw.size_bytes:,} bytes of index.json"
                raise InputError(what, fix="copy it again")
            unpacked.write(block)
        if compare:
            _compare(shard.raw, unpacked)
    except BaseException:
        unpacked.close()
        raise
    unpacked.seek(0)
    return unpacked


def _unpacked(path: Path, compression: str, size_bytes: int) -> Iterator[bytes]:
    try:
        if compression == "snappy":  # one block, which cannot be taken in pieces
            if size_bytes > LARGEST_BYTES:
                raise InputError(f"{path} unpacks to {size_bytes:,} bytes at once", allowed=f"{LARGEST_BYTES:,}")
            yield pa.Codec("snappy").decompress(path.read_bytes(), size_bytes, asbytes=True)
            return
        with pa.CompressedInputStream(str(path), UNPACKED[compression]) as stream:
            while block := stream.read(READ_BYTES):
                yield block
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be unpacked: {error}", fix="copy it again") from error


def _compare(file: _File, content: Any) -> None:
    """InputError: the bytes are not those that were written. `content`: a path, or an open file."""
    if isinstance(content, Path) and not content.is_file():
        raise InputError(f"there is no file {content}, which index.json names", fix="copy it, too")
    hashers = {algorithm: _hasher(algorithm, str(file.path)) for algorithm in file.hashes}
    size = 0
    opened = open(content, "rb") if isinstance(content, Path) else content  # noqa: SIM115 - closed below
    opened.seek(0)
    try:
        while block := opened.read(READ_BYTES):
            size += len(block)
            for hasher in hashers.values():
                hasher.update(block)
    finally:
        if isinstance(content, Path):
            opened.close()
    if size != file.size_bytes:
        raise InputError(f"{file.path} has {size:,} bytes, index.json says {file.size_bytes:,}", fix="copy it again")
    for algorithm, hasher in hashers.items():
        if hasher.hexdigest() != file.hashes[algorithm]:
            raise InputError(f"{file.path} is damaged: its {algorithm} is not that of index.json", fix="copy it again")


def _hasher(algorithm: str, where: str) -> Any:
    if algorithm in xxhash.algorithms_available:
        return getattr(xxhash, algorithm)()
    if algorithm in hashlib.algorithms_available and not algorithm.startswith("shake"):
        return hashlib.new(algorithm)
    raise InputError(f"the hash {algorithm!r} is not known, so nothing can be compared", where=where)


def _check_encoding(name: str, encoding: str, where: str) -> None:
    kind, _, rest = encoding.partition(":")
    if kind == "pkl":
        fix = "leave it out by fields=, or write it with another encoding"
        raise InputError(f"the column {name} is pickled, and reading that runs what it says", where=where, fix=fix)
    if kind == "ndarray":
        dtype, _, shape = rest.partition(":")
        if (dtype and dtype not in ITEM_BYTES) or (shape and not all(part.isdecimal() for part in shape.split(","))):
            raise InputError(f"the column {name} has the encoding {encoding!r}", where=where)
    elif encoding not in (*PLAIN, *ITEM_BYTES):
        raise InputError(
            f"the column {name} has the encoding {encoding!r}",
            where=where,
            allowed=", ".join((*PLAIN, "ndarray", *ITEM_BYTES)),
            fix="leave it out by fields=",
        )


def _decoded(content: bytes, encoding: str) -> Any:
    kind, _, rest = encoding.partition(":")
    if kind == "ndarray":
        return _ndarray(content, rest)
    if kind == "bytes":
        return content
    if kind == "str":
        return content.decode()
    if kind == "json":
        return json.loads(content)
    if kind == "str_int":
        return int(content)
    if kind in ("str_float", "str_decimal"):
        return float(content)
    if kind == "pil":
        return raw_picture(content)
    if kind in PICTURES:
        return Picture(content)
    (value,) = np.frombuffer(content, np.dtype("int64" if kind == "int" else kind).newbyteorder("<"))
    return value


def _ndarray(content: bytes, form: str) -> np.ndarray:
    """Type and shape stand in the encoding, or before the values."""
    dtype, _, shape_text = form.partition(":")
    at = 0
    if not dtype:
        dtype, at = DTYPES[content[0]], 1
    if shape_text:
        shape = tuple(map(int, shape_text.split(",")))
    else:
        dimensions, size = content[at] >> 2, 1 << (content[at] & 3)
        shape = tuple(np.frombuffer(content, f"<u{size}", dimensions, at + 1).tolist())
        at += 1 + dimensions * size
    return np.frombuffer(content, np.dtype(dtype).newbyteorder("<"), offset=at).reshape(shape)


def recognise(path: Path) -> float:
    """A folder of MDS, or one with such a folder for each split."""
    index = Path(split_folders(path, "index.json")[0]) / "index.json"
    return SURE if path.is_dir() and lists(index, "shards") else 0.0


def advise(path: str, wish: Wish) -> Advice:
    """What to learn of each sample, for `distdl init`."""
    return folder_advice("mds", path, wish, _Folder)
