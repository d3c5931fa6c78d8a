"""Files of named arrays -> columns: what the sources `npz`, `hdf5` and `mat` share. Nothing holds more than a few rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from distdl.columns import NO_LABEL
from distdl.data.bad_rows import BadRows
from distdl.data.classes import in_order
from distdl.data.formats._bad_arrays import answers_among, bad_among
from distdl.data.inputs import check_not_the_same
from distdl.data.manifest import ITEM_BYTES, Column
from distdl.data.raw import Prepared, Rows
from distdl.data.splits import SplitOptions, Splitter
from distdl.data.table.stream import before_gone
from distdl.data.values import numbered
from distdl.errors import InputError, did_you_mean

LABEL = "label"
"""The column whose numbers are those of classes; its array may hold their names."""
CHUNK_ROWS, CHUNK_BYTES = 4096, 8 << 20
MOST_CLASSES = 10_000
MOST_LISTED = 50
"""Names of arrays in a message."""


@dataclass(frozen=True)
class ArrayOptions(SplitOptions):
    """Which arrays of a file become which columns."""

    path: str
    """The file."""
    columns: tuple[str, ...] = ("x", "label")
    """Columns of the data set, the samples first. `label` holds classes, by number or by name."""
    train: tuple[str, ...] = ()
    """Array of the file for each column, in the same order."""
    test: tuple[str, ...] = ()
    """The same for the split `test`; then nothing is held out of the training arrays."""
    test_path: str = ""
    """A file that becomes the split `test`: its arrays `test`, or those named as in `train`."""
    axes: tuple[int, ...] = ()
    """Order of the axes of the samples' array, from 0, the one that counts the samples first: 3x2x0x1 turns (height, width,
    channels, samples) into (samples, channels, height, width). Without it, as in the file."""
    shape: tuple[int, ...] = ()
    """Shape of one sample, such as 1x16x16 for rows of 256 pixels; without it, as in the file."""
    scale: float = 1.0
    """The samples are multiplied by this; with it or an offset they become float32."""
    offset: float = 0.0
    """Added to the samples after scaling: scale 2 and offset -1 take 0..1 to -1..1."""
    classes: str = ""
    """Array of the file that holds the names of the classes, in the order of their numbers."""
    first_class: int = 0
    """Number that the file gives the first class; 1 where it counts as MATLAB does."""


class Array(Protocol):
    """An array that is read piece by piece."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]:
        """Numbers (complex ones, too), or text (kind U)."""
        ...

    names: list[str]
    """What the numbers stand for, where the file says it; []."""

    def blocks(self, axis: int, rows: int) -> Iterator[np.ndarray]:
        """The whole array in slices of so many rows along an axis, in order; the last may be shorter."""
        ...


class ArrayFile(Protocol):
    """A file of named arrays."""

    path: str
    matrices: bool
    """Whether a vector of its is an array of more axes, all but one of length 1."""

    def names(self) -> dict[str, str]:
        """Name of each array -> what it is, for a person."""
        ...

    def array(self, name: str) -> Array | None:
        """None: there is none of that name. InputError: it holds something else than numbers or text."""
        ...


def prepare_arrays(options: ArrayOptions, open_file: Callable[[str], ArrayFile]) -> Prepared:
    """The samples as they are stored, or float32 where they are real or scaled; `label` and other whole numbers int64,
    other real ones float32."""
    file = open_file(options.path)
    train = _Part(options, file, options.train)
    test = None
    if not options.test:
        check_not_the_same(options.path, options.test_path)
    elif set(options.test) & set(options.train) and options.test_path in ("", options.path):
        what = f"test={','.join(options.test)} has arrays of train={','.join(options.train)}"
        raise InputError(what, fix="leave it out, and hold out a test_fraction")
    if options.test or options.test_path:
        other = open_file(options.test_path) if options.test_path else file
        test = _Part(options, other, options.test or options.train)
        _same_kind_of_labels(train, test)
    if LABEL in train.array_of and options.train.count(train.array_of[LABEL]) > 1:
        what = f"the array '{train.array_of[LABEL]}' is the label and another column: {', '.join(options.train)}"
        raise InputError(what, fix="what is to be learned is no part of the samples")
    bad = BadRows(options)
    if bad.wanted:
        _set_aside(options, file, train, test, bad)
    names = _class_names(options, file, train)
    columns = train.columns(names)
    for name, column in (test.columns(names) if test else {}).items():
        if column != columns[name]:
            raise InputError(
                f"{options.test_path or options.path}: the test rows of '{name}' are {column.dtype} {list(column.shape)}, "
                f"the training rows {columns[name].dtype} {list(columns[name].shape)}"
            )

    splitter = Splitter(
        options,
        names=options.columns,
        label=LABEL,
        where=options.path,
        place=lambda row: train.place(next(iter(splitter.columns), options.columns[0]), row),
        tested=bool(test),
    )
    chunks = splitter.parts(
        lambda: numbered(train.rows(columns, names)), (lambda: numbered(test.rows(columns, names))) if test else None
    )
    kept = {name: column for name, column in columns.items() if name not in splitter.apart}

    def place(split: str, column: str, row: int) -> str:
        return (test if test and split == "test" else train).place(column, row)

    record = {LABEL: {"kind": "class", "version": 1, "classes": names}} if names else {}
    info = {"split": splitter.record(), **({"classes": names} if names else {})}
    return Prepared(kept, chunks, info, record, place, bad=bad)


