"""MATLAB's files (.mat): variables of samples, and as many of labels or targets.

Numbers are read in pieces: files of version 7.3 are HDF5 with the axes in reverse, those of version 5 to 7 have them column
by column. What else is in the latter (text, cell arrays, sparse matrices, complex numbers), and files of version 4, is read
by SciPy, a variable at a time, which must be held whole. MATLAB has no vectors: where a label or target has one axis longer
than 1, its others are left out. Its text is padded with blanks to the longest, which are stripped.
"""

from __future__ import annotations

import math
import sys
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from distdl.data.advice import SURE, Advice, Wish, arrays_advice, begins_with, by_ending
from distdl.data.formats._arrays import Array, ArrayOptions, prepare_arrays
from distdl.data.formats._hdf5 import Hdf5, Hdf5Array
from distdl.data.formats._mat5 import Place, check
from distdl.data.formats._mat_pieces import Pieces
from distdl.data.inputs import open_bytes
from distdl.data.raw import Prepared
from distdl.errors import InputError

ENDINGS = (".mat",)
LARGE_BYTES = 64 << 20
"""A variable that is held whole is said from this size on."""
CLASSES = "whole or real numbers, text, or a cell array of text"
FIX = "in MATLAB: double(x), cellstr(x) or table2array(x), then save again"


@dataclass(frozen=True)
class Options(ArrayOptions):
    """Options of the source `mat`."""

    train: tuple[str, ...] = ()
    """Variable of the file for each column, in the same order; a field of a structure by a dotted path: `data.x`."""
    classes: str = ""
    """Variable that holds the names of the classes in the order of their numbers: a cell array of text, or rows of text.
    Labels that are text themselves name them."""


def prepare(options: Options) -> Prepared:
    """The samples as they are stored or float32; other columns int64 where they hold whole numbers, else float32. Labels of
    whole numbers are int64, though MATLAB has them as double."""
    return prepare_arrays(options, open_mat)


def open_mat(path: str) -> MatFile | Mat73File:
    """A file of either kind, told apart by its first bytes. InputError: it is neither."""
    try:
        from scipy.io.matlab import matfile_version
    except ImportError as error:
        raise InputError(f"the source mat needs SciPy: {error}", fix="pip install 'distdl[mat]'") from error
    file = open_bytes(path)
    places: dict[str, Place] = {}
    try:
        major, _ = matfile_version(file)
        if major == 1:
            places = check(file)
    except Exception as error:  # SciPy has no word for "this is no such file"
        raise _bad(path, error) from error
    return Mat73File(path) if major == 2 else MatFile(path, file, places)


def _bad(path: str, error: object) -> InputError:
    return InputError(f"{path} is not a .mat file that can be read: {error}", fix="copy it again")


def _refused(path: str, name: str, kind: str) -> InputError:
    return InputError(f"{path}: '{name}' is a MATLAB {kind}", allowed=CLASSES, fix=FIX)


