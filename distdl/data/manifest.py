"""What is in a data set: columns, splits, shards and checksums, in one `manifest.json` beside the shards.

    folder/
      manifest.json
      train-00000.arrow  train-00001.arrow ...      Arrow IPC files, uncompressed
      test-00000.arrow ...

Every record batch holds the same power-of-two number of rows R, except the last one of a split, so row i lives in
record batch `i >> log2(R)`. Reading a manifest of a local folder needs neither pyarrow nor torch: the plan reads it
too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from distdl.data import statistics
from distdl.data.store import read_bytes
from distdl.data.strict import StrictReader, checksum
from distdl.errors import InputError, Problem, did_you_mean

FORMAT = "distdl-arrow"
VERSION = 1
FILE_NAME = "manifest.json"
VARIABLE = "bytes"
ITEM_BYTES = {
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "float16": 2,
    "uint32": 4,
    "int32": 4,
    "float32": 4,
    "uint64": 8,
    "int64": 8,
    "float64": 8,
}
SENTINELS = ("minus_1", "minus_100", "plus_255", "not_finite")  # fields of Values: how often, and where first
WIDE_FEATURES = 1_000
RESERVED = ("id", "position")  # columns that the batch source adds

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SHARD_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.arrow")
_CHECKSUM = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Column:
    """The type of one column: every row has the same dtype and shape, or is a string of bytes of any length."""

    dtype: str
    """A NumPy name such as `uint8`, or `bytes` for records of varying length."""
    shape: tuple[int, ...] = ()
    """Shape of one row; () is a scalar."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; 0 for `bytes`, whose rows vary."""
        return ITEM_BYTES.get(self.dtype, 0) * math.prod(self.shape)


@dataclass(frozen=True)
class Shard:
    """One Arrow IPC file."""

    file: str
    """Name inside the data set's folder; never a path."""
    rows: int
    bytes: int
    """Size of the file."""
    checksum: str
    """xxh3-64 of the whole file, 16 hex digits."""
    batches: tuple[str, ...]
    """xxh3-64 over the column buffers of each record batch, in column order."""


