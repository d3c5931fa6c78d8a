"""NumPy's archives of arrays (.npz): a few arrays of samples, and as many of labels or targets."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distdl.data.advice import Advice, Wish, arrays_advice
from distdl.data.manifest import ITEM_BYTES, Column
from distdl.data.raw import Prepared, Rows
from distdl.data.splits import SplitOptions, check_fraction, hold_out
from distdl.errors import InputError, did_you_mean

CHUNK_ROWS = 4096
ENDINGS = (".npz",)
DAMAGED = (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Options(SplitOptions):
    """Options of the source `npz`."""

    path: str
    """The archive."""
    columns: tuple[str, ...] = ("image", "label")
    """Columns of the data set, the samples first."""
    train: tuple[str, ...] = ("x_train", "y_train")
    """Array of the archive for each column, in the same order; the first dimension of an array counts the rows."""
    test: tuple[str, ...] = ()
    """The same for the split `test`; then nothing is held out of the training arrays."""
    shape: tuple[int, ...] = ()
    """Shape of one sample, such as 1x16x16 for rows of 256 pixels; without it, as in the archive."""
    scale: float = 1.0
    """The samples are multiplied by this; with it or an offset they become float32."""
    offset: float = 0.0
    """Added to the samples after scaling: scale 2 and offset -1 take 0..1 to -1..1."""
    test_fraction: float = field(default=0.0, kw_only=True)
    """Part of the rows held out as the split `test` where the archive has no test arrays."""


def prepare(options: Options) -> Prepared:
    """The samples as they are stored or float32; other columns int64 where they hold whole numbers, else float32."""
    check_fraction(options.test_fraction)
    train = _split(options, options.train)
    test = _split(options, options.test) if options.test else None
    columns = {name: Column(str(a.dtype), a.shape[1:]) for name, a in train.items()}
    for name, array in (test or {}).items():
        if (str(array.dtype), array.shape[1:]) != (columns[name].dtype, columns[name].shape):
            raise InputError(
                f"{options.path}: the test rows of '{name}' are {array.dtype} {list(array.shape[1:])}, "
                f"the training rows {columns[name].dtype} {list(columns[name].shape)}"
            )
    rows = sum(len(next(iter(split.values()))) for split in (train, test) if split)
    return Prepared(columns, _chunks(train, test, options.test_fraction), rows=rows)


def _chunks(train: Rows, test: Rows | None, fraction: float) -> Iterator[tuple[str, Rows]]:
    if test is None:
        yield from hold_out(_slices(train), fraction)
    else:
        for split, rows in (("train", train), ("test", test)):
            yield from ((split, part) for part in _slices(rows))


def _slices(rows: Rows) -> Iterator[Rows]:
    count = len(next(iter(rows.values())))
    for start in range(0, count, CHUNK_ROWS):
        yield {name: np.ascontiguousarray(array[start : start + CHUNK_ROWS]) for name, array in rows.items()}


def _split(options: Options, names: tuple[str, ...]) -> Rows:
    """Column -> array of one split, of equal numbers of rows."""
    if len(names) != len(options.columns):
        raise InputError(
            f"{len(names)} arrays ({', '.join(names)}) for {len(options.columns)} columns "
            f"({', '.join(options.columns)})",
            fix="name one array for each column, in the same order",
        )
    arrays = _read(options.path, names)
    rows = {}
    for i, (column, array) in enumerate(zip(options.columns, arrays)):
        if array.ndim == 0:
            raise InputError(f"{options.path}: '{names[i]}' is one number, not an array of rows")
        rows[column] = _samples(array, names[i], options) if i == 0 else _others(array)
    if len({len(array) for array in rows.values()}) > 1:
        lengths = ", ".join(f"'{name}' {len(array):,}" for name, array in zip(names, rows.values()))
        raise InputError(f"{options.path}: the arrays of a split differ in their number of rows: {lengths}")
    return rows


def _read(path: str, names: tuple[str, ...]) -> list[Any]:
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}", fix="check the path")
    try:
        with np.load(path, allow_pickle=False) as archive:  # a pickle may run code
            for name in names:
                if name not in archive.files:
                    raise InputError(
                        f"{path} has no array '{name}'",
                        allowed=", ".join(archive.files),
                        fix=did_you_mean(name, archive.files),
                    )
            arrays = [archive[name] for name in names]
    except DAMAGED as error:
        raise InputError(f"{path} is not an .npz archive of plain arrays: {error}") from error
    for name, array in zip(names, arrays):
        if array.dtype.kind not in "biuf":
            raise InputError(f"{path}: '{name}' holds {array.dtype}", allowed="whole or real numbers")
    return arrays


def _samples(array: Any, name: str, options: Options) -> Any:
    if options.shape:
        if math.prod(options.shape) != math.prod(array.shape[1:]):
            raise InputError(
                f"{options.path}: a row of '{name}' is {list(array.shape[1:])}, "
                f"which does not fill shape={'x'.join(map(str, options.shape))}"
            )
        array = array.reshape(len(array), *options.shape)
    if (options.scale, options.offset) != (1.0, 0.0):
        return (array * options.scale + options.offset).astype(np.float32)
    if array.dtype.kind == "f" or str(array.dtype) not in ITEM_BYTES:
        return array.astype(np.float32)
    return array.astype(array.dtype.newbyteorder("="))


def _others(array: Any) -> Any:
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


def advise(path: str, wish: Wish) -> Advice:
    """Which arrays are samples and which are labels, by their names, for `distdl init`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: (archive[name].shape, archive[name].dtype.kind) for name in archive.files}
    except DAMAGED as error:
        raise InputError(f"{path} is not an .npz archive of plain arrays: {error}") from error
    return arrays_advice(path, arrays, wish)
