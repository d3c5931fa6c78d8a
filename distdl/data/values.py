"""The one check of what is written: every value is finite, and is still itself in the type of its column.

A source hands out numbers in the type that its file has, and they are cast here, where all rows pass on their way into a
data set. A value that the type does not hold is refused with its row, its column and what it is; so is NaN, but for one
meaning: in a column of 0 and 1 it is an answer that nobody has (`Column.answers`), and that is said. A whole number that
float32 rounds is refused where the file has an integer, which may be an id or a time, and said where it has a real number;
real numbers of which most become the same are refused, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from distdl.data.manifest import VARIABLE, Column
from distdl.data.raw import Prepared, Rows
from distdl.errors import InputError

ROW = "row of the file"
"""Key of rows that tell which rows of their file they are; no name of a column can be like it."""

Place = Callable[[int], str]
"""A row of an array -> where it came from, for a person."""


def numbered(chunks: Iterable[Rows]) -> Iterator[Rows]:
    """The rows of a file with their numbers, from 0, which stay with them whatever split they go to."""
    row = 0
    for rows in chunks:
        count = len(next(iter(rows.values())))
        yield {**rows, ROW: np.arange(row, row + count)}
        row += count


def to_float32(values: np.ndarray, name: str, place: Place) -> np.ndarray:
    """Numbers (n, ...) of the column `name` as finite float32. InputError for the first one that float32 does not hold:
    NaN, infinite, too large, or a whole number (of an integer type) beyond 16,777,216 that it would round."""
    found = _cast(values, np.dtype("float32"), name, place)
    if bad := _first(~np.isfinite(found)):
        raise _not_finite(name, values[bad], place(bad[0]), found.dtype)
    return found


def check_finite(values: np.ndarray, name: str, gaps: bool) -> None:
    """InputError for a value that is not finite. `gaps`: NaN is an answer that nobody has."""
    wrong = np.isinf(values) if gaps else ~np.isfinite(values)
    if bad := _first(wrong):
        raise _not_finite(name, values[bad], "")


def only_answers(batches: Iterable[Any], names: Sequence[str]) -> dict[str, bool]:
    """Column -> whether all its finite values are 0 and 1, so that NaN may stand among them. `batches`: of Arrow, with
    columns of real numbers, or of lists of such."""
    found = dict.fromkeys(names, True)
    for batch in batches:
        for i, name in enumerate(names):
            values = batch.column(i)
            while values.type.num_fields:
                values = values.flatten()
            flat = np.asarray(values.to_numpy(zero_copy_only=False), np.float64)
            found[name] &= bool(((flat == 0) | (flat == 1) | ~np.isfinite(flat)).all())
    return found


def in_range(prepared: Prepared) -> Iterator[tuple[str, Rows]]:
    """The chunks of a source, cast into the types of its columns. InputError for the first value that does not fit."""
    columns = {name: _Checked(name, column) for name, column in prepared.columns.items()}
    counts: dict[str, int] = {}
    for split, rows in prepared.chunks:
        rows = dict(rows)
        numbers, before = rows.pop(ROW, None), counts.get(split, 0)
        for name, checked in columns.items():
            if name in rows:  # a column that is missing, or of another shape, is the writer's to tell
                rows[name] = checked.values(rows[name], _places(prepared, split, name, numbers, before))
        counts[split] = before + len(next(iter(rows.values()), ()))
        yield split, rows
    for checked in columns.values():
        checked.finish()


def _places(prepared: Prepared, split: str, name: str, numbers: np.ndarray | None, before: int) -> Place:
    def place(row: int) -> str:
        if numbers is None or prepared.place is None:
            return f"split '{split}', row {before + row:,}"
        return f"{prepared.place(split, name, int(numbers[row]))} (split '{split}')"

    return place


class _Checked:
    """One column on its way into the data set."""

    def __init__(self, name: str, column: Column) -> None:
        self.name, self.variable = name, column.dtype == VARIABLE
        self.dtype = None if self.variable else np.dtype(column.dtype)
        self.answers = True  # no finite value but 0 and 1 so far
        self.known = False  # any finite value so far
        self.missing, self.first_missing = 0, ""
        self.rounded, self.first_rounded = 0, ""

    def values(self, values: Any, place: Place) -> Any:
        """The same values in the column's type."""
        if self.dtype is None:
            return values
        values = np.asarray(values)
        if values.dtype.kind not in "biuf" or not values.size or not values.ndim:
            return values
        found = _cast(values, self.dtype, self.name, place)
        if found.dtype.kind == "f":
            self._finite(values, found, place)
            if values.dtype == np.float64 and found.dtype != np.float64:
                self._rounding(values, found, place)
        return found

    def _finite(self, values: np.ndarray, found: np.ndarray, place: Place) -> None:
        low, high = found.min(), found.max()  # NaN where any value is
        if np.isfinite(low) and np.isfinite(high):
            self.known = True
            if self.answers and not self._only_answers(found):
                self.answers = False
                if self.missing:
                    raise _not_finite(self.name, np.nan, self.first_missing)
            return
        nan = np.isnan(found)
        if bad := _first(~np.isfinite(found) & ~nan):
            raise _not_finite(self.name, values[bad], place(bad[0]), found.dtype)
        finite = found[~nan]
        self.known |= bool(finite.size)
        self.answers = self.answers and self._only_answers(finite)
        first = place((_first(nan) or (0,))[0])
        if not self.answers:
            raise _not_finite(self.name, np.nan, self.first_missing or first)
        self.missing, self.first_missing = self.missing + int(np.count_nonzero(nan)), self.first_missing or first

    @staticmethod
    def _only_answers(values: np.ndarray) -> bool:
        return bool(((values == 0) | (values == 1)).all())

    def _rounding(self, values: np.ndarray, found: np.ndarray, place: Place) -> None:
        """Count whole numbers that were rounded to others. InputError: most of what was rounded became the same."""
        exact = _exact(found.dtype)
        if max(found.max(), -found.min()) < exact:
            return
        lost = (np.abs(values) > exact) & (found.astype(values.dtype) != values)
        if not (bad := _first(lost)):
            return
        before, after = np.unique(values[lost]), np.unique(found[lost])
        if 2 * len(after) < len(before):
            such = f"such as {before[0]:.10g} and {before[1]:.10g}"
            told = f"{len(before):,} different numbers, {such}, become {len(after):,}"
            fix = "subtract a start or divide, so that they become small"
            raise InputError(f"in the column '{self.name}' {told} as {found.dtype}", where=place(bad[0]), fix=fix)
        lost &= values == np.floor(values)
        if bad := _first(lost):
            self.first_rounded = self.first_rounded or f"{place(bad[0])}: {values[bad]:.0f} becomes {found[bad]:.0f}"
            self.rounded += int(np.count_nonzero(lost))

    def finish(self) -> None:
        """What is only known in the end: refuse what is missing throughout, and say what was let pass."""
        if self.missing and not self.known:
            raise _not_finite(self.name, np.nan, self.first_missing)
        if self.missing:
            _say(
                f"{self.missing:,} values of the column '{self.name}' are NaN, all others 0 or 1: they are kept as answers "
                f"that are missing, the first in {self.first_missing}"
            )
        if self.rounded:
            _say(
                f"{self.rounded:,} whole numbers of the column '{self.name}' are rounded, as {self.dtype} does not have "
                f"every one beyond {_exact(self.dtype):,}; {self.first_rounded}"
            )


