"""What several raw formats need: the result type, held-out rows, packing bytes, reading files that may be gzipped."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from distdl.data.manifest import Column
from distdl.data.order import keyed_hash
from distdl.errors import InputError

Rows = dict[str, Any]  # column -> array (n, *shape), or list of bytes

READ_BYTES = 4 << 20
MOST_WAITING = 1 << 16
"""Rows that wait for a split to have its first one."""
SPLIT_KEY = 0x64697374646C0001  # fixed: the same raw data gives the same split for everybody


@dataclass(frozen=True)
class Prepared:
    """A raw source, opened: its columns are known, its rows are read while `chunks` is iterated."""

    columns: dict[str, Column]
    chunks: Iterator[tuple[str, Rows]]
    """Pairs of a split and some of its rows, in any sizes."""
    info: dict[str, Any] = field(default_factory=dict)
    """Facts for the manifest, such as the names of the classes."""


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


def pack_bytes(blocks: Iterable[bytes], context: int) -> Iterator[Rows]:
    """A stream of bytes -> rows `tokens` uint8 (n, context + 1); row i begins at byte i * context, so the last byte
    of a row is the first of the next and every byte is predicted once. What does not fill a last row is left out."""
    if context < 1:
        raise InputError(f"context is {context}", allowed="at least 1")
    rest = b""
    for block in blocks:
        rest += block
        count = (len(rest) - 1) // context
        if count > 0 and len(rest) >= READ_BYTES:
            yield {"tokens": _windows(rest, count, context)}
            rest = rest[count * context :]
    count = (len(rest) - 1) // context
    if count > 0:
        yield {"tokens": _windows(rest, count, context)}


def _windows(text: bytes, count: int, context: int) -> np.ndarray:
    flat = np.frombuffer(text, np.uint8)
    return np.lib.stride_tricks.as_strided(flat, (count, context + 1), (context, 1), writeable=False)


def token_columns(context: int) -> dict[str, Column]:
    """The columns of packed bytes."""
    return {"tokens": Column("uint8", (context + 1,))}


BYTE_INFO = {"encoding": "bytes", "vocabulary": 256}


def open_raw(path: str | Path) -> BinaryIO:
    """A raw file opened for reading bytes, unzipped where its name ends in .gz. InputError: it does not exist."""
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}", fix="check the path")
    return gzip.open(path, "rb") if str(path).endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def read_blocks(path: str | Path) -> Iterator[bytes]:
    """The bytes of a raw file, a few megabytes at a time. InputError: a damaged .gz file."""
    with open_raw(path) as file:
        try:
            while block := file.read(READ_BYTES):
                yield block
        except (EOFError, gzip.BadGzipFile) as error:
            raise InputError(f"{path} is a damaged gzip file: {error}", fix="download it again") from error
