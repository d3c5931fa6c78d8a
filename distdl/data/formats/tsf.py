"""Forecasting series of the Monash archive (`.tsf`), as windows (`series/windows.py`).

    @attribute series_name string
    @attribute start_timestamp date
    @frequency daily
    @horizon 8
    @missing false
    @equallength false
    @data
    T1:1979-01-01 00-00-00:25092.2,24271.5,?        the attributes in their order, then the values; "?" is missing

Each series is cut in two by itself: its last `test_values` values are the split `test`, what is before them is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Literal

import numpy as np

from distdl.data.advice import Advice, Wish
from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows
from distdl.data.series.labelled import filled
from distdl.data.series.lines import COMMENT, Kept, flag, lines_of, number, numbers_in, whole
from distdl.data.series.windows import WindowOptions, check_windows, windows
from distdl.data.split_rules import SPLITS
from distdl.errors import InputError, did_you_mean

KEYS = ("relation", "attribute", "frequency", "horizon", "missing", "equallength")
KINDS = ("string", "date", "numeric")
MOMENT = "%Y-%m-%d %H-%M-%S"
CHUNK_ROWS = 1024
Found = tuple[str, np.ndarray, dict[str, str]]
"""Place, values (T, 1) and attributes of a series; NaN is missing."""


@dataclass(frozen=True)
class Options(WindowOptions):
    """Options of the source `tsf`."""

    path: str
    """The file (.gz too)."""
    test_values: int = field(default=0, kw_only=True)
    """Values at the end of each series that are the split `test`; 0: the file's @horizon, else a tenth of the series."""
    normalise: Literal["none", "series"] = field(default="none", kw_only=True)
    """series: each series to mean 0 and deviation 1 of its training part; its test part is moved by the same numbers."""
    missing: Literal["refuse", "interpolate", "mean", "zero"] = field(default="refuse", kw_only=True)
    """What a missing value becomes: a straight line between its neighbours, the mean of its part, or 0. Training and test
    part are filled each from its own values."""


@dataclass
class _Told:
    """What all series have told."""

    series: int = 0
    short: int = 0
    missing: int = 0
    test_values: int = 0


def prepare(options: Options) -> Prepared:
    """`x` float32 (steps + 1, 1)."""
    check_windows(options)
    if options.test_values < 0:
        raise InputError(f"test_values is {options.test_values}", allowed="0 or more")
    header = _Header(options.path)
    record = {
        "kind": "series",
        "version": 1,
        "length": options.steps + 1,
        "dimensions": 1,
        "normalise": options.normalise,
        "missing": options.missing,
    }
    told = _Told()
    series = Kept(partial(_series, header, told), lambda one: one[1].nbytes)
    _scan(header, options, told, series())
    info: dict[str, Any] = {"frequency": header.frequency, "horizon": header.horizon, "series": told.series}
    if notes := _notes(header, told, options):
        info["notes"] = notes
    columns = {"x": Column("float32", (options.steps + 1, 1))}
    return Prepared(columns, _chunks(header, options, series), info, {"x": record})


class _Header:
    """What stands before @data."""

    def __init__(self, path: str) -> None:
        self.path, self.frequency, self.horizon, self.last = path, "", 0, 0
        self.attributes: list[tuple[str, str]] = []
        self.flags: dict[str, bool] = {}
        for n, line in lines_of(path):
            where = f"{path}:{n}"
            if line.startswith(COMMENT):
                continue
            key, *rest = line.split()
            key = key.lower()
            if not key.startswith("@"):
                raise InputError("a series stands before @data", where=where, fix="is this a .tsf file?")
            if key == "@data":
                self.last = n
                break
            if key[1:] not in KEYS:
                raise InputError(f"there is no header line {key}", where=where, fix=did_you_mean(key[1:], KEYS))
            if key == "@attribute":
                if len(rest) != 2 or rest[1].lower() not in KINDS:
                    allowed = f"@attribute NAME KIND, with one of {', '.join(KINDS)}"
                    raise InputError(f"the attribute is {' '.join(rest)!r}", where=where, allowed=allowed)
                self.attributes.append((rest[0], rest[1].lower()))
            elif key == "@frequency":
                self.frequency = " ".join(rest)
            elif key == "@horizon":
                self.horizon = whole(key, rest, where)
            elif key in ("@missing", "@equallength"):
                self.flags[key[1:]] = flag(key, rest, where)
        if not self.last:
            raise InputError(f"{path} has no line @data", fix="is this a .tsf file, and complete?")
        if not self.attributes:
            raise InputError(f"{path} names no attribute", allowed="@attribute series_name string")


