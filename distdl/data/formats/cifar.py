"""CIFAR-10 and CIFAR-100 in their binary version (`cifar-10-binary.tar.gz`), packed or not; the other ones are pickles,
which are not read.

A record is the class, one byte, of CIFAR-100 two (the coarse one, then the fine one), and 3 x 32 x 32 bytes of colour.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from distdl.data.advice import SURE
from distdl.data.folders import Files, open_files
from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows
from distdl.data.splits import SplitOptions, Splitter
from distdl.errors import InputError

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
CHUNK_ROWS = 2048
FILE = re.compile(r"(?:data_batch_\d+|(train))\.bin|(?:test_batch|(test))\.bin")
ARCHIVE = re.compile(r"cifar-?100?-binary\.tar(?:\.gz)?", re.IGNORECASE)


@dataclass(frozen=True)
class Options(SplitOptions):
    """Options of the source `cifar`."""

    path: str
    """The archive `cifar-10-binary.tar.gz` or `cifar-100-binary.tar.gz`, or a folder with its .bin files."""
    classes: Literal["fine", "coarse"] = "fine"
    """Of CIFAR-100: its 100 fine classes or its 20 coarse ones."""
    test_fraction: float = field(default=0.0, kw_only=True)
    """Part of the training pictures held out as the split `test`; only where there is no test file."""


@dataclass(frozen=True)
class _Batch:
    """A .bin file, by its number among all files."""

    number: int
    name: str
    test: bool


def prepare(options: Options) -> Prepared:
    """`image` uint8 (3, 32, 32) and `label` int64."""
    files = open_files(options.path, (".bin", ".txt"))
    batches, hundred = _batches(files)
    tested = any(batch.test for batch in batches)
    if tested and options.test_fraction:
        raise InputError("test_fraction is set, but there is a test file already", fix="leave test_fraction out")
    if options.classes == "coarse" and not hundred:
        raise InputError(f"classes=coarse, and {options.path} is CIFAR-10, which has one kind of classes")
    names = _names(files, f"{options.classes}_label_names.txt" if hundred else "batches.meta.txt")
    splitter = Splitter(options, label="label", where=options.path, tested=tested)
    label = (1 if options.classes == "fine" else 0) if hundred else 0

    def rows(test: bool) -> Iterator[Rows]:
        for batch in batches:
            if batch.test == test:
                yield from _rows(files, batch, 1 + hundred, label, len(names))

    chunks = splitter.parts(lambda: rows(False), (lambda: rows(True)) if tested else None)
    info = {"classes": names, "split": splitter.record()}
    preparation = {"label": {"kind": "class", "version": 1, "classes": names}}
    return Prepared({"image": Column("uint8", SHAPE), "label": Column("int64")}, chunks, info, preparation)


def _batches(files: Files) -> tuple[list[_Batch], bool]:
    """The files of pictures, those to train on in the order of their numbers; and whether it is CIFAR-100."""
    found = []
    for number, path in enumerate(files.names):
        name = path.rpartition("/")[2]
        if match := FILE.fullmatch(name):
            found.append((_Batch(number, name, name.startswith("test")), bool(match[1] or match[2])))
    kinds = {hundred for _, hundred in found}
    if not any(not batch.test for batch, _ in found) or len(kinds) > 1:
        told = ", ".join(sorted(batch.name for batch, _ in found)) or "none of them"
        raise InputError(
            f"{files.place} holds {told}",
            allowed="data_batch_1.bin and so on, and test_batch.bin; or train.bin and test.bin of CIFAR-100",
            fix="give the archive of the binary version; the Python version holds pickles, which are not read",
        )
    doubled = len(found) - len({batch.name for batch, _ in found})
    if doubled:
        raise InputError(f"{files.place} holds several files of the same name", fix="give one of its folders")
    return sorted((batch for batch, _ in found), key=lambda batch: (batch.test, batch.name)), kinds == {True}


def _names(files: Files, wanted: str) -> list[str]:
    """The names of the classes."""
    for number, path in enumerate(files.names):
        if path.rpartition("/")[2] == wanted:
            names = files.open(number).read().decode("utf-8").split()
            if len(set(names)) == len(names) > 1:
                return names
            raise InputError(f"{files.called(number)} does not name the classes", fix="download it again")
    raise InputError(f"{files.place} lacks {wanted}, which names the classes", fix="unpack all of the archive")


def _rows(files: Files, batch: _Batch, before: int, label: int, classes: int) -> Iterator[Rows]:
    """The records of a file; `before`: bytes before the pixels."""
    size, row = before + PIXELS, 0
    with files.open(batch.number) as file:
        while block := file.read(size * CHUNK_ROWS):
            if len(block) % size:
                what = f"{files.called(batch.number)} ends within a record: {len(block) % size} of {size} bytes"
                raise InputError(what, fix="download it again")
            records = np.frombuffer(block, np.uint8).reshape(-1, size)
            labels = records[:, label].astype(np.int64)
            if labels.max() >= classes:
                at = row + int((labels >= classes).argmax())
                what = f"{files.called(batch.number)}, record {at:,}: the class is {labels.max()}"
                raise InputError(what, allowed=f"0 to {classes - 1}", fix="download it again")
            yield {"image": records[:, before:].reshape(-1, *SHAPE), "label": labels}
            row += len(records)


def recognise(path: Path) -> float:
    """A folder with the files of CIFAR, or an archive of its name."""
    if path.is_dir():
        names = {one.name for one in path.iterdir()}
        return SURE if {"batches.meta.txt", "data_batch_1.bin"} <= names or "fine_label_names.txt" in names else 0.0
    return SURE if ARCHIVE.fullmatch(path.name) else 0.0
