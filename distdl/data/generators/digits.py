"""scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (UCI optdigits): a data set that needs no download."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from distdl.data.manifest import Column
from distdl.data.order import keyed_hash
from distdl.data.raw import Prepared
from distdl.data.splits import SplitOptions, check_files, split_key
from distdl.errors import InputError

CLASSES = [str(digit) for digit in range(10)]


@dataclass(frozen=True)
class Options(SplitOptions):
    """Options of the source `digits`."""

    test_fraction: float = field(default=0.2, kw_only=True)
    """Part of the images held out as the split `test`, chosen by a fixed shuffle."""
    train_rows: int | None = None
    """Keep the first so many images of the split `train`, for learning from few; null: all."""


def prepare(options: Options) -> Prepared:
    """`image` uint8 (1, 8, 8), 0 to 255, and `label` int64."""
    from sklearn.datasets import load_digits

    record = check_files(options, "shuffle", "the images are held out by a fixed shuffle")
    raw = load_digits()
    images = np.rint(raw.images * (255 / 16)).astype(np.uint8)[:, None]  # (N, 1, 8, 8); the file counts from 0 to 16
    labels = raw.target.astype(np.int64)
    shuffled = np.argsort(keyed_hash(split_key(options.split_seed), np.arange(len(labels))), kind="stable")
    fractions = (options.test_fraction, options.test_fraction + options.validation_fraction)
    held_out = [round(len(labels) * fraction) for fraction in fractions]
    most = len(labels) - held_out[1]
    if options.train_rows is not None and not 0 < options.train_rows <= most:
        raise InputError(f"train_rows = {options.train_rows}", allowed=f"1 to {most}")
    test, validation, train = map(np.sort, np.split(shuffled, held_out))
    splits = {"test": test, "train": train[: options.train_rows]}
    splits |= {"validation": validation} if len(validation) else {}
    chunks = ((name, {"image": images[rows], "label": labels[rows]}) for name, rows in splits.items())
    return Prepared(
        {"image": Column("uint8", (1, 8, 8)), "label": Column("int64")}, chunks, {"classes": CLASSES, "split": record}
    )