def _series(header: _Header, told: _Told) -> Iterator[Found]:
    """Place, values (T, 1) and attributes of each series; NaN is missing."""
    first = 0
    for n, line in lines_of(header.path):
        where = f"{header.path}:{n}"
        if n <= header.last or line.startswith(COMMENT):
            continue
        parts = line.split(":")
        if len(parts) != len(header.attributes) + 1:
            raise InputError(
                f"the line has {len(parts)} parts between colons",
                where=where,
                allowed=f"{', '.join(name for name, _ in header.attributes)}, and the values",
            )
        attributes = {name: text.strip() for (name, _), text in zip(header.attributes, parts)}
        for name, kind in header.attributes:
            _check_attribute(name, kind, attributes[name], where)
        values = numbers_in(parts[-1], where)
        first = first or len(values)
        if header.flags.get("equallength") and len(values) != first:
            raise InputError(
                f"the series has {len(values):,} values instead of {first:,}, and the header says @equallength true",
                where=where,
                fix="complete the line, or correct the header",
            )
        told.series += 1
        told.missing += int(np.isnan(values).sum())
        yield where, values[:, None], attributes


@dataclass(frozen=True)
class Whole:
    """A series of a file from its first value to its last."""

    where: str
    name: str
    """Its first attribute that is a word; '': it has none."""
    values: np.ndarray
    """(T, 1), the gaps filled."""
    start: datetime | None
    """When the first value was."""
    frequency: str


def series_of(path: str, missing: str) -> Iterator[Whole | InputError]:
    """Each series of a file, or why its gaps are not filled. InputError: a line is none."""
    header = _Header(path)
    for where, values, attributes in _series(header, _Told()):
        first = {kind: attributes[name] for name, kind in reversed(header.attributes)}
        start = datetime.strptime(first["date"], MOMENT) if "date" in first else None
        try:
            _refuse_gaps(values, missing, where)
            yield Whole(where, first.get("string", ""), filled(values, missing, where), start, header.frequency)
        except InputError as error:
            yield error


def horizon_of(path: str) -> int:
    """Values that the head of a file says are to be forecast; 0: it does not."""
    return _Header(path).horizon


def _refuse_gaps(values: np.ndarray, missing: str, where: str) -> None:
    gaps = int(np.isnan(values).sum())
    if gaps and missing == "refuse":
        fix = "missing=interpolate, mean or zero fills them"
        raise InputError(f"{gaps:,} of the series' {len(values):,} values are missing", where=where, fix=fix)


def _check_attribute(name: str, kind: str, text: str, where: str) -> None:
    """InputError for a value that is not of its kind: then a colon too few or too many has moved all of them."""
    try:
        if kind == "date":
            datetime.strptime(text, MOMENT)
        if kind == "numeric" and not np.isfinite(number(text)):
            raise ValueError(text)
    except ValueError:
        raise InputError(
            f"the attribute {name} is {text!r}",
            where=where,
            allowed="a moment as 1979-01-31 00-00-00" if kind == "date" else "a number",
        ) from None


def _scan(header: _Header, options: Options, told: _Told, every: Iterator[Found]) -> None:
    """A pass over all series, by which what does not fit is refused before anything is written."""
    for where, values, _ in every:
        told.test_values = _test_values(values, header, options)
        parts = _parts(where, values, told.test_values, options)
        told.short += parts is None
    if told.short == told.series:
        raise InputError(
            f"none of the {told.series:,} series of {header.path} fills a window of {options.steps + 1} values and its "
            "test part",
            fix=f"fewer steps; a window asks for {options.steps + 1 - options.lookback} values of the test part, which has "
            f"{told.test_values} in the last series: more lookback, or other test_values",
        )


