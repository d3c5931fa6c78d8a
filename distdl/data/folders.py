"""The files of a folder, a zip or a tar, read where they lie: nothing is unpacked to the disk.

A tar that is compressed as a whole can only be read from front to back, so its files stand in the archive's order; those of
a folder, a zip and a plain tar are sorted by their names.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from distdl.data.advice import SURE
from distdl.data.tars import Member, Torn
from distdl.errors import InputError

LARGEST_FILE_BYTES = 1 << 30
"""A picture or a recording is held in memory, and an archive may say little and hold much."""
TOLD = 5
UNPACKERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
DAMAGE = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zlib.error, lzma.LZMAError),
    *(tarfile.TarError, zipfile.BadZipFile),
)


class Files:
    """The files with certain endings below one place. `names`: their paths in it, with slashes; `folders`: all folders;
    `left_out`: how many other files there are, by ending, or why they were not taken."""

    def __init__(self, place: str, endings: Collection[str]):
        self.place, self.endings = place, endings
        self.names: list[str] = []
        self.folders: set[str] = set()
        self.left_out: Counter[str] = Counter()
        self.forward_only = False

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, which looks through the place itself: an open archive does not go along."""
        return open_files, (self.place, self.endings)

    def called(self, number: int) -> str:
        """The file's name for a person."""
        return os.path.join(self.place, self.names[number])

    def open(self, number: int) -> BinaryIO:
        """A file, opened for reading bytes. InputError: it is damaged or too large."""
        path = self.called(number)
        try:
            self._check_size(path, os.stat(path).st_size)
            return open(path, "rb")
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}", fix="replace or remove it") from error

    def extra(self, name: str) -> BinaryIO | None:
        """A file of that path of any ending, such as a table of labels, or None."""
        path = Path(self.place) / name
        return path.open("rb") if path.is_file() else None

    def _wanted(self, name: str) -> bool:
        """Whether a file is taken; counts it where it is not."""
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{self.place} holds a name that is no UTF-8: {name!a}", fix="rename it") from None
        parts, ending = PurePosixPath(name).parts, PurePosixPath(name).suffix.lower()
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            self.left_out["hidden"] += 1
        elif ending not in self.endings:
            self.left_out[ending or "without an ending"] += 1
        else:
            return True
        return False

    def _check_size(self, called: str, size: int) -> None:
        if size > LARGEST_FILE_BYTES:
            raise InputError(f"{called} has {size / 2**30:.1f} GiB", allowed=f"{LARGEST_FILE_BYTES / 2**30:.0f} GiB")


def some_names(names: Sequence[str]) -> str:
    """A few of many names, for a sentence."""
    more = f" and {len(names) - TOLD:,} more" if len(names) > TOLD else ""
    return ", ".join(names[:TOLD]) + more


def open_files(path: str, endings: Collection[str]) -> Files:
    """The files with these endings (lower case, with the dot) of a folder, or of a zip or tar. InputError: it is none."""
    if Path(path).is_dir():
        return _Folder(path, endings)
    if not Path(path).is_file():
        raise InputError(f"there is no folder {path}", fix="check the path")
    try:
        if zipfile.is_zipfile(path):
            return _Zip(path, endings)
        return _Tar(path, endings)
    except DAMAGE as error:
        raise InputError(
            f"{path} is no folder, and no zip or tar that can be read: {error}", allowed="a folder, .zip, .tar, .tar.gz"
        ) from error


def fits(path: Path, endings: Collection[str]) -> float:
    """How likely a folder or archive is one of folders with such files, from 0 to 1, by the first ones in it."""
    names: Iterable[str] = ()
    if path.is_dir():
        folders = [folder for folder in path.iterdir() if folder.is_dir()]
        names = (str(file.relative_to(path)) for folder in folders for file in islice(folder.rglob("*"), 20))
    elif path.is_file():
        try:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    names = archive.namelist()[:100]
            elif tarfile.is_tarfile(path):
                with tarfile.open(path) as tar:
                    names = [member.name for member in islice(tar, 100)]
        except DAMAGE:
            return 0.0
    found = Counter(PurePosixPath(name).suffix.lower() in endings for name in names if "/" in name.removeprefix("./"))
    return SURE if found[True] and (path.is_dir() or found[True] >= found[False]) else 0.0


