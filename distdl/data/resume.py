"""What a preparation that is killed has written, and how the next one of the same raw data goes on there.

Beside the shards in its draft a preparation of a large table keeps a journal, one object a line:

    {"key": "...", "sections": 61}              what is prepared from what: the key of the raw files and of all options
    {"batch": "train", "checksum": "..."}       a record batch is written
    {"shard": "train", ...}                     a shard is whole
    {"section": {"train": 900, "test": 100}}    the rows of the next section of the raw data are all handed to the writer

The next preparation with that key takes over the whole shards and the batches of the others, each only if its checksum is
right, and reads the raw data from the first section on of which rows are missing. What it makes is the same to the bit.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from distdl.data.draft import OWNER, is_left_over
from distdl.data.manifest import VARIABLE, Column, Shard
from distdl.data.store import hash_file

JOURNAL = "journal.jsonl"
MAGIC_BYTES = 8
"""Of an Arrow file, behind which a stream follows: so its batches can be read before it has an end."""


@dataclass(frozen=True)
class Begin:
    """Where a preparation goes on."""

    section: int = 0
    drop: Mapping[str, int] = field(default_factory=dict)
    """Split -> rows from there on that are written already."""


def key_of(*facts: Any) -> str:
    """A key that is another one where any fact is."""
    return hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


class Journal:
    """The journal of a draft, and what a left one says."""

    def __init__(self, folder: Path, key: str, sections: int) -> None:
        self._file = open(folder / JOURNAL, "w", encoding="utf-8")  # noqa: SIM115 - as long as rows are written
        self._write({"key": key, "sections": sections})

    def batch(self, split: str, checksum: str) -> None:
        """A record batch is written."""
        self._write({"batch": split, "checksum": checksum})

    def shard(self, split: str, shard: Shard) -> None:
        """A shard is whole."""
        self._write({"shard": split, **asdict(shard)})

    def section(self, rows: Mapping[str, int]) -> None:
        """The next section is behind."""
        self._write({"section": dict(rows)})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


@dataclass
class Left:
    """A draft that a killed preparation of the same data has left."""

    folder: Path
    sections: list[dict[str, int]] = field(default_factory=list)
    shards: dict[str, list[Shard]] = field(default_factory=dict)
    batches: dict[str, list[str]] = field(default_factory=dict)

    def begin(self, done: Mapping[str, int]) -> Begin:
        """Where to go on when so many rows of each split are there."""
        behind: dict[str, int] = {}
        for number, rows in enumerate(self.sections):
            together = {split: behind.get(split, 0) + rows.get(split, 0) for split in {*behind, *rows}}
            if any(count > done.get(split, 0) for split, count in together.items()):
                return Begin(number, _missing(done, behind))
            behind = together
        return Begin(len(self.sections), _missing(done, behind))

    def unfinished(self, split: str, columns: Mapping[str, Column]) -> Iterator[dict[str, np.ndarray]]:
        """The rows of the sound batches of the shard that was being written."""
        whole = self.shards.get(split, [])
        checksums = self.batches.get(split, [])[sum(len(shard.batches) for shard in whole) :]
        path = self.folder / shard_name(split, len(whole))
        with contextlib.suppress(OSError, pa.ArrowException), open(path, "rb") as file:
            file.seek(MAGIC_BYTES)
            reader = pa.ipc.open_stream(file)
            for checksum in checksums:
                rows = rows_of(reader.read_next_batch(), columns)
                digest = xxhash.xxh3_64()
                for values in rows.values():
                    digest.update(np.ascontiguousarray(values).data)
                if digest.hexdigest() != checksum:
                    return
                yield rows


def _missing(done: Mapping[str, int], behind: Mapping[str, int]) -> dict[str, int]:
    return {split: rows - behind.get(split, 0) for split, rows in done.items()}


def shard_name(split: str, number: int) -> str:
    """The file of a shard."""
    return f"{split}-{number:05d}.arrow"


def rows_of(batch: pa.RecordBatch, columns: Mapping[str, Column]) -> dict[str, np.ndarray]:
    """A record batch of columns of one length, as arrays (n, *shape)."""
    found = {}
    for name, column in columns.items():
        array = batch.column(name)
        storage = array.storage if isinstance(array, pa.ExtensionArray) else array
        count = batch.num_rows * int(np.prod(column.shape, dtype=np.int64))
        found[name] = np.frombuffer(storage.buffers()[-1], column.dtype, count).reshape(-1, *column.shape)
    return found


def find_left(target: Path, key: str, columns: Mapping[str, Column]) -> Left | None:
    """A draft of that target and key whose process is gone; None: there is none."""
    if any(column.dtype == VARIABLE for column in columns.values()):
        return None
    for folder in sorted(target.parent.glob(f".{glob.escape(target.name)}.tmp-*")):
        if (folder / JOURNAL).is_file() and not folder.is_symlink() and is_left_over(folder):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # damaged: of no use
                if left := _read(folder, key):
                    return left
    return None


def _read(folder: Path, key: str) -> Left | None:
    left, first = Left(folder), True
    with open(folder / JOURNAL, encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                break  # it was killed just then
            record = json.loads(line)
            if first and record["key"] != key:
                return None
            first = False
            if "section" in record:
                left.sections.append({str(split): int(rows) for split, rows in record["section"].items()})
            elif "batch" in record:
                left.batches.setdefault(record["batch"], []).append(record["checksum"])
            elif "shard" in record:
                split = record.pop("shard")
                shard = Shard(**{**record, "batches": tuple(record["batches"])})
                left.shards.setdefault(split, []).append(shard)
    return None if first else left


@contextlib.contextmanager
def held(left: Left) -> Iterator[bool]:
    """Keeps others from taking it over, too; False: somebody else does."""
    with open(left.folder / OWNER, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def sound_shards(left: Left, split: str) -> Sequence[Shard]:
    """Its whole shards, up to the first one whose bytes are not what they were."""
    found: list[Shard] = []
    for number, shard in enumerate(left.shards.get(split, [])):
        try:
            same = hash_file(left.folder, shard.file) == (shard.bytes, shard.checksum)
        except OSError:
            same = False
        if not same or shard.file != shard_name(split, number):
            break
        found.append(shard)
    return found


def say(shards: Sequence[str], rows: int, begin: Begin, sections: int) -> None:
    """What is taken over."""
    named = f" ({', '.join(shards[:10])}{', ...' if len(shards) > 10 else ''})" if shards else ""
    print(
        f"goes on where a preparation that was killed had stopped: {len(shards):,} whole shards{named} and {rows:,} rows "
        f"of others are taken over, {begin.section:,} of {sections:,} sections of the raw data are not prepared again",
        file=sys.stderr,
    )


def facts_of_files(paths: Sequence[str]) -> list[tuple[str, int, int]] | None:
    """Size and time of each file, by which it is known to be the same; None: one is not on this machine."""
    try:
        return [(path, (found := os.stat(path)).st_size, found.st_mtime_ns) for path in paths]
    except OSError:
        return None
