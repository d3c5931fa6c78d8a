"""Series in ARFF, as the UCR and UEA archives have them.

One dimension: numeric attributes, a time point each, then the class or target. Several: one relational attribute, whose
rows are the dimensions and whose numeric attributes are the time points, then the class or target. What is missing (?) in
all dimensions at the end of a series is padding, as such files hold lengths up to the longest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from distdl.data.series.arff import ArffFile, split_values
from distdl.data.series.labelled import Series, SeriesFile
from distdl.data.series.lines import numbers
from distdl.errors import InputError


def of_arff(path: str) -> SeriesFile:
    """A file of series. InputError: it is a table."""
    file = ArffFile(path)
    *series, answer = file.attributes
    bag = series[0].inner if len(series) == 1 and series[0].kind == "relational" else ()
    points = bag or tuple(series)
    if not points or answer.kind not in ("nominal", "numeric") or any(a.kind != "numeric" for a in points):
        raise InputError(
            f"{path} does not hold series",
            allowed="numeric attributes or one relational attribute of such, and a class or number behind them",
            fix="as a table: distdl data prepare arff",
        )
    answers: Literal["class", "number"] = "class" if answer.kind == "nominal" else "number"
    return SeriesFile(path, answers, answer.values, lambda: _series(file, len(points), bool(bag)))


def _series(file: ArffFile, points: int, several: bool) -> Iterator[Series]:
    for n, row in file.rows():
        where = f"{file.path}:{n}"
        lines = row[0].split("\n") if several else []
        dimensions = [split_values(line, where) for line in lines if line.strip()] if several else [row[:-1]]
        if not dimensions:
            raise InputError("the series has no values", where=where, fix="remove the row")
        values = np.stack([_dimension(d, part, points, where) for d, part in enumerate(dimensions, 1)], axis=1)
        there = np.flatnonzero(~np.isnan(values).all(1))
        if not len(there):
            raise InputError("the series has no values", where=where, fix="remove the row")
        yield Series(where, values[: there[-1] + 1], row[-1])


def _dimension(d: int, values: list[str], points: int, where: str) -> np.ndarray:
    if len(values) != points:
        raise InputError(f"dimension {d} has {len(values):,} values, there are {points:,} attributes", where=where)
    return numbers(values, where)
