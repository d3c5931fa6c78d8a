"""Series of raw files that are to be gone on with: read and scaled as those that a model learned from, and back again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distdl.data.asking.question import Asking, Question
from distdl.data.corpora import series
from distdl.data.formats import tsf
from distdl.data.series.moments import moment
from distdl.errors import InputError

KIND = "series"


@dataclass(frozen=True)
class Series:
    """One of them, in the numbers of its file."""

    where: str
    values: np.ndarray
    """(T, D) float64: the last ones, as many as the model learned from at a time."""
    shift: np.ndarray
    divide: np.ndarray
    """(D,) each: what the model reads is (values - shift) / divide."""
    name: str = ""
    """As the file calls it."""
    steps: int = 0
    """Values that the file has of it, of which these are the last."""
    start: datetime | None = None
    """When the first of them was."""
    frequency: str = ""

    def read(self) -> np.ndarray:
        """(T, D) float32: what the model reads."""
        return ((self.values - self.shift) / self.divide).astype(np.float32)

    def restored(self, values: np.ndarray) -> np.ndarray:
        """Values of the model (..., D), in the numbers of the file."""
        return values.astype(np.float64) * self.divide + self.shift

    @property
    def called(self) -> str:
        return self.name or self.where

    def when(self, step: int) -> str | None:
        """The moment of the value that comes so many steps after the next; None: the file does not say."""
        found = moment(self.start, self.frequency, self.steps + step) if self.start else None
        return None if found is None else str(found)


def of_one_scale(record: Mapping[str, Any]) -> bool:
    """Whether what a model says of any series is restored by the record alone."""
    return record.get("kind") == KIND and ("scale" in record or record.get("normalise") == "none")


def restored(record: Mapping[str, Any], values: np.ndarray) -> np.ndarray:
    """Values (..., D) in the numbers of the file, where the record says how."""
    if record.get("kind") != KIND or "scale" not in record:
        return values
    scale = record["scale"]
    return values * np.array(scale["divide"], np.float64) + np.array(scale["shift"], np.float64)


def of_many(record: Mapping[str, Any]) -> bool:
    """Whether it is each series of a `.tsf` file that was learned from, not the one of a text or CSV."""
    return record.get("kind") == KIND and "scale" not in record


def is_tsf(path: str) -> bool:
    return Path(path).name.removesuffix(".gz").endswith(tsf.ENDINGS)


def horizon_of(path: str) -> int:
    """Values that a `.tsf` file says are to be forecast; 0: it does not, or is none."""
    return tsf.horizon_of(path) if is_tsf(path) else 0


def each_series(record: Mapping[str, Any], path: str) -> Iterator[Series | InputError]:
    """The series of a raw file, or why one of them cannot be gone on with: of a text or CSV one, of a `.tsf` file each.
    InputError: it is of another kind than the one that was learned from."""
    if is_tsf(path) != of_many(record):
        kind = "a .tsf file" if of_many(record) else "a text or CSV of numbers"
        what = f"the model learned from {kind}, and this is {path}"
        raise InputError(what, fix="give a file of the same kind, or a prepared data set")
    for found in _of_tsf(record, path) if of_many(record) else [_of_lines(record, path)]:
        if isinstance(found, Series) and not len(found.values):
            yield InputError(f"{found.where} has no value to go on from")
        else:
            yield found


def series_in(record: Mapping[str, Any], path: str) -> Iterator[Series]:
    """The series of a raw file. InputError as above, and for one that cannot be gone on with."""
    for found in each_series(record, path):
        if isinstance(found, InputError):
            raise found
        yield found


def of_series(record: Mapping[str, Any], path: str) -> Asking:
    """A question for each series of a raw file: what comes next. InputError as above."""

    def portions() -> Iterator[tuple[int, Question]]:
        for one in series_in(record, path):
            yield 1, Question({"series": [one.where]}, {"x": one.read()[None]}, np.ones(1, bool))

    return Asking(as_read, portions())


def ahead(
    record: Mapping[str, Any],
    found: Sequence[Series | InputError],
    values: Sequence[np.ndarray],
    path: str,
    named: str,
    several: bool,
) -> dict[str, pa.Array]:
    """The forecasts (H, D) of those of `found` that are series, as a table with a line for each step of each, and an empty
    one where there is none. They are in the file at `path`, which is called `named` and is one of `several`."""
    steps = iter(values)
    columns: dict[str, list[Any]] = {"series": [], "step": [], "time": []}
    numbers: list[np.ndarray] = []
    width = values[0].shape[1] if len(values) else int(record.get("dimensions", 1))
    for one in found:
        of = next(steps) if isinstance(one, Series) else np.full((1, width), np.nan)
        numbers.append(of)
        bad = not isinstance(one, Series)
        said = (one.problems[0].where if isinstance(one, InputError) else one.called) or ""
        columns["series"] += [said.replace(path, named)] * len(of)
        columns["step"] += [None] if bad else range(1, len(of) + 1)
        columns["time"] += [None if isinstance(one, InputError) else one.when(step) for step in range(len(of))]
    whole = np.concatenate(numbers)
    names = [str(name) for name in record.get("columns", ())]
    called = ["forecast"] if width == 1 else [f"forecast {n}" for n in (names if len(names) == width else range(width))]
    table = {"file": pa.array([named] * len(whole), pa.string())} if several else {}
    table |= {
        "series": pa.array(columns["series"], pa.string()),
        "step": pa.array(columns["step"], pa.int64()),
        "time": pa.array(columns["time"], pa.string()),
    }
    return table | {name: pa.array(whole[:, i], mask=np.isnan(whole[:, i])) for i, name in enumerate(called)}


def as_read(question: Question) -> list[Question]:
    """A question that is one already."""
    return [question]


def _of_lines(record: Mapping[str, Any], path: str) -> Series:
    options = series.Options(path=path, columns=tuple(record["columns"]), average=record["average"])
    values = series.values_of(options)
    if values.shape[1] != record["dimensions"]:
        what = f"{path} has {values.shape[1]} columns, and the model learned from {record['dimensions']}"
        raise InputError(what, fix="give a file of the same columns")
    scale = record["scale"]
    shift, divide = np.array(scale["shift"]), np.array(scale["divide"])
    return Series(path, values[1 - record["length"] :], shift, divide)


def _of_tsf(record: Mapping[str, Any], path: str) -> Iterator[Series | InputError]:
    for one in tsf.series_of(path, record["missing"]):
        if isinstance(one, InputError):
            yield one
            continue
        values, shift, divide = one.values, np.zeros(1), np.ones(1)
        if record["normalise"] == "series" and len(values):
            shift, divide = values.mean(0), np.where(values.std(0) > 0, values.std(0), 1)
        last = values[1 - record["length"] :]
        yield Series(one.where, last, shift, divide, one.name, len(values), one.start, one.frequency)