def _set_aside(options: ArrayOptions, file: ArrayFile, train: _Part, test: _Part | None, bad: BadRows) -> None:
    """Leaves the rows out that cannot be used."""
    label = train.arrays.get(LABEL)
    declared = options.classes or (label is not None and label.names)
    names = _class_names(options, file, train) if declared else []
    parts = [train, test] if test else [train]
    answers = answers_among([part.pieces() for part in parts])
    for part in parts:
        numbers = LABEL if part.samples != LABEL else ""
        part.left_out = bad_among(part.pieces(), numbers, names, answers, part.place, bad)
        names = names or _class_names(options, file, train)  # the test split may have no others
    bad.check(sum(part.count - len(part.left_out) for part in parts))


def _same_kind_of_labels(train: _Part, test: _Part) -> None:
    """InputError: one split has names of classes, the other numbers, and which is which nobody says."""
    kinds = [part.arrays[LABEL].dtype.kind == "U" for part in (train, test) if LABEL in part.arrays]
    if len(set(kinds)) > 1:
        held = ["names of classes" if texts else "numbers" for texts in kinds]
        raise InputError(
            f"the labels of the training rows ('{train.array_of[LABEL]}') are {held[0]}, those of the test rows "
            f"('{test.array_of[LABEL]}' of {test.file.path}) {held[1]}",
            fix="store both in one way",
        )


def find(file: ArrayFile, name: str) -> Array:
    """The array of that name. InputError that lists what the file has."""
    if (found := file.array(name)) is None:
        have = file.names()
        near = did_you_mean(name, have) if 0 < len(have) <= MOST_LISTED else ""
        raise InputError(f"{file.path} has no array '{name}'", allowed=_listed(have), fix=near)
    return found


def _listed(have: Mapping[str, str]) -> str:
    told = [f"{name} {what}".strip() for name, what in list(have.items())[:MOST_LISTED]]
    return (
        ", ".join(told + ([f"and {len(have) - MOST_LISTED} more"] if len(have) > MOST_LISTED else [])) or "it has none"
    )


def _as_vector(array: Array) -> Array:
    """Without the axes of length 1, where no more than one other is left."""
    longer = [axis for axis, size in enumerate(array.shape) if size != 1]
    return _Vector(array, longer[0] if longer else 0) if len(array.shape) > 1 and len(longer) < 2 else array


class _Vector:
    def __init__(self, array: Array, axis: int) -> None:
        self._array, self._axis, self.names = array, axis, array.names
        self.shape, self.dtype = (array.shape[axis],), array.dtype

    def blocks(self, axis: int, rows: int) -> Iterator[np.ndarray]:
        return (block.reshape(-1) for block in self._array.blocks(self._axis, rows))


