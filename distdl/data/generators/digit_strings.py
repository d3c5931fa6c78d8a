"""Strips of one to a few handwritten digits side by side, with the string that they show: a task for sequence labelling.

The digits of MNIST's idx files, or scikit-learn's where no path is given, are shuffled and cut into strings of random
lengths. Every digit stands in exactly one string of each pass, and test strings hold test digits only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distdl.data.formats import idx
from distdl.data.generators import digits
from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows
from distdl.errors import InputError

CHUNK_ROWS = 2048


@dataclass(frozen=True)
class Options:
    """Options of the source `digit_strings`."""

    path: str = ""
    """Folder of the idx files (see the source idx); empty: scikit-learn's digits of 8 x 8 pixels."""
    longest: int = 4
    """Digits of the longest strings; lengths from 1 to this are equally frequent."""
    passes: int = 1
    """How often each training digit is used; each pass makes other strings."""
    validation_fraction: float = 0.0
    """Part of the digits whose strings are the split `validation`."""
    seed: int = 0
    """Seed of the strings."""


def prepare(options: Options) -> Prepared:
    """`image` uint8 (1, H, longest * W), zero behind its `width` columns; `label` int64 (longest,), its `length`."""
    for name, value in (("longest", options.longest), ("passes", options.passes)):
        if value < 1:
            raise InputError(f"{name} is {value}", allowed="at least 1")
    share = options.validation_fraction
    single = (
        idx.prepare(idx.Options(options.path, validation_fraction=share))
        if options.path
        else digits.prepare(digits.Options(validation_fraction=share))
    )
    _, height, width = single.columns["image"].shape
    columns = {
        "image": Column("uint8", (1, height, options.longest * width)),
        "width": Column("int64"),
        "label": Column("int64", (options.longest,)),
        "length": Column("int64"),
    }
    return Prepared(columns, _chunks(single, options), {"classes": digits.CLASSES})


def _chunks(single: Prepared, options: Options) -> Iterator[tuple[str, Rows]]:
    splits: dict[str, list[Rows]] = {}
    for split, rows in single.chunks:
        splits.setdefault(split, []).append(rows)
    for place, split in enumerate(sorted(splits)):
        images = np.concatenate([rows["image"] for rows in splits[split]])  # (N, 1, H, W)
        labels = np.concatenate([rows["label"] for rows in splits[split]])  # (N,)
        random = np.random.default_rng([options.seed, place])
        for _ in range(options.passes if split == "train" else 1):
            strings = _strings(len(images), options.longest, random)
            for start in range(0, len(strings), CHUNK_ROWS):
                yield split, _join(images, labels, strings[start : start + CHUNK_ROWS])


def _strings(count: int, longest: int, random: np.random.Generator) -> np.ndarray:
    """(S, longest) numbers of digits, -1 behind the end: a shuffle of all, cut at random."""
    lengths = random.integers(1, longest + 1, count)  # more than enough
    ends = np.minimum(lengths.cumsum(), count)
    lengths = np.diff(ends, prepend=0)
    lengths = lengths[lengths > 0]
    strings = np.full((len(lengths), longest), -1)
    strings[np.arange(longest) < lengths[:, None]] = random.permutation(count)
    return strings


def _join(images: np.ndarray, labels: np.ndarray, strings: np.ndarray) -> Rows:
    real = strings >= 0  # (S, longest)
    length = real.sum(1)
    parts = images[strings, 0] * real[:, :, None, None].astype(np.uint8)  # (S, longest, H, W)
    S, longest, height, width = parts.shape
    return {
        "image": parts.transpose(0, 2, 1, 3).reshape(S, 1, height, longest * width),
        "width": length * width,
        "label": labels[strings] * real,
        "length": length,
    }
