"""Re-hash a whole data set and list every problem, for `distdl data verify`."""

from __future__ import annotations

import os
from pathlib import Path

from distdl.data.bad_rows import FILE as BAD_ROWS
from distdl.data.bad_rows import recorded
from distdl.data.manifest import Manifest, Shard, read_manifest
from distdl.data.read import MappedShard
from distdl.data.store import hash_file, is_remote
from distdl.errors import DataCorrupt


def verify_dataset(path_or_uri: str | os.PathLike[str]) -> list[str]:
    """Every problem, a sentence each: missing shards, wrong sizes, wrong bytes and the record batches that hold them.

    The empty list: all bytes are the bytes that were written. InputError: there is no manifest that can be read.
    """
    location = os.fspath(path_or_uri)
    manifest = read_manifest(location)
    return _list_of_bad_rows(location, manifest) + [
        problem
        for split in manifest.splits.values()
        for shard in split.shards
        for problem in _problems(location, shard, manifest)
    ]


def _list_of_bad_rows(location: str, manifest: Manifest) -> list[str]:
    told = recorded(manifest.info).get("checksum")
    if told is None:
        return []
    try:
        found = hash_file(location, BAD_ROWS)[1]
    except (OSError, DataCorrupt) as error:
        return [f"{BAD_ROWS}: the file cannot be read: {error}"]
    return [] if found == told else [f"{BAD_ROWS}: the checksum of the file is {found}, the manifest says {told}"]


def _problems(location: str, shard: Shard, manifest: Manifest) -> list[str]:
    try:
        size_bytes, checksum = hash_file(location, shard.file)
    except FileNotFoundError:
        return [f"{shard.file}: the file is missing"]
    except OSError as error:
        return [f"{shard.file}: the file cannot be read: {error}"]
    except DataCorrupt as error:
        return [_first_line(error)]
    if size_bytes != shard.bytes:
        return [f"{shard.file}: {size_bytes:,} bytes, the manifest says {shard.bytes:,}"]
    problems = (
        []
        if checksum == shard.checksum
        else [f"{shard.file}: the checksum of the file is {checksum}, the manifest says {shard.checksum}"]
    )
    if is_remote(location):
        return problems  # the checksum of the file has covered everything; batches are found after a download
    try:
        mapped = MappedShard(Path(location) / shard.file, shard, manifest, location)
    except DataCorrupt as error:
        return [*problems, _first_line(error)]
    for i in range(len(shard.batches)):
        try:
            mapped.verify(i)
        except DataCorrupt as error:
            problems.append(_first_line(error))
    return problems


def _first_line(error: DataCorrupt) -> str:
    return str(error).splitlines()[0]
