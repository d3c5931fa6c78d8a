"""Where raw data is read from: local files, or any URI that pyarrow's file systems or fsspec behind them open.

    folder/table.csv   *.parquet   s3://bucket/table.parquet   https://host/table.csv.gz   hf://datasets/name/train.parquet

Whatever is printed or kept of a location goes through `shown`: a URI may hold a password or a signature.
"""

from __future__ import annotations

import filecmp
import fnmatch
import glob
import io
import os
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote, urlsplit

from distdl.data.store import is_remote, shown
from distdl.errors import InputError

BUFFER_BYTES = 1 << 20
OF_PYARROW = ("s3", "gs", "gcs", "hdfs", "viewfs", "file", "abfs", "abfss")
"""Schemes whose URIs have %20 for a blank."""
NO_DATA = ("_", ".")
"""How the names of files begin that stand beside data: _SUCCESS, _metadata, .crc."""


def open_bytes(location: str | os.PathLike[str]) -> BinaryIO:
    """The bytes of one file, local or remote, as they are. InputError: there is none, or it cannot be reached."""
    path = os.fspath(location)
    if not is_remote(path):
        if not Path(path).is_file():
            raise InputError(f"there is no file {path}", fix="check the path")
        return open(path, "rb")
    filesystem, inside = file_system(path)
    try:
        stream = filesystem.open_input_file(inside)
    except Exception as error:  # each service has its own kinds
        raise unreachable(path, error) from None
    return io.BufferedReader(Checked(stream, path), BUFFER_BYTES)


class Checked(io.RawIOBase):
    """A stream of a store or of packed data, whose failures are told by the file's name."""

    def __init__(self, stream: Any, path: str, kind: str = "", below: Any = None):
        super().__init__()
        self._stream, self._path, self._kind, self._below = stream, path, kind, below
        seekable = getattr(stream, "seekable", lambda: False)
        self._seekable = not kind and bool(seekable())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._seekable

    def readinto(self, buffer: Any) -> int:
        try:
            block = self._stream.read(len(buffer))
        except InputError:
            raise
        except Exception as error:  # each codec and each service has its own kinds
            if self._kind:
                raise InputError(
                    f"{shown(self._path)} is a damaged {self._kind} file: {shown(error)}", fix="download it again"
                ) from None
            raise unreachable(self._path, error) from None
        buffer[: len(block)] = block
        return len(block)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._stream.seek(offset, whence)
        return int(self._stream.tell())

    def tell(self) -> int:
        return int(self._stream.tell())

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            if self._below is not None:
                self._below.close()
        super().close()


def unreachable(location: str, error: Exception) -> InputError:
    """What to say where a store does not give a file."""
    if isinstance(error, FileNotFoundError) or getattr(error, "status", 0) == 404:
        return InputError(f"there is no file {shown(location)}", fix="check the location")
    return InputError(
        f"{shown(location)} cannot be read: {shown(error) or type(error).__name__}",
        fix="check the location, the network and who may read it; or download it first",
    )


def file_system(location: str) -> tuple[Any, str]:
    """(pyarrow file system, path inside it) of a URI: pyarrow's own where it has one, else fsspec's."""
    import pyarrow.fs

    scheme = urlsplit(location).scheme
    try:
        if scheme in OF_PYARROW:
            filesystem, path = pyarrow.fs.FileSystem.from_uri(location)
            return filesystem, str(path)
        import fsspec

        known = fsspec.filesystem(scheme)
    except Exception as error:  # a scheme that nobody knows, a package that is not there, options that are missing
        raise InputError(
            f"{shown(location)} is not a location that can be opened: {shown(error)}",
            allowed="a local path, or a URI such as s3://bucket/file, gs://bucket/file, https://host/file, "
            "hf://datasets/name/file",
        ) from None
    inside = location if scheme in ("http", "https") else known._strip_protocol(location)
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(known)), str(inside)


def find_files(location: str | os.PathLike[str], endings: tuple[str, ...]) -> list[str]:
    """The files that a location means, sorted: one file; all with one of the endings in a folder and the folders below
    it; those that a pattern with * fits. InputError: there are none."""
    path = os.fspath(location)
    scheme = urlsplit(path).scheme if is_remote(path) else ""
    if scheme in ("http", "https"):
        return [path]
    pattern = "*" in path or (not scheme and "?" in path and not Path(path).exists())
    if scheme:
        found = _remote_files(path, endings, pattern)
    elif pattern:
        found = [file for file in glob.glob(path, recursive=True) if Path(file).is_file()]
    elif Path(path).is_dir():
        found = [str(file) for file in Path(path).rglob("*") if file.is_file() and _is_data(file, path, endings)]
    elif Path(path).is_file():
        return [path]
    else:
        raise InputError(f"there is no file {path}", fix="check the path")
    if not found:
        what = "no file fits the pattern" if pattern else "no file with one of the endings in the folder"
        raise InputError(f"{what} {shown(path)}", allowed="" if pattern else ", ".join(endings))
    return sorted(found)


def _remote_files(uri: str, endings: tuple[str, ...], pattern: bool) -> list[str]:
    import pyarrow.fs

    place, question, query = uri.partition("?")
    root = place.split("*")[0].rpartition("/")[0] if pattern else place
    filesystem, inside = file_system(root + question + query)
    try:
        info = filesystem.get_file_info(inside)
        if not pattern and info.type == pyarrow.fs.FileType.File:
            return [uri]
        listed = filesystem.get_file_info(pyarrow.fs.FileSelector(inside, recursive=True, allow_not_found=True))
    except Exception as error:
        raise unreachable(uri, error) from None
    names = [entry.path[len(inside) :].lstrip("/") for entry in listed if entry.type == pyarrow.fs.FileType.File]
    if pattern:
        wanted = place[len(root) :].lstrip("/")
        names = [name for name in names if fnmatch.fnmatch(name, wanted)]
    else:
        names = [name for name in names if _is_data(Path(name), "", endings)]
    if not names and info.type == pyarrow.fs.FileType.NotFound:
        raise InputError(f"there is no file {shown(uri)}", fix="check the location")
    if urlsplit(uri).scheme in OF_PYARROW:
        names = [quote(name, safe="/=:,+") for name in names]
    return [f"{root.rstrip('/')}/{name}{question}{query}" for name in names]


def plain_path(location: str) -> str:
    """A location without its query, and with the names of files as they are."""
    if not is_remote(location):
        return location
    return (
        unquote(location.partition("?")[0]) if urlsplit(location).scheme in OF_PYARROW else location.partition("?")[0]
    )


def _is_data(file: Path, root: str, endings: tuple[str, ...]) -> bool:
    inside = file.relative_to(root).parts if root else file.parts
    return file.name.lower().endswith(endings) and not any(part.startswith(NO_DATA) for part in inside)


def check_not_the_same(path: str, test_path: str) -> None:
    """InputError where the test file is the training file, or a copy of it."""
    ours, theirs = Path(path), Path(test_path)
    files = bool(test_path) and ours.is_file() and theirs.is_file()
    same = bool(test_path) and (path == test_path or ours.resolve() == theirs.resolve())
    if same or (files and filecmp.cmp(ours, theirs, shallow=False)):
        raise InputError(
            f"test_path={shown(test_path)} holds the same as path={shown(path)}: nothing would be tested",
            fix="leave test_path out, and rows are held out; or give another file",
        )
