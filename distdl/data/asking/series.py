"""Series of raw files that are to be gone on with: read and scaled as those that a model learned from, and back again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distdl.data.asking.question import Asking, Question
from distdl.data.corpora import series
from distdl.data.formats import tsf
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

    def read(self) -> np.ndarray:
        """(T, D) float32: what the model reads."""
        return ((self.values - self.shift) / self.divide).astype(np.float32)

    def restored(self, values: np.ndarray) -> np.ndarray:
        """Values of the model (..., D), in the numbers of the file."""
        return values.astype(np.float64) * self.divide + self.shift


def of_one_scale(record: Mapping[str, Any]) -> bool:
    """Whether what a model says of any series is restored by the record alone."""
    return record.get("kind") == KIND and ("scale" in record or record.get("normalise") == "none")


def restored(record: Mapping[str, Any], values: np.ndarray) -> np.ndarray:
    """Values (..., D) in the numbers of the file, where the record says how."""
    if record.get("kind") != KIND or "scale" not in record:
        return values
    scale = record["scale"]
    return values * np.array(scale["divide"], np.float64) + np.array(scale["shift"], np.float64)


def series_in(record: Mapping[str, Any], path: str) -> Iterator[Series]:
    """The series of a raw file: of a text or CSV one, of a `.tsf` file each. InputError: it is of another kind than the
    one that was learned from, or too short."""
    of_many = "scale" not in record
    if Path(path).name.removesuffix(".gz").endswith(".tsf") != of_many:
        what = f"the model learned from {'a .tsf file' if of_many else 'a text or CSV of numbers'}, and this is {path}"
        raise InputError(what, fix="give a file of the same kind, or a prepared data set")
    for found in _of_tsf(record, path) if of_many else [_of_lines(record, path)]:
        if not len(found.values):
            raise InputError(f"{found.where} has no value to go on from")
        yield found


def of_series(record: Mapping[str, Any], path: str) -> Asking:
    """A question for each series of a raw file: what comes next. InputError as above."""

    def portions() -> Iterator[tuple[int, Question]]:
        for one in series_in(record, path):
            yield 1, Question({"series": [one.where]}, {"x": one.read()[None]}, np.ones(1, bool))

    return Asking(as_read, portions())


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


def _of_tsf(record: Mapping[str, Any], path: str) -> Iterator[Series]:
    for where, values in tsf.series_of(path, record["missing"]):
        shift, divide = np.zeros(1), np.ones(1)
        if record["normalise"] == "series":
            shift, divide = values.mean(0), np.where(values.std(0) > 0, values.std(0), 1)
        yield Series(where, values[1 - record["length"] :], shift, divide)