class _Part:
    """The arrays of one split."""

    def __init__(self, options: ArrayOptions, file: ArrayFile, names: tuple[str, ...]) -> None:
        if len(names) != len(options.columns):
            raise InputError(
                f"{len(names)} arrays ({', '.join(names)}) for {len(options.columns)} columns "
                f"({', '.join(options.columns)})",
                fix=f"name one array for each column, in the same order: {file.path} has {_listed(file.names())}",
            )
        self.options, self.file = options, file
        self.array_of = dict(zip(options.columns, names))
        self.arrays = {column: find(file, name) for column, name in self.array_of.items()}
        self.samples = options.columns[0]
        self.left_out = np.empty(0, np.int64)
        """Rows that are set aside, by their numbers in the file."""
        if file.matrices:
            self.arrays = {c: a if c == self.samples else _as_vector(a) for c, a in self.arrays.items()}
        for column, array in self.arrays.items():
            if not array.shape:
                raise InputError(f"{file.path}: '{self.array_of[column]}' is one number, not an array of rows")
            texts = array.dtype.kind == "U" and column == LABEL and column != self.samples
            if array.dtype.kind not in "biuf" and not texts:
                held = "text" if array.dtype == "U" else array.dtype
                raise InputError(
                    f"{file.path}: '{self.array_of[column]}' holds {held}", allowed="whole or real numbers"
                )
        self.axes = options.axes or tuple(range(len(self.arrays[self.samples].shape)))
        if sorted(self.axes) != list(range(len(self.arrays[self.samples].shape))):
            what = f"{file.path}: '{names[0]}' is {list(self.arrays[self.samples].shape)}"
            raise InputError(
                f"{what}, and axes={'x'.join(map(str, self.axes))}", allowed="each of its axes once, from 0"
            )
        lengths = {column: array.shape[self._axis(column)] for column, array in self.arrays.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"'{self.array_of[column]}' {length:,}" for column, length in lengths.items())
            raise InputError(
                f"{file.path}: the arrays of a split differ in their number of rows: {told}",
                fix="axes= says which axis of the samples counts the rows",
            )

        self.count = lengths[self.samples]

    def _axis(self, column: str) -> int:
        """The axis that counts the rows."""
        return self.axes[0] if column == self.samples else 0

    def place(self, column: str, row: int) -> str:
        (in_file,) = before_gone(self.left_out, [row])
        return f"{self.file.path}, '{self.array_of[column]}', row {in_file}"

    def columns(self, names: list[str]) -> dict[str, Column]:
        found = {}
        for column, array in self.arrays.items():
            shape = tuple(array.shape[axis] for axis in self.axes[1:]) if column == self.samples else array.shape[1:]
            if column == self.samples:
                found[column] = Column(self._samples_dtype(array), self._shape(shape))
            elif column == LABEL:
                shape = () if math.prod(shape) == 1 else shape
                found[column] = Column("int64" if names or self._whole(column) else "float32", shape)
            else:
                found[column] = Column("float32" if array.dtype.kind == "f" else "int64", shape)
        return found

    def _samples_dtype(self, array: Array) -> str:
        real = array.dtype.kind == "f" or str(array.dtype.newbyteorder("=")) not in ITEM_BYTES
        scaled = (self.options.scale, self.options.offset) != (1.0, 0.0)
        return "float32" if real or scaled else str(array.dtype.newbyteorder("="))

    def _shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        asked = self.options.shape
        if asked and math.prod(asked) != math.prod(stored):
            raise InputError(
                f"{self.file.path}: a row of '{self.array_of[self.samples]}' is {list(stored)}, "
                f"which does not fill shape={'x'.join(map(str, asked))}"
            )
        return asked or stored

    def _whole(self, column: str) -> bool:
        """Whether all numbers of an array are whole, whatever their type."""
        array = self.arrays[column]
        if array.dtype.kind != "f":
            return True
        return all(bool((block == np.floor(block)).all()) for block in self._blocks(column))

    def texts(self, column: str) -> Iterator[list[str]]:
        for block in self._blocks(column):
            yield [text.strip() for text in block.reshape(-1).tolist()]

    def _rows(self) -> int:
        """Rows of a piece."""
        row_bytes = sum(
            array.dtype.itemsize * math.prod(array.shape) // max(1, array.shape[self._axis(column)])
            for column, array in self.arrays.items()
        )
        return max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(1, row_bytes)))

    def _blocks(self, column: str) -> Iterator[np.ndarray]:
        """The rows of an array that are not left out, some at a time."""
        axis, first = self._axis(column), 0
        for block in self.arrays[column].blocks(axis, self._rows()):
            begin, end = np.searchsorted(self.left_out, (first, first + block.shape[axis]))
            first += block.shape[axis]
            gone = self.left_out[begin:end] - (first - block.shape[axis])
            yield np.delete(block, gone, axis) if len(gone) else block

    def pieces(self) -> Iterator[dict[str, np.ndarray]]:
        """The same of all arrays, rows first, the samples scaled; of a label of numbers, those of classes from 0."""
        blocks = {column: self._blocks(column) for column in self.arrays}
        for pieces in zip(*blocks.values(), strict=True):
            found = dict(zip(blocks, pieces))
            found[self.samples] = self._scaled(found[self.samples].transpose(self.axes))
            if LABEL in found and self.samples != LABEL and self.arrays[LABEL].dtype.kind != "U":
                found[LABEL] = self._numbers(found[LABEL])
            yield found

    def rows(self, columns: Mapping[str, Column], names: list[str]) -> Iterator[Rows]:
        row = 0
        for found in self.pieces():
            count = len(found[self.samples])
            if LABEL in found and self.samples != LABEL:
                found[LABEL] = self._labels(found[LABEL], names, row)
            if count:
                yield {c: np.ascontiguousarray(a).reshape(count, *columns[c].shape) for c, a in found.items()}
            row += count

    def _scaled(self, samples: np.ndarray) -> np.ndarray:
        if (self.options.scale, self.options.offset) == (1.0, 0.0):
            return samples
        with np.errstate(over="ignore"):  # what becomes infinite is refused where rows are cast
            return samples * self.options.scale + self.options.offset

    def _numbers(self, values: np.ndarray) -> np.ndarray:
        """Numbers of classes from 0."""
        if not self.options.first_class:
            return values
        return np.where(values == NO_LABEL, values, values - values.dtype.type(self.options.first_class))

    def _labels(self, values: np.ndarray, names: list[str], first_row: int) -> np.ndarray:
        """Numbers of classes from 0. InputError: a class that is none of `names`."""
        if values.dtype.kind == "U":
            number = {name: i for i, name in enumerate(names)}
            texts = [text.strip() for text in values.reshape(-1).tolist()]
            for i, text in enumerate(texts):
                if text not in number:
                    raise self._unknown(repr(text), names, first_row + i)
            return np.array([number[text] for text in texts], np.int64)
        if names:
            odd = np.flatnonzero(~(((values >= 0) & (values < len(names))) | (values == NO_LABEL)))
            if odd.size:
                told = values.reshape(-1)[odd[0]] + self.options.first_class
                raise self._unknown(f"{told:g}", names, first_row + int(odd[0]) * len(values) // values.size)
        return values

    def _unknown(self, value: str, names: list[str], row: int) -> InputError:
        first = self.options.first_class
        numbers = f"{first} ({names[0]}) to {first + len(names) - 1} ({names[-1]})"
        texts = self.arrays[LABEL].dtype.kind == "U"
        return InputError(
            f"the label is {value}, which is none of the {len(names)} classes",
            where=self.place(LABEL, row),
            allowed=", ".join(names[:20]) if texts else numbers,
            fix="" if texts or first else "first_class=1 where the file counts them from 1",
        )


def _class_names(options: ArrayOptions, file: ArrayFile, train: _Part) -> list[str]:
    """The classes in the order of their numbers: as `classes` names them, as the file says it of the labels' array, or as
    the labels themselves are texts; [] where they are numbers alone."""
    label = train.arrays.get(LABEL) if train.samples != LABEL else None
    if options.classes:
        if label is None:
            raise InputError(f"classes={options.classes} is given, but no column is called '{LABEL}'")
        array = find(file, options.classes)
        if array.dtype.kind != "U":
            raise InputError(
                f"{file.path}: '{options.classes}' holds {array.dtype}", allowed="the names of classes, as text"
            )
        names = [text.strip() for block in array.blocks(0, MOST_CLASSES) for text in block.reshape(-1).tolist()]
        if len(set(names)) < len(names):
            raise InputError(f"{file.path}: '{options.classes}' names a class twice: {', '.join(names[:20])}")
        return names
    if label is None or label.names or label.dtype.kind != "U":
        return list(label.names) if label is not None else []
    found: set[str] = set()
    row = 0
    for texts in train.texts(LABEL):
        found.update(texts)
        if "" in found:
            raise InputError("the label is empty", where=train.place(LABEL, row + texts.index("")))
        row += len(texts)
        if len(found) > MOST_CLASSES:
            raise InputError(f"{file.path}: '{train.array_of[LABEL]}' has more than {MOST_CLASSES:,} different classes")
    return in_order(found)