@dataclass(frozen=True)
class Split:
    """One part of the data set, such as `train`; its rows are numbered through all its shards."""

    rows: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Values:
    """What the values of one column in one split are, as whoever wrote them saw. Rows are the first with that value."""

    low: float | None
    """Smallest of those that are finite and none of the three below; None: there is no such value."""
    low_row: int
    high: float | None
    high_row: int
    minus_1: tuple[int, int] = (0, 0)
    """How often -1 stands in an integer column, and the first row of it: it may mean "missing", and is in no range."""
    minus_100: tuple[int, int] = (0, 0)
    """The same of -100."""
    plus_255: tuple[int, int] = (0, 0)
    """The same of 255, which may fill up a row, or be white."""
    not_finite: tuple[int, int] = (0, 0)
    """The same of NaN and infinities."""

    def in_words(self) -> str:
        """The range, and what stands apart."""
        apart = {"-1": self.minus_1, "-100": self.minus_100, "255": self.plus_255, "NaN or infinite": self.not_finite}
        told = [f"{value} {count[0]:,} times" for value, count in apart.items() if count[0]]
        if self.low is not None:
            told = ["{} to {}".format(*(v if isinstance(v, int) else f"{v:g}" for v in (self.low, self.high))), *told]
        return ", ".join(told)


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`."""

    source: str
    """The format it was prepared from, such as `idx`."""
    options: Mapping[str, Any]
    """The options of that preparation."""
    columns: dict[str, Column]
    rows_per_batch: int
    splits: dict[str, Split]
    info: Mapping[str, Any] = field(default_factory=dict)
    """Anything worth knowing that is not data, such as the names of the classes."""
    values: Mapping[str, Mapping[str, Values]] = field(default_factory=dict)
    """Split -> column -> what its values are; {} in data sets of older versions. No part of the fingerprint."""
    statistics: statistics.Splits = field(default_factory=dict)
    """Split -> column -> means, distributions, classes, lengths (statistics.py); {} in older data sets. No part of the
    fingerprint."""
    preparation: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Column -> how its values came from the raw ones, as the source wrote it: fitted numbers, names of classes, sizes,
    vocabularies. It says of itself what it is (`kind`) and in which `version`; {} where there is nothing to say. What is
    fitted is fitted on the training split, so it is no part of the fingerprint: the values themselves are."""

    def split(self, name: str) -> Split:
        """The split of that name; InputError that names the splits there are."""
        if name not in self.splits:
            raise InputError(
                f"the data set has no split '{name}'",
                allowed=", ".join(sorted(self.splits)),
                fix=did_you_mean(name, self.splits),
            )
        return self.splits[name]

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of what the samples are: columns, rows and the checksums of all record batches in order.

        The sample order depends on it, so it leaves out everything that may differ between two preparations of the same
        samples: paths, file names, where one shard ends and the next begins, bytes that the Arrow version adds.
        """
        content = {
            "format": FORMAT,
            "version": VERSION,
            "columns": [[name, c.dtype, list(c.shape)] for name, c in self.columns.items()],
            "rows_per_batch": self.rows_per_batch,
            "splits": {
                name: [s.rows, [b for shard in s.shards for b in shard.batches]] for name, s in self.splits.items()
            },
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def to_json(manifest: Manifest) -> str:
    """The text of `manifest.json`."""
    plain = {"info": dict(manifest.info), "preparation": dict(manifest.preparation)}  # as they are: they may be large
    facts = {**asdict(replace(manifest, info={}, preparation={})), **plain}
    record = {"format": FORMAT, "version": VERSION, "fingerprint": manifest.fingerprint, **facts}
    record["columns"] = [{"name": name, **asdict(column)} for name, column in manifest.columns.items()]
    del record["values"]
    if not manifest.preparation:
        del record["preparation"]
    if manifest.values:
        splits = values_record(manifest.values)
        record["values"] = {"checksum": checksum(splits), "splits": splits}
    del record["statistics"]
    if manifest.statistics:
        splits = statistics.to_record(manifest.statistics)
        record["statistics"] = {"checksum": checksum(splits), "splits": splits}
    wide = len(manifest.info.get("features", ())) > WIDE_FEATURES  # nobody reads it, and Python indents slowly
    return json.dumps(record, indent=None if wide else 1, sort_keys=True) + "\n"


def values_record(values: Mapping[str, Mapping[str, Values]]) -> dict[str, Any]:
    """What `values_from` reads, as plain values."""
    return {
        split: {name: json.loads(json.dumps(asdict(of_column))) for name, of_column in columns.items()}
        for split, columns in values.items()
    }


def read_manifest(path_or_uri: str | os.PathLike[str]) -> Manifest:
    """The manifest of the data set in that folder. InputError: there is none, or not one this version can read."""
    location = os.fspath(path_or_uri)
    try:
        text = read_bytes(location, FILE_NAME)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{location} holds no data set: there is no {FILE_NAME}",
            fix=f"prepare one: distdl data prepare SOURCE {location} [key=value ...]",
        ) from None
    except OSError as error:
        raise InputError(f"the {FILE_NAME} of {location} cannot be read: {error}") from error
    return from_json(text, where=f"{location.rstrip('/')}/{FILE_NAME}")


def from_json(text: str | bytes, where: str = FILE_NAME) -> Manifest:
    """The manifest in `text`; `where` names it in errors. Unknown keys, wrong types and bad numbers are InputErrors."""
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise InputError(f"not valid JSON: {error}", where=where, fix="prepare the data set again") from None
    read = _Reader(where)
    read.need(isinstance(raw, dict) and raw.get("format") == FORMAT, f"this is not the manifest of a {FORMAT} data set")
    version = raw.get("version")
    read.need(type(version) is int and version >= 1, f"version {version!r} is not a version number")
    if version > VERSION:
        raise InputError(
            f"the data set has format version {version}, this distdl reads up to {VERSION}",
            where=where,
            fix="update distdl, or prepare the data set again with this version",
        )
    read.keys(
        raw,
        "the manifest",
        {"format", "version", "fingerprint", "source", "options", "columns", "rows_per_batch", "splits", "info"},
        optional={"values", "statistics", "preparation"},
    )
    rows_per_batch = read.count(raw["rows_per_batch"], "rows_per_batch")
    read.need(
        rows_per_batch > 0 and rows_per_batch & (rows_per_batch - 1) == 0,
        f"rows_per_batch is {rows_per_batch}, which is not a power of two",
    )
    splits = read.typed(raw["splits"], dict, "splits")
    manifest = Manifest(
        source=read.typed(raw["source"], str, "source"),
        options=read.typed(raw["options"], dict, "options"),
        columns=read.columns(raw["columns"]),
        rows_per_batch=rows_per_batch,
        splits={name: read.split(name, value, rows_per_batch) for name, value in splits.items()},
        info=read.typed(raw["info"], dict, "info"),
        values=read.values(raw["values"]) if "values" in raw else {},
        statistics=read.statistics(raw["statistics"]) if "statistics" in raw else {},
        preparation=read.preparation(raw["preparation"]) if "preparation" in raw else {},
    )
    read.need(
        raw["fingerprint"] == manifest.fingerprint, "the fingerprint does not match the rest: it was edited by hand"
    )
    return manifest


def values_from(raw: Any, where: str) -> dict[str, Values]:
    """What the values of each column of a split are, as `values_record` wrote them. InputError."""
    return _Reader(where).of_columns(raw)


def check_columns(columns: Mapping[str, Column], where: str = "") -> None:
    """InputError for names, dtypes or shapes that a data set cannot hold."""
    problems = [] if columns else [Problem("a data set needs at least one column", where)]
    for name, column in columns.items():
        if not _NAME.fullmatch(name):
            problems.append(Problem(f"column name {name!r}", where, "letters, digits, _ and -"))
        if name in RESERVED:
            problems.append(
                Problem(f"the column name '{name}' is reserved for the batch source", where, fix="rename it")
            )
        if column.dtype != VARIABLE and column.dtype not in ITEM_BYTES:
            problems.append(
                Problem(f"column '{name}' has dtype {column.dtype!r}", where, ", ".join([*ITEM_BYTES, VARIABLE]))
            )
        if any(size < 1 for size in column.shape) or (column.dtype == VARIABLE and column.shape):
            problems.append(
                Problem(f"column '{name}' has shape {column.shape}", where, "sizes of at least 1; () for bytes")
            )
    if problems:
        raise InputError(*problems)


def check_split_name(name: str, where: str = "") -> None:
    """InputError for a split name that could not be part of a file name."""
    if not _NAME.fullmatch(name):
        raise InputError(f"split name {name!r}", where=where, allowed="letters, digits, _ and -")


class _Reader(StrictReader):
    """The parts of a manifest."""

    def columns(self, raw: Any) -> dict[str, Column]:
        columns = {}
        for record in self.typed(raw, list, "columns"):
            self.keys(record, "a column", {"name", "dtype", "shape"})
            name = self.typed(record["name"], str, "a column's name")
            self.need(name not in columns, f"there are two columns '{name}'")
            shape = tuple(
                self.count(size, f"the shape of '{name}'") for size in self.typed(record["shape"], list, "shape")
            )
            columns[name] = Column(self.typed(record["dtype"], str, "dtype"), shape)
        check_columns(columns, self.where)
        return columns

    def split(self, name: str, raw: Any, rows_per_batch: int) -> Split:
        check_split_name(name, self.where)
        self.keys(raw, f"split '{name}'", {"rows", "shards"})
        shards = tuple(self.shard(record, rows_per_batch) for record in self.typed(raw["shards"], list, "shards"))
        rows = self.count(raw["rows"], f"rows of '{name}'")
        self.need(rows == sum(shard.rows for shard in shards), f"the shards of '{name}' do not add up to {rows} rows")
        for shard in shards[:-1]:
            self.need(
                shard.rows % rows_per_batch == 0, f"{shard.file} does not hold whole batches of {rows_per_batch} rows"
            )
        return Split(rows, shards)

    def values(self, raw: Any) -> dict[str, dict[str, Values]]:
        return {split: self.of_columns(columns) for split, columns in self.sealed(raw, "the values").items()}

    def statistics(self, raw: Any) -> dict[str, dict[str, statistics.Statistics]]:
        return statistics.from_record(self.sealed(raw, "the statistics"), self)

    def preparation(self, raw: Any) -> dict[str, dict[str, Any]]:
        for name, record in self.typed(raw, dict, "the preparation").items():
            self.typed(record, dict, f"the preparation of '{name}'")
            self.typed(record.get("kind"), str, f"the kind of the preparation of '{name}'")
            self.count(record.get("version"), f"the version of the preparation of '{name}'")
        return dict(raw)

    def of_columns(self, raw: Any) -> dict[str, Values]:
        """What the values of each column of a split are."""
        found = {}
        for name, record in self.typed(raw, dict, "values of a split").items():
            self.keys(record, f"values of '{name}'", {each.name for each in fields(Values)})
            bounds = {key: self.number(record[key], f"{key} of '{name}'") for key in ("low", "high")}
            rows = {key: self.count(record[key], f"{key} of '{name}'") for key in ("low_row", "high_row")}
            pairs = {key: self.pair(record[key], f"{key} of '{name}'") for key in SENTINELS}
            found[name] = Values(**bounds, **rows, **pairs)  # type: ignore[arg-type]
        return found

    def shard(self, raw: Any, rows_per_batch: int) -> Shard:
        self.keys(raw, "a shard", {"file", "rows", "bytes", "checksum", "batches"})
        file = self.typed(raw["file"], str, "a shard's file")
        # A manifest may come from a stranger: it must not make this process open a file outside the data set.
        self.need(
            bool(_SHARD_FILE.fullmatch(file)), f"the shard file {file!r} is not a plain file name inside the data set"
        )
        rows = self.count(raw["rows"], f"rows of {file}")
        hashes = [raw["checksum"], *self.typed(raw["batches"], list, f"batches of {file}")]
        self.need(
            all(isinstance(h, str) and _CHECKSUM.fullmatch(h) for h in hashes), f"{file} has a malformed checksum"
        )
        self.need(
            rows > 0 and len(hashes) - 1 == -(-rows // rows_per_batch),
            f"{file} lists {len(hashes) - 1} batches for {rows} rows",
        )
        return Shard(file, rows, self.count(raw["bytes"], f"bytes of {file}"), hashes[0], tuple(hashes[1:]))
