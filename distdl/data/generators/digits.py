"""scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (UCI optdigits): a data set that needs no download."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distdl.data.manifest import Column
from distdl.data.order import keyed_hash
from distdl.data.raw import Prepared
from distdl.data.splits import SPLIT_KEY, check_fraction
from distdl.errors import InputError

CLASSES = [str(digit) for digit in range(10)]


@dataclass(frozen=True)
class Options:
    """Options of the source `digits`."""

    test_fraction: float = 0.2
    """Part of the images held out as the split `test`, chosen by a fixed shuffle."""
    train_rows: int | None = None
    """Keep the first so many images of the split `train`, for learning from few; null: all."""


def prepare(options: Options) -> Prepared:
    """`image` uint8 (1, 8, 8), 0 to 255, and `label` int64."""
    from sklearn.datasets import load_digits

    check_fraction(options.test_fraction)
    raw = load_digits()
    images = np.rint(raw.images * (255 / 16)).astype(np.uint8)[:, None]  # (N, 1, 8, 8); the file counts from 0 to 16
    labels = raw.target.astype(np.int64)
    shuffled = np.argsort(keyed_hash(SPLIT_KEY, np.arange(len(labels))), kind="stable")
    test_rows = round(len(labels) * options.test_fraction)
    if options.train_rows is not None and not 0 < options.train_rows <= len(labels) - test_rows:
        raise InputError(f"train_rows = {options.train_rows}", allowed=f"1 to {len(labels) - test_rows}")
    splits = {"test": np.sort(shuffled[:test_rows]), "train": np.sort(shuffled[test_rows:])[: options.train_rows]}
    chunks = ((name, {"image": images[rows], "label": labels[rows]}) for name, rows in splits.items())
    return Prepared({"image": Column("uint8", (1, 8, 8)), "label": Column("int64")}, chunks, {"classes": CLASSES})
