"""Reading HDF5 files: their datasets piece by piece, and nothing that lies outside the file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from distdl.data.inputs import open_bytes
from distdl.data.store import is_remote
from distdl.errors import InputError

HELD_BYTES = 256 << 20
"""The most of a dataset that is held, where its chunks are so large."""
WHOLE_BYTES = 32 << 20
"""A dataset up to this size is read at once, so that no chunk is unpacked twice."""
MOST_LINKS = 16


def library(source: str) -> Any:
    """The module h5py. InputError: it is not installed."""
    try:
        import h5py
    except ImportError as error:
        fix = f"pip install 'distdl[{source}]'"
        raise InputError(f"the source {source} reads HDF5 by h5py, which is not installed: {error}", fix=fix) from error
    return h5py


class Hdf5:
    """An HDF5 file. `what` names its kind in messages."""

    def __init__(self, path: str, source: str, what: str = "an HDF5 file") -> None:
        self.path, self.h5py, self._what = path, library(source), what
        file = open_bytes(path)
        try:  # by its path where it has one, which is faster
            self.root = self.h5py.File(file if is_remote(path) else path, "r", locking="best-effort")
        except OSError as error:
            raise InputError(f"{path} is not {what} that can be read: {error}", fix="copy it again") from error

    def bad(self, name: str, error: object) -> InputError:
        return InputError(f"{self.path}: '{name}' cannot be read: {error}", fix="copy the file again")

    def find(self, name: str) -> Any:
        """The object of a path, such as `train/x`; None: there is none. InputError: the way leads out of the file."""
        parts, here, links = [p for p in name.split("/") if p], self.root, 0
        while parts:
            part = parts.pop(0)
            link = self._link(here, part, name) if isinstance(here, self.h5py.Group) else None
            if link is None:
                return None
            if isinstance(link, self.h5py.ExternalLink):
                raise InputError(
                    f"{self.path}: '{name}' is a link to another file, {link.filename}",
                    fix=f"copy what it stands for into the file (h5copy), or give that file and {link.path}",
                )
            if isinstance(link, self.h5py.SoftLink):
                links += 1
                if links > MOST_LINKS:
                    raise InputError(f"{self.path}: '{name}' is a link that leads to itself")
                here = self.root if link.path.startswith("/") else here
                parts = [p for p in link.path.split("/") if p and p != "."] + parts
                continue
            try:
                here = here[part]
            except (KeyError, OSError, RuntimeError) as error:
                raise self.bad(name, error) from error
        return here

    def _link(self, group: Any, part: str, name: str) -> Any:
        try:
            return group.get(part, getlink=True)
        except (TypeError, OSError, RuntimeError) as error:  # a kind of link that a plug-in would follow
            raise self.bad(name, error) from error

    def datasets(self) -> Iterator[tuple[str, Any]]:
        """(path, dataset) of all there are; (path, None) of links. Each group is entered once."""
        seen: set[Any] = set()

        def below(group: Any, path: str) -> Iterator[tuple[str, Any]]:
            address = self.h5py.h5o.get_info(group.id).addr
            if address in seen:
                return
            seen.add(address)
            for name in group:
                link = group.get(name, getlink=True)
                if not isinstance(link, self.h5py.HardLink):
                    yield f"{path}{name}", None
                    continue
                child = group[name]
                if isinstance(child, self.h5py.Group):
                    yield from below(child, f"{path}{name}/")
                elif isinstance(child, self.h5py.Dataset):
                    yield f"{path}{name}", child

        try:
            yield from below(self.root, "")
        except (KeyError, OSError, RuntimeError) as error:
            raise InputError(
                f"{self.path} is not {self._what} that can be read: {error}", fix="copy it again"
            ) from error


class Hdf5Array:
    """A dataset of numbers or text, read in multiples of its chunks."""

    def __init__(self, file: Hdf5, name: str, dataset: Any) -> None:
        self._file, self._name, self._dataset, h5py = file, name, dataset, file.h5py
        self.names: list[str] = []
        self._text = h5py.check_string_dtype(dataset.dtype) is not None
        enum = h5py.check_enum_dtype(dataset.dtype) if dataset.dtype.kind != "b" else None
        self._named = {value: key for key, value in (enum or {}).items()}
        self.names = [self._named[value] for value in sorted(self._named)]
        if dataset.shape is None:
            raise InputError(f"{file.path}: '{name}' is empty")
        if not self._text and (dataset.dtype.kind not in "biufc" or dataset.dtype.subdtype):
            fields = f" with the fields {', '.join(dataset.dtype.names)}" if dataset.dtype.names else ""
            raise InputError(
                f"{file.path}: '{name}' holds {h5py_word(dataset.dtype)}{fields}",
                allowed="whole or real numbers, or names of classes as text",
                fix="write its fields as datasets of their own" if fields else "",
            )
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype = np.dtype("U") if self._text or self._named else dataset.dtype
        try:
            self._within_the_file()
            self._written()
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise file.bad(name, error) from error

    def _within_the_file(self) -> None:
        outside = [entry[0] for entry in self._dataset.external or ()]
        if self._dataset.is_virtual:
            outside += [s.file_name for s in self._dataset.virtual_sources() if s.file_name != "."]
        if outside:
            raise InputError(
                f"{self._file.path}: the values of '{self._name}' lie in another file, {outside[0]}",
                fix="copy them into one file, for example by h5repack",
            )

    def _written(self) -> None:
        """InputError: values that nobody has written; HDF5 would read them as 0."""
        dataset, what = self._dataset, ""
        if dataset.is_virtual or not dataset.size or dataset.dtype.kind == "O":
            return
        if dataset.chunks:
            have = dataset.id.get_num_chunks()
            want = math.prod(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks))
            what = f"{have:,} of its {want:,} chunks were written" if have < want else ""
        elif dataset.id.get_storage_size() < dataset.size * dataset.dtype.itemsize:
            what = "nothing was written into it"
        if what:
            raise InputError(
                f"{self._file.path}: '{self._name}' is {list(dataset.shape)}, and {what}: the rest would be read as 0",
                fix="let the program that writes it come to its end, or cut the dataset (resize)",
            )

    def blocks(self, axis: int, rows: int) -> Iterator[np.ndarray]:
        dataset, total = self._dataset, self.shape[axis]
        row_bytes = max(1, dataset.dtype.itemsize * dataset.size // max(1, total))
        chunk = min(dataset.chunks[axis], max(1, total)) if dataset.chunks else 1
        step = -(-rows // chunk) * chunk
        if row_bytes * total <= WHOLE_BYTES:
            step = max(1, total)
        elif row_bytes * step > HELD_BYTES:
            size = f"{row_bytes * chunk / 2**20:,.0f} MiB"
            raise InputError(
                f"{self._file.path}: '{self._name}' is stored in chunks of {chunk:,} rows, {size}, which come together",
                fix=f"h5repack -l {self._name}:CHUNK=... with fewer rows",
            )
        for start in range(0, total, step):
            try:
                part = self._read((slice(None),) * axis + (slice(start, min(total, start + step)),))
            except (OSError, RuntimeError, ValueError) as error:
                raise self._file.bad(self._name, error) from error
            for at in range(0, part.shape[axis], rows):
                yield part[(slice(None),) * axis + (slice(at, at + rows),)]

    def _read(self, where: tuple[slice, ...]) -> np.ndarray:
        if self._text:
            return self._dataset.asstr(errors="replace")[where].astype("U")
        if self._named:
            found = self._dataset[where]
            return np.array([self._named.get(v, f"<{v}>") for v in found.reshape(-1).tolist()]).reshape(found.shape)
        return self._dataset[where]


def h5py_word(dtype: np.dtype[Any]) -> str:
    """A type for a person."""
    metadata: Any = dtype.metadata or {}
    if dtype.kind == "S" or metadata.get("vlen") in (str, bytes):
        return "text"
    return "records" if dtype.names else "references or lists of unequal length" if dtype.kind == "O" else str(dtype)
