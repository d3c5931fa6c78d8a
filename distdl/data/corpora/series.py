"""Time series: columns of numbers in a text or CSV file (.gz too), in the order of time, as windows (`series/windows.py`).

The first `train_values` values are the training part, the following `test_values` are the split `test`.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows, read_blocks
from distdl.data.series.windows import WindowOptions, check_windows, windows
from distdl.errors import InputError, Problem, did_you_mean


@dataclass(frozen=True)
class Options(WindowOptions):
    """Options of the source `series`."""

    path: str
    """The file: a line for each time, its values separated by commas or blanks."""
    columns: tuple[str, ...] = ()
    """Names of the columns to take, where the file has a header line; without it all columns."""
    average: int = 1
    """Lines that are averaged to one value, such as 12 for the yearly means of months."""
    train_values: int = 0
    """Values of the training part; 0: nine tenths of all, less those of the validation part."""
    test_values: int = 0
    """Values of the test part, which follows; 0: all that are left."""
    standardise: bool = False
    """Subtract the mean and divide by the standard deviation of the training part."""


def prepare(options: Options) -> Prepared:
    """`x` float32 (steps + 1, D). The manifest's info holds the `mean` and `std` that were taken out."""
    values = values_of(options)  # (T, D)
    parts = _parts(values, options)
    train = parts["train"]
    mean, std = np.zeros(values.shape[1]), np.ones(values.shape[1])
    if options.standardise:
        mean, std = train.mean(0), train.std(0)  # of the training part alone: the test part is not known yet
        if not std.all():
            what = f"a column of {options.path} does not change in its training part"
            raise InputError(what, fix="standardise=false")
    chunks: Iterator[tuple[str, Rows]] = (
        (split, {"x": windows((part - mean) / std, options).astype(np.float32)}) for split, part in parts.items()
    )
    info = {"mean": mean.tolist(), "std": std.tolist()}
    shape = (options.steps + 1, values.shape[1])
    record = {
        "kind": "series",
        "version": 1,
        "length": shape[0],
        "dimensions": shape[1],
        "columns": list(options.columns),
        "average": options.average,
        "scale": {"shift": mean.tolist(), "divide": std.tolist()},
    }
    return Prepared({"x": Column("float32", shape)}, chunks, info, {"x": record})


def values_of(options: Options) -> np.ndarray:
    """(T, D) float64: the values of a file, averaged as the options say."""
    return _averaged(_read(options), options.average)


def _read(options: Options) -> np.ndarray:
    """(T, D) float64: the chosen columns of every line that is not blank."""
    path = options.path
    try:
        lines = b"".join(read_blocks(path)).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text: {error}") from error
    numbered = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise InputError(f"{path} is empty")
    commas = "," in numbered[0][1]
    fields = [next(csv.reader([line], skipinitialspace=True)) if commas else line.split() for _, line in numbered]
    header = fields[0] if options.columns or not all(map(_is_number, fields[0])) else None
    chosen = range(len(fields[0]))
    if options.columns:
        if unknown := [name for name in options.columns if name not in fields[0]]:
            raise InputError(f"{path} has no column {unknown[0]!r}", fix=did_you_mean(unknown[0], fields[0]))
        chosen = [fields[0].index(name) for name in options.columns]  # type: ignore[assignment]
    table = []
    for (n, _), line in itertools.islice(zip(numbered, fields), 1 if header else 0, None):
        if len(line) != len(fields[0]):
            raise InputError(f"{path}:{n}: {len(line)} values, the first line has {len(fields[0])}")
        if bad := [line[i] for i in chosen if not _is_number(line[i])]:
            fix = "columns=NAME[,NAME] to take some of them" if header else "fill the gap, or cut the series there"
            raise InputError(f"{path}:{n}: {bad[0]!r} is not a finite number", fix=fix)
        table.append([float(line[i]) for i in chosen])
    return np.array(table).reshape(len(table), len(chosen))


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _averaged(values: np.ndarray, n: int) -> np.ndarray:
    """Means of n lines each; what does not fill a last mean is left out."""
    if n < 1:
        raise InputError(f"average is {n}", allowed="at least 1")
    return values[: len(values) // n * n].reshape(-1, n, values.shape[1]).mean(1)


def _parts(values: np.ndarray, options: Options) -> dict[str, np.ndarray]:
    """The training part, and those held out with the `lookback` values before them."""
    steps, lookback, have = options.steps, options.lookback, len(values)
    check_windows(options)
    n_validation = options.validation_values
    n_train = options.train_values or have * 9 // 10 - n_validation
    n_test = options.test_values or have - n_train - n_validation
    problems = []
    if n_train + n_validation + n_test > have:
        between = f", {n_validation} validation" if n_validation else ""
        told = f"{n_train} training{between} and {n_test} test values"
        problems.append(Problem(f"{told} of {options.path}, which has {have}"))
    if n_train < steps + 1:
        problems.append(Problem(f"{n_train} training values do not fill a window of {steps + 1}", fix="fewer steps"))
    for split, count in (("validation", n_validation or have), ("test", n_test)):
        if count < steps + 1 - lookback:
            fix = f"{split}_values={steps + 1 - lookback} or more, or another lookback"
            problems.append(Problem(f"{count} {split} values, a window asks for {steps + 1 - lookback}", fix=fix))
    if problems:
        raise InputError(*problems)
    held_out = n_train + n_validation
    found = {"train": values[:n_train]}
    found |= {"validation": values[n_train - lookback : held_out]} if n_validation else {}
    return found | {"test": values[held_out - lookback : held_out + n_test]}
