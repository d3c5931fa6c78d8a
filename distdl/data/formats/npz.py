"""NumPy's archives of arrays (.npz), and folders of its arrays (.npy): samples, and as many labels or targets."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from distdl.data.advice import SURE, Advice, Wish, arrays_advice, begins_with, by_ending
from distdl.data.formats._arrays import Array, ArrayOptions, prepare_arrays
from distdl.data.inputs import open_bytes
from distdl.data.raw import Prepared
from distdl.errors import InputError

ENDINGS = (".npz",)
WHOLE_BYTES = 1 << 30
"""The largest array of an archive that is held, where its rows do not lie one after the other."""
DAMAGED = (
    ValueError,
    OSError,
    EOFError,
    AttributeError,
    TypeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Options(ArrayOptions):
    """Options of the source `npz`."""

    path: str
    """The archive, or a folder of .npy files, each of which is an array: x_train.npy is `x_train`."""
    columns: tuple[str, ...] = ("image", "label")
    """Columns of the data set, the samples first. `label` holds classes, by number or by name."""
    train: tuple[str, ...] = ("x_train", "y_train")
    """Array of the archive for each column, in the same order; the first dimension of an array counts the rows."""
    test_fraction: float = field(default=0.0, kw_only=True)
    """Part of the rows held out as the split `test` where nothing else says which rows those are."""


def prepare(options: Options) -> Prepared:
    """The samples as they are stored or float32; other columns int64 where they hold whole numbers, else float32."""
    return prepare_arrays(options, NpyFolder if Path(options.path).is_dir() else NpzFile)


class NpzFile:
    """An archive, whose arrays are unpacked as they are read."""

    matrices = False

    def __init__(self, path: str) -> None:
        self.path = path
        file = open_bytes(path)
        try:
            self._zip = zipfile.ZipFile(file)
        except DAMAGED as error:
            raise self.bad(error) from error

    def bad(self, error: object) -> InputError:
        fix = "path=FOLDER of the .npy files, and their names as train=" if self.path.endswith(".npy") else ""
        return InputError(f"{self.path} is not an .npz archive of plain arrays: {error}", fix=fix)

    def names(self) -> dict[str, str]:
        return {member.removesuffix(".npy"): "" for member in self._zip.namelist()}

    def array(self, name: str) -> Array | None:
        member = next((m for m in self._zip.namelist() if m.removesuffix(".npy") == name), "")
        if not member:
            return None
        try:
            size_bytes = self._zip.getinfo(member).file_size
            return _Stream(self, name, lambda: self._zip.open(member), size_bytes)
        except DAMAGED as error:
            raise self.bad(error) from error


class NpyFolder:
    """A folder of .npy files, which are mapped into memory."""

    matrices = False

    def __init__(self, path: str) -> None:
        self.path = path
        if not Path(path).is_dir():
            raise InputError(f"there is no folder {path}", fix="check the path")

    def names(self) -> dict[str, str]:
        return {path.stem: "" for path in sorted(Path(self.path).glob("*.npy"))}

    def array(self, name: str) -> Array | None:
        if name not in self.names():  # no path out of the folder
            return None
        file = Path(self.path) / f"{name}.npy"
        try:
            return _Mapped(f"{file}", np.load(file, mmap_mode="r", allow_pickle=False))
        except DAMAGED as error:
            raise InputError(f"{file} is not a plain array of NumPy's: {error}") from error


def _check(where: str, name: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind not in "biufcUS":
        raise InputError(
            f"{where}: '{name}' holds {dtype}", allowed="whole or real numbers, or names of classes as text"
        )
    return np.dtype(f"U{dtype.itemsize}") if dtype.kind == "S" else dtype


def _decoded(block: np.ndarray) -> np.ndarray:
    """Bytes as text."""
    return np.char.decode(block, "utf-8", "replace") if block.dtype.kind == "S" else block


class _Mapped:
    names: list[str] = []

    def __init__(self, path: str, array: np.ndarray) -> None:
        self.dtype, self.shape, self._array = _check(path, Path(path).stem, array.dtype), array.shape, array

    def blocks(self, axis: int, rows: int) -> Iterator[np.ndarray]:
        for start in range(0, self.shape[axis], rows):
            yield _decoded(self._array[(slice(None),) * axis + (slice(start, start + rows),)])


class _Stream:
    """An array of an archive. In C order the rows of its first axis lie one after the other, in Fortran order those of
    its last."""

    names: list[str] = []

    def __init__(self, file: NpzFile, name: str, open_member: Callable[[], IO[bytes]], size_bytes: int) -> None:
        self._file, self._name, self._open = file, name, open_member
        with open_member() as member:
            self.shape, self._fortran, self._stored = _header(member)
            self._start = member.tell()
        if self._stored.hasobject:
            raise ValueError(f"'{name}' holds Python objects, which would have to be unpickled: a pickle may run code")
        self.dtype = _check(file.path, name, self._stored)
        self._bytes = self._stored.itemsize * math.prod(self.shape)
        if self._bytes != size_bytes - self._start:
            has = f"{size_bytes - self._start:,} bytes for an array of {self._bytes:,}"
            raise ValueError(f"'{name}' has {has}")

    def blocks(self, axis: int, rows: int) -> Iterator[np.ndarray]:
        last = len(self.shape) - 1
        count, across = self.shape[axis], axis != (last if self._fortran else 0)
        if across and self._bytes > WHOLE_BYTES:
            size = f"{self._bytes / 2**30:.1f} GiB"
            raise InputError(
                f"{self._file.path}: the rows of '{self._name}' ({size}) do not lie one after the other",
                fix="save it as a .npy file of its own, or by numpy.ascontiguousarray in the order that axes= asks for",
            )
        try:
            with self._open() as member:
                member.read(self._start)
                for start in range(0, count, count if across else rows):
                    part = self._part(member, axis, count if across else min(rows, count - start))
                    for at in range(0, part.shape[axis], rows):
                        yield _decoded(part[(slice(None),) * axis + (slice(at, at + rows),)])
        except DAMAGED as error:
            raise self._file.bad(f"'{self._name}': {error}") from error

    def _part(self, member: IO[bytes], axis: int, rows: int) -> np.ndarray:
        shape = (*self.shape[:axis], rows, *self.shape[axis + 1 :])
        size_bytes = self._stored.itemsize * math.prod(shape)
        content = member.read(size_bytes)
        if len(content) < size_bytes:
            raise EOFError(f"it ends {size_bytes - len(content):,} bytes early")
        return np.frombuffer(content, self._stored).reshape(shape, order="F" if self._fortran else "C")


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is in Fortran order, and type. ValueError: it is no array."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(member)
    if version not in read:
        raise ValueError(f"version {version} of the .npy format holds records")
    return read[version](member)


def recognise(path: Path) -> float:
    """An archive of .npy files, by its directory; or a folder of such."""
    if path.is_dir():
        return by_ending(path, (".npy",))
    if begins_with(path, b"PK\x03\x04") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        return SURE if names and all(name.endswith(".npy") for name in names) else 0.0
    return by_ending(path, ENDINGS)


def advise(path: str, wish: Wish) -> Advice:
    """Which arrays are samples and which are labels, by their names, for `distdl init`."""
    return arrays_advice((NpyFolder if Path(path).is_dir() else NpzFile)(path), wish)
