"""What a stream of samples knows of classes: which labels are missing, what each class weighs, and the balanced order.

    place in the stream of all epochs ──► its block of K draws, one of each class ──► class ──► Order of that class ──► row

K draws in a row, from a multiple of K on, have every class once, in an order that a keyed hash gives; so a batch is as
balanced as can be. The draws of a class run through its rows in an order of their own, one round after the other and on
from epoch to epoch: a rare row comes often, and none more often than another. Like the plain order it is a function of
fingerprint, seed, epoch and place alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from distdl.data.order import Order, keyed_hash
from distdl.data.read import Dataset
from distdl.errors import InputError

LABEL_ROWS = 1 << 18


@dataclass(frozen=True)
class Labels:
    """What is known of the columns of class numbers."""

    missing: tuple[str, ...] = ()
    """Columns some of whose values are negative, that is missing."""
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Column -> what each class weighs in the loss."""
    balanced: str = ""
    """Column whose classes are drawn equally often; "": rows are drawn as they are."""

    @property
    def shared(self) -> tuple[str, ...]:
        """The columns whose values do not all count the same, in order."""
        return (*self.missing, *(name for name in self.weights if name not in self.missing))

    def weigh(self, column: str, values: np.ndarray) -> np.ndarray:
        """What each value counts: float32, 0 where it is missing."""
        there = values >= 0
        if column not in self.weights:
            return there.astype(np.float32)
        return np.where(there, np.asarray(self.weights[column], np.float32)[np.where(there, values, 0)], np.float32(0))


class BalancedOrder:
    """The order of balanced draws from one split, epoch after epoch. Safe to use from several threads.

    `labels`: the class of every row, negative where it has none: such a row is never drawn. 4 bytes of memory a row, 8 from
    2^32 rows on. InputError: no row has a class.
    """

    def __init__(self, labels: np.ndarray, seed: int, fingerprint: str = ""):
        labels = np.maximum(labels, -1)
        counts = np.bincount(labels[labels >= 0])
        self.classes = np.flatnonzero(counts)
        if not len(self.classes):
            raise InputError("data.sampling: balanced draws from classes, and no row has a label")
        self.rows = len(labels)
        key = hashlib.blake2b(f"distdl-balance-1|{fingerprint}|{seed}".encode(), digest_size=8).digest()
        self._key = int.from_bytes(key, "little")
        number = np.full(len(counts) + 1, -1, np.int32)  # the last is that of a negative label
        number[self.classes] = np.arange(len(self.classes))
        sizes = counts[self.classes]
        width = np.uint32 if self.rows <= 1 << 32 else np.uint64
        by_class = np.argsort(number[labels], kind="stable").astype(width)[self.rows - int(sizes.sum()) :]
        self._rows_of = np.split(by_class, sizes.cumsum()[:-1])
        self._orders = [
            Order(len(rows), seed, f"{fingerprint}|class {c}") for c, rows in zip(self.classes, self._rows_of)
        ]

    def at(self, epochs: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Row numbers for pairs of an epoch and a place in it, both (n,) int64: (n,) int64."""
        classes = len(self.classes)
        draws, in_block = np.divmod(epochs * self.rows + offsets, classes)
        blocks, block = np.unique(draws, return_inverse=True)
        ranked = keyed_hash(self._key, blocks[:, None] * classes + np.arange(classes)).argsort(axis=1, kind="stable")
        which = ranked[block, in_block]
        by_class, found = np.argsort(which, kind="stable"), np.empty(len(which), np.int64)
        for mine in np.split(by_class, np.flatnonzero(np.diff(which[by_class])) + 1) if len(which) else ():
            rows, order = self._rows_of[which[mine[0]]], self._orders[which[mine[0]]]
            rounds, places = np.divmod(draws[mine], len(rows))  # every block has one draw of the class
            found[mine] = rows[order.at(rounds, places)]
        return found


def labels_of(dataset: Dataset, column: str) -> np.ndarray:
    """The class of every row of a split. What is read of it is not compared with its checksums: that would read all
    columns, and a row that is handed out is compared then."""
    plain = Dataset(dataset.location, dataset.split, "off", dataset.cache_dir)
    labels = np.empty(dataset.rows, np.int32)
    for begin in range(0, dataset.rows, LABEL_ROWS):
        rows = np.arange(begin, min(begin + LABEL_ROWS, dataset.rows))
        labels[rows] = plain.gather(rows, [column])[column]
    return labels
