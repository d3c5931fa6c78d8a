"""Rows of arrays that cannot be used: found in one pass over all arrays of the splits, after one for missing answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from distdl.columns import NO_LABEL
from distdl.data.bad_rows import UNLABELLED, BadRows

SHOWN_VALUES = 16
"""A row of an array that has more of them is listed without them."""

Pieces = Mapping[str, np.ndarray]
"""Column -> some rows of it, (n, ...); the same rows of every one."""


def answers_among(parts: Sequence[Iterator[Pieces]]) -> set[str]:
    """The columns of real numbers whose finite values are 0 and 1 alone, so that NaN may stand among them."""
    found: dict[str, bool] = {}
    for pieces in (pieces for part in parts for pieces in part):
        for name, values in pieces.items():
            if values.dtype.kind == "f":
                fits = bool(((values == 0) | (values == 1) | ~np.isfinite(values)).all())
                found[name] = found.get(name, True) and fits
    return {name for name, fits in found.items() if fits}


def bad_among(
    part: Iterator[Pieces],
    label: str,
    names: Sequence[str],
    answers: set[str],
    place: Callable[[str, int], str],
    bad: BadRows,
) -> np.ndarray:
    """The numbers of the rows that cannot be used, each of which is set aside. `label`: the column of classes, `names` what
    these are called, [] where nobody says it. `answers`: columns in which NaN is a missing answer."""
    rows: list[int] = []
    first = 0
    for pieces in part:
        count = len(next(iter(pieces.values())))
        found: dict[int, tuple[str, str, str]] = {}
        for name, values in pieces.items():
            for wrong, reason, what in _wrong(values, name == label, names, name in answers):
                for i in np.flatnonzero(wrong).tolist():
                    found.setdefault(i, (name, reason, what))
        for i, (name, reason, what) in sorted(found.items()):
            content = {key: v[i].tolist() for key, v in pieces.items() if v[i].size <= SHOWN_VALUES}
            told = f"the column '{name}' {what}"
            bad.add(place(name, first + i), told, reason=reason, column=name, content=content)
            rows.append(first + i)
        first += count
    return np.array(rows, np.int64)


def _wrong(
    values: np.ndarray, is_label: bool, names: Sequence[str], answers: bool
) -> Iterator[tuple[np.ndarray, str, str]]:
    """(which rows (n,), the reason, what is wrong with them)."""
    if values.dtype.kind == "U":
        texts = np.char.strip(values.reshape(len(values), -1)[:, 0])
        yield np.asarray(texts == ""), UNLABELLED, "is empty"
        if names:
            yield ~np.isin(texts, list(names)), "no class", "is none of the classes"
        return
    flat = values.reshape(len(values), -1)
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            small = flat.astype(np.float32)
        odd: Any = np.isinf(small) if answers and not is_label else ~np.isfinite(small)
        yield odd.any(1), "no finite number", "holds a value that is not a finite number of 32 bits"
    if is_label and values.dtype == np.uint64:
        large: Any = flat > np.iinfo(np.int64).max
        yield large.any(1), "too large", "holds a number that int64 does not hold"
    if is_label and names:
        known = ((flat >= 0) & (flat < len(names))) | (flat == NO_LABEL)
        yield ~known.all(1), "no class", f"is not the number of a class, 0 to {len(names) - 1}"