class MatFile:
    """A file of version 4 to 7."""

    matrices = True

    def __init__(self, path: str, file: BinaryIO, places: dict[str, Place]) -> None:
        from scipy.io import whosmat

        self.path, self._file, self._places = path, file, places
        self._have = {name: (place.sizes, place.called) for name, place in places.items() if "." not in name}
        try:  # SciPy would hold each variable that is compressed
            self._have = self._have or {name: (shape, kind) for name, shape, kind in whosmat(file)}
        except Exception as error:  # a damaged file fails inside SciPy in many ways
            raise _bad(path, error) from error
        self._structures: dict[str, Any] = {}

    def names(self) -> dict[str, str]:
        found = {}
        for name, (shape, kind) in self._have.items():
            found[name] = f"{kind} {list(shape)}"
            below = {path: place for path, place in self._places.items() if path.startswith(f"{name}.")}
            found |= {path: str(list(place.sizes)) for path, place in below.items()}
        return found

    def array(self, name: str) -> Array | None:
        first, *below = name.split(".")
        if first not in self._have:
            return None
        if (place := self._places.get(name)) and place.stored:
            return _Named(self.path, Pieces(self._file, place))
        value = self._load(first)
        for field in below:
            if not isinstance(value, np.ndarray) or not value.dtype.names or field not in value.dtype.names:
                return None
            if value.size != 1:
                raise InputError(f"{self.path}: '{first}' is an array of {value.size} structures", allowed="one")
            value = value[field].item()
        return self._read(name, value)

    def _load(self, name: str) -> Any:
        from scipy.io import loadmat

        if name in self._structures:
            return self._structures[name]
        shape, kind = self._have[name]
        inside = [place for path, place in self._places.items() if path == name or path.startswith(f"{name}.")]
        if 8 * sum(math.prod(place.sizes) for place in inside) > LARGE_BYTES or 8 * math.prod(shape) > LARGE_BYTES:
            told = f"{self.path}: '{name}' ({list(shape)} {kind}) is held in memory"
            print(f"{told}: of this version of the format real numbers alone come in pieces", file=sys.stderr)
        try:  # mat_dtype: MATLAB stores whole numbers of any type in as few bytes as hold them
            with warnings.catch_warnings():
                warnings.simplefilter("error", np.exceptions.ComplexWarning)  # which it would make real
                value = loadmat(self._file, variable_names=[name], mat_dtype=True, chars_as_strings=True)[name]
        except np.exceptions.ComplexWarning:
            value = loadmat(self._file, variable_names=[name], chars_as_strings=True)[name]
        except Exception as error:  # a damaged file fails inside SciPy in many ways
            raise _bad(self.path, f"'{name}': {error}") from error
        if kind == "struct":
            self._structures[name] = value
        return value

    def _read(self, name: str, value: Any) -> Array:
        if hasattr(value, "tocsr"):
            return _Sparse(_sound(value, self.path, name))
        if not isinstance(value, np.ndarray) or value.dtype.names or type(value).__name__ == "MatlabOpaque":
            raise _refused(self.path, name, "structure" if isinstance(value, np.ndarray) else "object")
        if value.dtype.kind == "O":
            cells = value.reshape(-1, order="F")
            if not all(
                isinstance(c, np.ndarray) and (c.dtype.kind == "U" or not c.size) and c.size <= 1 for c in cells
            ):
                raise _refused(self.path, name, "cell array of other things than text")
            value = np.array([str(c.item()) if c.size else "" for c in cells])
        if value.dtype.kind not in "biufcU":
            raise InputError(f"{self.path}: '{name}' holds {value.dtype}", allowed=CLASSES)
        return _Held(value)


class _Named:
    """An array in pieces, of a file that is named where it is damaged."""

    names: list[str] = []

    def __init__(self, path: str, pieces: Pieces) -> None:
        self._path, self._pieces = path, pieces
        self.shape, self.dtype = pieces.shape, pieces.dtype

    def blocks(self, axis: int, rows: int) -> Iterator[np.ndarray]:
        try:
            yield from self._pieces.blocks(axis, rows)
        except (OSError, ValueError, zlib.error) as error:
            raise _bad(self._path, error) from error


class _Held:
    """An array in memory."""

    names: list[str] = []

    def __init__(self, values: np.ndarray) -> None:
        self._values, self.shape, self.dtype = values, values.shape, values.dtype

    def blocks(self, axis: int, rows: int) -> Iterator[np.ndarray]:
        for start in range(0, self.shape[axis], rows):
            yield self._values[(slice(None),) * axis + (slice(start, start + rows),)]


class _Sparse:
    """A sparse matrix, made dense a few rows at a time."""

    names: list[str] = []

    def __init__(self, matrix: Any) -> None:
        self._matrix, self.shape, self.dtype = matrix, matrix.shape, matrix.dtype

    def blocks(self, axis: int, rows: int) -> Iterator[np.ndarray]:
        matrix = self._matrix.tocsc() if axis else self._matrix.tocsr()
        for start in range(0, self.shape[axis], rows):
            yield (matrix[:, start : start + rows] if axis else matrix[start : start + rows]).toarray()


def _sound(matrix: Any, path: str, name: str) -> Any:
    """A sparse matrix whose indices lie within it: SciPy does not look when it makes it dense."""
    try:
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise _bad(path, f"'{name}': {error}") from error
    return matrix


