"""The idx files of MNIST and its relatives (Fashion-MNIST, EMNIST, KMNIST), gzipped or not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from distdl.data.advice import SURE
from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows, open_raw
from distdl.data.splits import SplitOptions, Splitter
from distdl.errors import InputError, did_you_mean

CHUNK_ROWS = 4096
KINDS = {"images": (b"\x00\x00\x08\x03", 3), "labels": (b"\x00\x00\x08\x01", 1)}  # two zeros, 8 = uint8, dimensions


NAME = re.compile(r"(.*?)-?(train|t10k|test)-(images|labels)[-.]idx[0-9]-ubyte(?:\.gz)?")
"""Of a file: emnist-letters-train-images-idx3-ubyte.gz, t10k-labels.idx1-ubyte, ..."""


@dataclass(frozen=True)
class Options(SplitOptions):
    """Options of the source `idx`."""

    path: str
    """Folder with train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz] and, if there are any, those of t10k- or
    test-."""
    name: str = ""
    """What stands before train- in the names of the files, such as emnist-letters; where the folder has several sets."""
    first_class: int = 0
    """Number that the files give the first class: 1 of EMNIST's letters."""
    test_fraction: float = field(default=0.0, kw_only=True)
    """Part of the training images held out as the split `test`; only where there are no t10k- files."""


def prepare(options: Options) -> Prepared:
    """`image` uint8 (1, H, W) and `label` int64."""
    folder = Path(options.path)
    files = _find(folder, options.name)
    train = [files.get(f"train-{kind}") for kind in KINDS]
    if None in train:
        raise InputError(
            f"{folder} holds no train-images-idx3-ubyte and train-labels-idx1-ubyte (or .gz)",
            fix="give the folder of the files as path=",
        )
    test = [files.get(f"test-{kind}") for kind in KINDS]
    if (test[0] is None) != (test[1] is None):
        raise InputError(f"{folder} holds only one of the two t10k- files", fix="add the other, or remove this one")
    if test[0] and options.test_fraction:
        raise InputError("test_fraction is set, but there are t10k- files already", fix="leave test_fraction out")
    splitter = Splitter(options, label="label", where=str(folder), tested=bool(test[0]))
    with open_raw(train[0] or "") as file:
        _, height, width = _header(file, train[0], "images")
    if test[0]:
        with open_raw(test[0]) as file:
            other = tuple(_header(file, test[0], "images")[1:])
        if other != (height, width):
            raise InputError(
                f"{test[0]} has images of {other[0]} x {other[1]}, the training images are {height} x {width}"
            )
    first = options.first_class
    chunks = splitter.parts(lambda: _pairs(train, first), (lambda: _pairs(test, first)) if test[0] else None)
    columns = {"image": Column("uint8", (1, height, width)), "label": Column("int64")}
    return Prepared(columns, chunks, {"split": splitter.record()})


def _find(folder: Path, name: str) -> dict[str, Path]:
    """`train-images`, `test-labels`, ... -> file, of one set; a file that is not zipped goes before one that is."""
    sets: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob("*"), reverse=True):
        if found := NAME.fullmatch(path.name):
            split = found[2].replace("t10k", "test")
            sets.setdefault(found[1], {})[f"{split}-{found[3]}"] = path
    if not name and "" not in sets and len(sets) > 1:
        raise InputError(f"{folder} holds the files of {len(sets)} sets", fix=f"name= {' or '.join(sorted(sets))}")
    if name and name not in sets:
        raise InputError(f"{folder} holds no {name}-train-images-idx3-ubyte", fix=did_you_mean(name, sets))
    return sets[name] if name or "" in sets else next(iter(sets.values()), {})


def _header(file: BinaryIO, path: Path | None, kind: str) -> list[int]:
    """The sizes in the header: rows, or rows, height and width."""
    magic, dimensions = KINDS[kind]
    found = _read(file, path, 4 + 4 * dimensions)
    if found[:4] != magic:
        raise InputError(
            f"{path} begins with the bytes {found[:4].hex(' ')}, an idx file of {kind} with {magic.hex(' ')}",
            fix="check that the file is complete and not another format",
        )
    return np.frombuffer(found, ">u4", offset=4).tolist()


def _read(file: BinaryIO, path: Path | None, size_bytes: int) -> bytes:
    found = file.read(size_bytes)
    if len(found) < size_bytes:
        raise InputError(
            f"{path} ends early: its header promises at least {size_bytes - len(found):,} bytes more",
            fix="download it again",
        )
    return found


def _pairs(paths: list[Path | None], first_class: int) -> Iterator[Rows]:
    """Images and labels side by side, a few thousand rows at a time."""
    images_path, labels_path = paths
    assert images_path and labels_path
    with open_raw(images_path) as images, open_raw(labels_path) as labels:
        rows, height, width = _header(images, images_path, "images")
        (label_rows,) = _header(labels, labels_path, "labels")
        if rows != label_rows:
            raise InputError(f"{images_path} has {rows:,} images, {labels_path} has {label_rows:,} labels")
        for start in range(0, rows, CHUNK_ROWS):
            count = min(CHUNK_ROWS, rows - start)
            pixels = np.frombuffer(_read(images, images_path, count * height * width), np.uint8)
            label = np.frombuffer(_read(labels, labels_path, count), np.uint8).astype(np.int64) - first_class
            if label.min() < 0:
                what = f"row {start + int(label.argmin())} has the label {label.min() + first_class}"
                raise InputError(f"{labels_path}: {what}", allowed=f"{first_class} or more, as first_class= says")
            yield {"image": pixels.reshape(count, 1, height, width), "label": label}
        for file, path in ((images, images_path), (labels, labels_path)):
            if file.read(1):
                raise InputError(
                    f"{path} holds more bytes than the {rows:,} rows of its header", fix="download it again"
                )


def recognise(path: Path) -> float:
    """A folder with images and labels to train on, of one set or of several."""
    names = [NAME.fullmatch(one.name) for one in path.iterdir()] if path.is_dir() else []
    kinds = {found[3] for found in names if found and found[2] == "train"}
    return SURE if kinds == set(KINDS) else 0.0
