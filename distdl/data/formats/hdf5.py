"""HDF5 files: datasets of samples, and as many of labels or targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distdl.data.advice import SURE, Advice, Wish, arrays_advice, begins_with, by_ending
from distdl.data.formats._arrays import Array, ArrayOptions, prepare_arrays
from distdl.data.formats._hdf5 import Hdf5, Hdf5Array, h5py_word
from distdl.data.raw import Prepared
from distdl.errors import InputError

ENDINGS = (".h5", ".hdf5", ".he5")


@dataclass(frozen=True)
class Options(ArrayOptions):
    """Options of the source `hdf5`."""

    train: tuple[str, ...] = ()
    """Dataset of the file for each column, in the same order, by its path: `train/x`."""
    classes: str = ""
    """Dataset that holds the names of the classes in the order of their numbers, or an attribute: `train/y@names`. Labels
    that are texts or of an enumeration name them themselves."""


def prepare(options: Options) -> Prepared:
    """The samples as they are stored or float32; other columns int64 where they hold whole numbers, else float32."""
    return prepare_arrays(options, Hdf5File)


class Hdf5File:
    """The datasets of a file, and its attributes that are lists of texts."""

    matrices = False

    def __init__(self, path: str) -> None:
        self.path, self._file = path, Hdf5(path, "hdf5")

    def names(self) -> dict[str, str]:
        found = {}
        for name, dataset in self._file.datasets():
            found[name] = (
                f"{h5py_word(dataset.dtype)} {list(dataset.shape or ())}" if dataset is not None else "(a link)"
            )
            for attribute in dataset.attrs if dataset is not None else ():
                if (size := dataset.attrs.get_id(attribute).shape) and len(size) == 1:
                    found[f"{name}@{attribute}"] = f"[{size[0]}]"
        return found

    def array(self, name: str) -> Array | None:
        path, _, attribute = name.partition("@")
        found = self._file.find(path)
        if found is None or (attribute and attribute not in found.attrs):
            return None
        if not isinstance(found, self._file.h5py.Dataset):
            raise InputError(f"{self.path}: '{path}' is no dataset", fix="name one below it, such as group/x")
        return _Attribute(self.path, name, found.attrs[attribute]) if attribute else Hdf5Array(self._file, path, found)


class _Attribute:
    """A short list that is kept beside a dataset."""

    names: list[str] = []

    def __init__(self, path: str, name: str, value: Any) -> None:
        texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in np.asarray(value).reshape(-1)]
        self._values = np.array([str(text) for text in texts])
        self.shape, self.dtype = self._values.shape, self._values.dtype

    def blocks(self, axis: int, rows: int) -> Iterator[np.ndarray]:
        for start in range(0, len(self._values), rows):
            yield self._values[start : start + rows]


def recognise(path: Path) -> float:
    """By the first bytes; MATLAB's files of version 7.3 have others before them."""
    return SURE if begins_with(path, b"\x89HDF\r\n\x1a\n") else by_ending(path, ENDINGS)


def advise(path: str, wish: Wish) -> Advice:
    """Which arrays are samples and which are labels, by their names, for `distdl init`."""
    return arrays_advice(Hdf5File(path), wish)