class Mat73File:
    """A file of version 7.3."""

    matrices = True

    def __init__(self, path: str) -> None:
        self.path, self._file = path, Hdf5(path, "mat", "a .mat file")

    def names(self) -> dict[str, str]:
        found = {}
        for name, dataset in self._file.datasets():
            if not name.startswith("#") and dataset is not None:
                kind = _class(dataset)
                found[name.replace("/", ".")] = f"{kind} {list(reversed(dataset.shape or ()))}".strip()
        return found

    def array(self, name: str) -> Array | None:
        found = self._file.find(name.replace(".", "/"))
        if found is None:
            return None
        kind = _class(found)
        if isinstance(found, self._file.h5py.Group):
            return (
                self._sparse(name, found) if "MATLAB_sparse" in found.attrs else self._other(name, kind or "structure")
            )
        if found.attrs.get("MATLAB_empty"):
            raise InputError(f"{self.path}: '{name}' is empty")
        if "MATLAB_object_decode" in found.attrs:
            return self._other(name, f"object of the class {kind}")
        if kind == "char":
            return _Held(np.array(self._text(name, found)))
        if kind == "cell":
            return _Held(np.array(list(self._cells(name, found))))
        if found.dtype.names == ("real", "imag"):
            pairs = self._whole(name, found)
            return _Held((pairs["real"] + 1j * pairs["imag"]).T)
        return _Reversed(Hdf5Array(self._file, name, found))

    def _other(self, name: str, kind: str) -> Array:
        raise _refused(self.path, name, kind)

    def _cells(self, name: str, dataset: Any) -> Iterator[str]:
        """The texts of a cell array, column by column as MATLAB counts them; each lies elsewhere in the file."""
        for reference in self._whole(name, dataset).reshape(-1):
            try:
                cell = self._file.root[reference]
            except (KeyError, OSError, RuntimeError, ValueError) as error:
                raise self._file.bad(name, error) from error
            if _class(cell) != "char" and not cell.attrs.get("MATLAB_empty"):
                raise _refused(self.path, name, "cell array of other things than text")
            texts = [""] if cell.attrs.get("MATLAB_empty") else self._text(name, cell)
            if len(texts) > 1:
                raise _refused(self.path, name, "cell array of blocks of text")
            yield texts[0]

    def _text(self, name: str, dataset: Any) -> list[str]:
        """The rows of a character array, which are columns here, in UTF-16."""
        rows = np.atleast_2d(self._whole(name, dataset).astype("<u2").T)
        return [row.tobytes().decode("utf-16-le", "replace") for row in rows]

    def _whole(self, name: str, dataset: Any) -> Any:
        try:
            return dataset[...]
        except (OSError, RuntimeError) as error:
            raise self._file.bad(name, error) from error

    def _sparse(self, name: str, group: Any) -> Array:
        from scipy.sparse import csc_matrix

        try:
            rows, starts = int(group.attrs["MATLAB_sparse"]), group["jc"][...]
            inside = (group["data"][...], group["ir"][...]) if "data" in group else ([], [])
            return _Sparse(_sound(csc_matrix((*inside, starts), shape=(rows, len(starts) - 1)), self.path, name))
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            raise self._file.bad(name, error) from error


def _class(found: Any) -> str:
    kind = found.attrs.get("MATLAB_class", "")
    return kind.decode("ascii", "replace") if isinstance(kind, bytes) else str(kind)


class _Reversed:
    """A dataset whose axes stand in reverse."""

    def __init__(self, array: Hdf5Array) -> None:
        self._array, self.shape, self.dtype, self.names = array, array.shape[::-1], array.dtype, array.names

    def blocks(self, axis: int, rows: int) -> Iterator[np.ndarray]:
        for block in self._array.blocks(len(self.shape) - 1 - axis, rows):
            yield block.T


def recognise(path: Path) -> float:
    """By the first bytes of version 5 and later."""
    return SURE if begins_with(path, b"MATLAB ") else by_ending(path, ENDINGS)


def advise(path: str, wish: Wish) -> Advice:
    """Which arrays are samples and which are labels, by their names, for `distdl init`."""
    return arrays_advice(open_mat(path), wish)