def _cast(values: np.ndarray, dtype: np.dtype[Any], name: str, place: Place) -> np.ndarray:
    """The values in that type. InputError for one that an integer type does not hold, and for an integer that is rounded.
    Real numbers may come out infinite."""
    if values.dtype == dtype:
        return values
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            found = values.astype(dtype)
        if values.dtype.kind in "iu" and values.size and _largest(values) > _exact(dtype):
            bad = _first(found.astype(np.longdouble) != values.astype(np.longdouble))
            if bad:
                what = f"the whole number {values[bad]}, which {dtype} would round to {found[bad]:.0f}"
                raise InputError(
                    f"the column '{name}' has {what}",
                    where=place(bad[0]),
                    allowed=f"whole numbers up to {_exact(dtype):,}",
                    fix="subtract a start or divide, so that they become small; or leave an id out",
                )
        return found
    if np.can_cast(values.dtype, dtype, "safe"):
        return values.astype(dtype)
    if values.dtype.kind == "f":
        bad = _first(~(values == np.floor(values)) | ~np.isfinite(values))
        what = "which is no whole number"
    else:
        bad, what = None, ""
    if not bad and values.size:
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        if int(values.min()) < low or int(values.max()) > high:
            bad = _first(
                np.array([int(value) < low or int(value) > high for value in values.flat]).reshape(values.shape)
            )
            what = f"which {dtype} does not hold"
    if bad:
        raise InputError(
            f"the column '{name}' has the value {values[bad]}, {what}",
            where=place(bad[0]),
            allowed=f"whole numbers from {np.iinfo(dtype).min:,} to {np.iinfo(dtype).max:,}",
        )
    return values.astype(dtype)


def _largest(values: np.ndarray) -> int:
    return max(int(values.max()), -int(values.min()))


def _exact(dtype: Any) -> int:
    """Whole numbers up to here are themselves in a floating-point type."""
    return 1 << (np.finfo(dtype).nmant + 1)


def _first(hits: np.ndarray) -> tuple[int, ...] | None:
    """The place of the first True."""
    if not hits.any():
        return None
    return tuple(int(i) for i in np.unravel_index(int(hits.argmax()), hits.shape))


def _not_finite(name: str, value: Any, where: str, dtype: Any = None) -> InputError:
    too_large = np.isfinite(value)
    what = f"which is too large for {dtype}" if too_large else "which is not a finite number"
    fix = "scale it" if too_large else "fill it in, or leave such rows out"
    return InputError(f"the column '{name}' has the value {value}, {what}", where=where, fix=fix)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
