"""Where a data set lives: a local folder, or any URI that pyarrow's file systems understand.

A path without a scheme is local and is read in place, without pyarrow. Everything with a scheme (`s3://`, `gs://`,
`hdfs://`, and `file://` too, which suits a slow network mount) is a remote store: its shards are copied once to a
local cache.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from distdl.errors import DataCorrupt, DistdlError, InputError
from distdl.files import publish, sync
from distdl.trust import leads_out

COPY_BYTES = 8 << 20
_URI = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.IGNORECASE)


def is_remote(location: str | os.PathLike[str]) -> bool:
    """True for a URI, False for a plain path of this machine."""
    return "://" in os.fspath(location)


def shown(text: object) -> str:
    """A text for people and for the manifest: of every URI in it, what may be a secret is left out, which is whatever
    stands before an @ and behind a ?."""
    return _URI.sub(lambda found: _without_secrets(found[0]), os.fspath(text) if isinstance(text, Path) else str(text))


def _without_secrets(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    place, question, _ = rest.partition("?")
    if scheme in ("s3", "gs", "gcs"):  # a secret key may have a / in it
        place = place.rpartition("@")[2]
    host, slash, path = place.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}" + ("?…" if question else "")


def local_file(location: str | os.PathLike[str], name: str) -> Path:
    """A file of a data set on this machine, which need not exist. DataCorrupt for a link that leads out of the data set:
    whoever made it chooses what this user reads."""
    folder = Path(location)
    if leads_out(folder, folder / name):
        raise DataCorrupt(
            f"{folder / name} is a link to {(folder / name).resolve()}, outside the data set: it is not followed"
            "\n    fix: put a copy of the file in its place (the folder of the data set may be a link as a whole)"
        )
    return folder / name


def remote_file(location: str, name: str) -> tuple[Any, str]:
    """(pyarrow file system, path inside it) of the file `name` in the remote folder. InputError for a bad URI."""
    import pyarrow.fs

    try:
        filesystem, root = pyarrow.fs.FileSystem.from_uri(location)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise InputError(
            f"{shown(location)} is not a location that can be opened: {shown(error)}",
            allowed="a local folder, or a URI such as s3://bucket/folder",
        ) from error
    if filesystem.type_name == "local":
        local_file(root, name)
    return filesystem, f"{root.rstrip('/')}/{name}"


def read_bytes(location: str | os.PathLike[str], name: str) -> bytes:
    """The whole small file `name` of the data set. FileNotFoundError where it does not exist, like open()."""
    if not is_remote(location):
        return local_file(location, name).read_bytes()
    filesystem, path = remote_file(os.fspath(location), name)
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def default_cache() -> Path:
    """Where copies of remote shards go unless told otherwise: $DISTDL_CACHE, or ~/.cache/distdl."""
    return Path(os.environ.get("DISTDL_CACHE") or Path.home() / ".cache" / "distdl")


def hash_stream(stream: Any, copy_to: Any = None) -> tuple[int, str]:
    """(bytes read, xxh3-64 hex) of a binary stream read to its end; also written to `copy_to` where given."""
    import xxhash

    digest, size_bytes = xxhash.xxh3_64(), 0
    while block := stream.read(COPY_BYTES):
        digest.update(block)
        size_bytes += len(block)
        if copy_to is not None:
            copy_to.write(block)
    return size_bytes, digest.hexdigest()


def hash_file(location: str | os.PathLike[str], name: str) -> tuple[int, str]:
    """(bytes, xxh3-64 hex) of a file of the data set, local or remote. OSError where it cannot be read."""
    if not is_remote(location):
        with open(local_file(location, name), "rb") as stream:
            return hash_stream(stream)
    filesystem, path = remote_file(os.fspath(location), name)
    with filesystem.open_input_stream(path) as remote_stream:
        return hash_stream(remote_stream)


def cached_shard(location: str, name: str, size_bytes: int, checksum: str, cache_dir: Path | None) -> Path:
    """The local copy of a remote shard, downloaded on first use.

    The name of the copy is its checksum, so data sets share it and a changed shard gets another one. It appears by one
    rename after its checksum was compared; a lock lets one of the ranks of a node download while the others wait.
    DataCorrupt: what arrived is not what the manifest says.
    """
    folder = Path(cache_dir or default_cache()) / "shards"
    target = folder / f"{checksum}-{size_bytes}.arrow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{target.name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (target.exists() and target.stat().st_size == size_bytes):
                _download(location, name, (size_bytes, checksum), target)
    except OSError as error:
        raise DistdlError(
            f"cannot copy the shard {name} of {shown(location)} to the cache {folder}: {shown(error)}"
        ) from error
    return target


def _download(location: str, name: str, expected: tuple[int, str], target: Path) -> None:
    filesystem, path = remote_file(location, name)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix="download-")
    try:
        with os.fdopen(handle, "wb") as copy, filesystem.open_input_stream(path) as stream:
            found = hash_stream(stream, copy)
        if found != expected:
            raise DataCorrupt(
                f"the shard {name} of {shown(location)} is corrupt: {found[0]:,} bytes with checksum {found[1]} arrived, "
                f"the manifest says {expected[0]:,} bytes with {expected[1]}"
                "\n    fix: prepare or upload the data set again"
            )
        sync(Path(temporary))
        publish(Path(temporary), target)
    finally:
        Path(temporary).unlink(missing_ok=True)