class _Folder(Files):
    def __init__(self, place: str, endings: Collection[str]):
        super().__init__(place, endings)
        self.names = sorted((name for name in self._walk("", ()) if self._wanted(name)), key=_by_parts)

    def _walk(self, below: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
        """All files. Links to folders are followed, but never in a circle."""
        folder = Path(self.place) / below
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise InputError(f"{folder} is a link to a folder that it lies in", fix="remove the link")
        with os.scandir(folder) as entries:
            for entry in entries:
                name = f"{below}/{entry.name}" if below else entry.name
                if not entry.is_dir():
                    yield name
                    continue
                if not entry.name.startswith("."):
                    self.folders.add(name)
                yield from self._walk(name, (*above, here))


class _Zip(Files):
    def __init__(self, place: str, endings: Collection[str]):
        super().__init__(place, endings)
        self._archive = zipfile.ZipFile(place)
        members: dict[str, str] = {}
        for info in self._archive.infolist():
            name = _safe(place, info.filename, members)
            _add_folders(self.folders, name, info.is_dir())
            if not info.is_dir():
                members[name] = info.filename
        self._stored = {name: stored for name, stored in members.items() if self._wanted(name)}
        self.names = sorted(self._stored, key=_by_parts)

    def called(self, number: int) -> str:
        return f"{self.place}: {self.names[number]}"

    def open(self, number: int) -> BinaryIO:
        return self._read(self._stored[self.names[number]], self.called(number))

    def extra(self, name: str) -> BinaryIO | None:
        return self._read(name, f"{self.place}: {name}") if name in self._archive.namelist() else None

    def _read(self, stored: str, called: str) -> BinaryIO:
        self._check_size(called, self._archive.getinfo(stored).file_size)
        try:
            return io.BytesIO(self._archive.read(stored))  # no more than its declared size
        except DAMAGE as error:  # a password is a RuntimeError
            raise InputError(f"{called} cannot be unpacked: {error}", fix="make the archive again") from error


class _Tar(Files):
    def __init__(self, place: str, endings: Collection[str]):
        super().__init__(place, endings)
        with open(place, "rb") as file:
            head = file.read(6)
        unpack = next((unpack for magic, unpack in UNPACKERS.items() if head.startswith(magic)), None)
        self.forward_only = unpack is not None
        self._stream: BinaryIO = (unpack or open)(place, "rb")
        self._places: dict[str, tuple[int, int]] = {}  # name -> offset and size, a hundredth of what tarfile would keep
        self._tables: dict[str, tuple[int, int]] = {}
        self._list()
        self.names = list(self._places) if self.forward_only else sorted(self._places, key=_by_parts)

    def _list(self) -> None:
        seen = set[str]()
        try:
            with tarfile.open(fileobj=self._stream, mode="r:", tarinfo=Member) as archive:
                for member in archive:
                    archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
                    self._add(member, seen)
        except Torn as error:
            if not seen:
                raise
            what = f"{self.place} stops without the end mark of a tar after {len(seen):,} files ({error})"
            raise InputError(what, fix="it is cut off or damaged: copy or make it again") from error

    def _add(self, member: tarfile.TarInfo, seen: set[str]) -> None:
        name = _safe(self.place, member.name, () if member.isdir() else seen)
        _add_folders(self.folders, name, member.isdir())
        if member.isdir():
            return
        seen.add(name)
        if not member.isreg() or member.issparse():
            self.left_out["links and special files"] += 1
        elif self._wanted(name):
            self._places[name] = (member.offset_data, member.size)
        elif name.endswith(".csv"):
            self._tables[name] = (member.offset_data, member.size)

    def called(self, number: int) -> str:
        return f"{self.place}: {self.names[number]}"

    def open(self, number: int) -> BinaryIO:
        return self._read(*self._places[self.names[number]], self.called(number))

    def extra(self, name: str) -> BinaryIO | None:
        return self._read(*self._tables[name], f"{self.place}: {name}") if name in self._tables else None

    def _read(self, offset: int, size: int, called: str) -> BinaryIO:
        self._check_size(called, size)
        try:
            self._stream.seek(offset)
            content = self._stream.read(size)
        except DAMAGE as error:
            raise InputError(f"{called} cannot be unpacked: {error}", fix="make the archive again") from error
        if len(content) < size:
            raise InputError(f"{called} is cut off after {len(content):,} of {size:,} bytes", fix="copy the tar again")
        return io.BytesIO(content)


def _by_parts(name: str) -> list[str]:
    """Sorts a folder's files together, and before those of a folder whose name only begins like its own."""
    return name.split("/")


def _safe(place: str, name: str, seen: Container[str]) -> str:
    """A member's name without `./`. InputError: it leaves the archive, or was seen before."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or name.startswith(("/", "\\")) or (parts and parts[0].endswith(":")):
        raise InputError(f"{place} holds '{name}', a place outside of it", fix="make the archive again")
    if (safe := "/".join(parts)) in seen:
        raise InputError(f"{place} holds '{safe}' twice", fix="make the archive again")
    return safe


def _add_folders(folders: set[str], name: str, is_folder: bool) -> None:
    parts = PurePosixPath(name).parts
    if not any(part.startswith(".") or part == "__MACOSX" for part in parts):
        folders.update("/".join(parts[:n]) for n in range(1, len(parts) + is_folder))