def _notes(header: _Header, told: _Told, options: Options) -> list[str]:
    notes = []
    if told.short:
        of_all = f"{told.short:,} of {told.series:,}"
        notes.append(f"{header.path}: {of_all} series are too short for a window, and were left out")
    if told.missing:
        notes.append(f"{header.path}: {told.missing:,} missing values become: {options.missing}")
    return notes


def _chunks(header: _Header, options: Options, series: Callable[[], Iterator[Found]]) -> Iterator[tuple[str, Rows]]:
    pending: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for where, values, _ in series():
        parts = _parts(where, values, _test_values(values, header, options), options)
        for split, part in (parts or {}).items():
            rows = windows(part, options)
            for start in range(0, len(rows), CHUNK_ROWS):
                pending[split].append(rows[start : start + CHUNK_ROWS].astype(np.float32))
                if sum(map(len, pending[split])) >= CHUNK_ROWS:
                    yield split, {"x": np.concatenate(pending[split])}
                    pending[split] = []
    for split, some in pending.items():
        if some:
            yield split, {"x": np.concatenate(some)}


def _test_values(values: np.ndarray, header: _Header, options: Options) -> int:
    return options.test_values or header.horizon or -(-len(values) // 10)


def _parts(where: str, values: np.ndarray, n_test: int, options: Options) -> dict[str, np.ndarray] | None:
    """The training part, and those held out with the `lookback` values before them; None: too short for a window of
    each."""
    n_validation, asked = options.validation_values, options.steps + 1 - options.lookback
    n_train = len(values) - n_test - n_validation
    if n_train < options.steps + 1 or n_test < asked or (n_validation and n_validation < asked):
        return None
    _refuse_gaps(values, options.missing, where)
    ends = [n_train, n_train + n_validation]
    parts = [filled(part, options.missing, where) if len(part) else part for part in np.split(values, ends)]
    if options.normalise == "series":
        mean, deviation = parts[0].mean(0), parts[0].std(0)
        parts = [(part - mean) / np.where(deviation > 0, deviation, 1) for part in parts]
    whole = np.concatenate(parts)
    if not (abs(whole) <= np.finfo(np.float32).max).all():
        raise InputError("the series has a value that is not a finite number of 32 bits", where=where)
    found = {"train": parts[0], "test": whole[ends[1] - options.lookback :]}
    return found | ({"validation": whole[n_train - options.lookback : ends[1]]} if n_validation else {})


ENDINGS = (".tsf",)
ADVISED_STEPS = 48
"""Values that are seen, at most."""


def advise(path: str, wish: Wish) -> Advice:
    """Windows that fit most of the series and their test parts, for `distdl init`."""
    if wish.options():
        raise InputError(f"{path} holds series: the values that come next are predicted, no column is")
    header, lengths, gaps = _Header(path), list[int](), False
    options = Options(path)
    for _, values, _ in _series(header, _Told()):
        lengths.append(len(values))
        gaps = gaps or bool(np.isnan(values).any())
    if not lengths:
        raise InputError(f"{path} holds no series")
    middle = int(np.median(lengths))
    tested = min(_test_values(np.zeros(middle), header, options), middle // 2)
    steps = max(1, min(ADVISED_STEPS, (middle - tested) // 2))
    chosen: dict[str, object] = {"path": path, "steps": steps, "lookback": max(1, steps + 1 - tested)}
    because = {
        "steps": f"half of the series have {middle:,} values or more",
        "lookback": f"the last {tested:,} are tested",
    }
    if tested != _test_values(np.zeros(middle), header, options):
        chosen["test_values"], because["test_values"] = tested, "the horizon of the file is longer than the series"
    if gaps:
        chosen["missing"], because["missing"] = "interpolate", "values are missing"
    chosen["normalise"], because["normalise"] = "series", "series differ in level"
    return Advice(chosen, because)
