"""Which rows are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from distdl.data.order import keyed_hash
from distdl.data.raw import Rows
from distdl.errors import InputError

MOST_WAITING = 1 << 16
"""Rows that wait for a split to have its first one."""
SPLIT_KEY = 0x64697374646C0001  # fixed: the same raw data gives the same split for everybody


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How a source's rows are shared out; the options of a source take these over."""

    test_fraction: float = 0.1
    """Part of the rows held out as the split `test`, where nothing else says which rows those are."""


def check_fraction(fraction: float) -> None:
    """InputError for a test fraction that leaves no training data."""
    if not 0 <= fraction < 1:
        raise InputError(f"test_fraction is {fraction}", allowed="from 0 to below 1")


def hold_out(chunks: Iterable[Rows], fraction: float) -> Iterator[tuple[str, Rows]]:
    """Send each row to `train` or `test` by a keyed hash of its number: about `fraction` of the rows are held out,
    the same ones every time, without knowing how many rows there are.

    With a fraction above 0 either split gets a row at least. InputError: there are too few rows for that.
    """
    row = 0
    waiting: list[tuple[Rows, np.ndarray]] = []  # the first rows and their hashes, until both splits have one
    missing = {True, False} if fraction > 0 else set()
    limit = np.uint64(int(fraction * 2.0**64))
    for rows in chunks:
        count = len(next(iter(rows.values())))
        places = keyed_hash(SPLIT_KEY, np.arange(row, row + count))
        row += count
        missing -= set(np.unique(places < limit).tolist())
        waiting.append((rows, places))
        if not missing or row > MOST_WAITING:
            yield from _split(waiting, limit)
            waiting = []
    if missing and (row < 2 or not waiting):
        what = (
            f"test_fraction={fraction:g} of {row:,} rows leaves nothing to {'test' if True in missing else 'train'} on"
        )
        raise InputError(what, fix="more rows; or test_fraction=0, and data.eval_split: null in the config")
    if missing:  # so few rows that chance gave them all to one split: the nearest one goes to the other
        every = np.concatenate([places for _, places in waiting])
        limit = every.min() + np.uint64(1) if True in missing else every.max()
    yield from _split(waiting, limit)


def _split(chunks: list[tuple[Rows, np.ndarray]], limit: np.uint64) -> Iterator[tuple[str, Rows]]:
    for rows, places in chunks:
        test = places < limit
        for split, chosen in (("train", ~test), ("test", test)):
            if chosen.any():
                yield split, {name: _select(values, chosen) for name, values in rows.items()}


def _select(values: Any, chosen: np.ndarray) -> Any:
    return (
        values[chosen]
        if isinstance(values, np.ndarray)
        else [v for v, keep in zip(values, chosen, strict=True) if keep]
    )


def held_out_files(names: list[str], fraction: float) -> set[str]:
    """The whole files that belong to the test split, by a keyed hash of their names (paths relative to the source).

    With a fraction above 0 and two files or more, at least one is chosen, so that a small corpus has a test split, too.
    """

    def place(name: str) -> float:
        digest = hashlib.blake2b(name.encode(), digest_size=8, key=b"distdl-split").digest()
        return int.from_bytes(digest, "little") / 2.0**64

    chosen = {name for name in names if place(name) < fraction}
    return chosen or ({min(names, key=place)} if fraction > 0 and len(names) > 1 else set())
