"""Files of text whose header is lines of @key value: what `.ts`, `.tsf` and `.arff` share."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import numpy as np

from distdl.data.raw import open_raw
from distdl.errors import InputError

T = TypeVar("T")
KEPT_BYTES = 32 << 20
"""Of the values of a file's series, which then are read once."""
MISSING = ("?", "nan")
LARGEST_LINE = 1 << 28
"""Characters of one line, which is held in memory."""
_OF_NUMBERS = str.maketrans("", "", "0123456789+-.eE, ")
COMMENT = ("#", "%")
"""What a line of .ts and .tsf that is a comment begins with."""


def lines_of(path: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank."""
    with open_raw(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig") as text:
        n = 0
        try:
            while line := text.readline(LARGEST_LINE + 1):
                n += 1
                if len(line) > LARGEST_LINE:
                    raise InputError(f"the line has more than {LARGEST_LINE:,} characters", where=f"{path}:{n}")
                if stripped := line.strip():
                    yield n, stripped
        except UnicodeDecodeError as error:
            raise InputError(f"the text is not UTF-8: {error}", where=f"{path}:{n + 1}", fix="convert it") from error


class Kept(Generic[T]):
    """What `read` gives, which is kept as it is read first where it is little (`size`: bytes of an item): reading numbers
    from text is most of the work."""

    def __init__(self, read: Callable[[], Iterator[T]], size: Callable[[T], int]) -> None:
        self._read, self._size = read, size
        self._items: list[T] = []
        self._whole = False

    def __call__(self) -> Iterator[T]:
        if self._whole:
            yield from self._items
            return
        self._items, total = [], 0
        for item in self._read():
            total += self._size(item)
            if total <= KEPT_BYTES:
                self._items.append(item)
            yield item
        self._whole = total <= KEPT_BYTES
        if not self._whole:
            self._items = []


def flag(key: str, rest: list[str], where: str) -> bool:
    """The value of a header line that says true or false."""
    if len(rest) != 1 or rest[0].lower() not in ("true", "false"):
        raise InputError(f"{key} is {' '.join(rest)!r}", where=where, allowed="true, false")
    return rest[0].lower() == "true"


def whole(key: str, rest: list[str], where: str) -> int:
    """The value of a header line that says a number of things."""
    if len(rest) != 1 or not rest[0].isdecimal() or int(rest[0]) < 1:
        raise InputError(f"{key} is {' '.join(rest)!r}", where=where, allowed="a whole number of at least 1")
    return int(rest[0])


def number(text: str) -> float:
    """A number as files write it; NaN for anything else."""
    try:
        return float(text) if "_" not in text else math.nan  # Python reads 1_000 as a number
    except ValueError:
        return math.nan


def numbers_in(text: str, where: str) -> np.ndarray:
    """The numbers of `1.5,2,?`, as `numbers` has them. Text of plain numbers alone is read at once, to the same bits."""
    if not text.translate(_OF_NUMBERS):
        with contextlib.suppress(ValueError, DeprecationWarning):  # it stops at what is no number
            found = np.fromstring(
                f"{text},0", sep=","
            )  # the last one shows that those before it were read to their end
            if len(found) == text.count(",") + 2 and np.isfinite(found).all():
                return found[:-1]
    return numbers(text.split(","), where)


def numbers(texts: list[str], where: str) -> np.ndarray:
    """(T,) float64; NaN is missing. InputError names the first value that is neither a number nor missing."""
    try:
        found = np.array([float(text) for text in texts])
        if np.isfinite(found).all() and not any("_" in text for text in texts):
            return found
    except ValueError:
        pass
    found = np.array([number(text) for text in texts])
    for i in np.flatnonzero(~np.isfinite(found)).tolist():
        if texts[i].strip().lower() not in MISSING:
            raise InputError(
                f"value {i + 1} is {texts[i].strip()!r:.60}, which is not a finite number",
                where=where,
                allowed="numbers, and ? for a missing one",
            )
    return found
