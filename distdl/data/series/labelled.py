"""Labelled series of unequal lengths -> rows of one shape: what the sources of such files share.

    scan    every file once: lengths, dimensions, labels; whatever does not fit is refused here, by its place
    rows    every file once more: values, missing ones filled, one length, normalised

A row is `x` (T, D) with `frames`, of which the rest is padding; or, as `layout=` says, `image` (1, T, D) or a flat `x`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from distdl.data.bad_rows import BadRows
from distdl.data.classes import in_order, same_numbers
from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows
from distdl.data.series.lines import Kept, number
from distdl.data.splits import SplitOptions, Splitter
from distdl.errors import InputError

CHUNK_BYTES = 8 << 20
CHUNK_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class SeriesOptions(SplitOptions):
    """How series become rows; the options of a source of series take these over."""

    test_path: str = ""
    """A file of the same classes that becomes the split `test`; then nothing is held out of `path`."""
    length: int = 0
    """Time points of a row: shorter series are padded with zeros, longer ones are cut, which is told; 0: as the longest
    of all files has."""
    pad: Literal["end", "front"] = "end"
    """Where a series shorter than `length` is padded. With end the column `frames` says how long each is; zeros at the
    front are read as values, which is told."""
    layout: Literal["recording", "image", "flat"] = "recording"
    """recording: `x` (T, D); image: `image` (1, T, D), which the recurrent families and the convolutional ones read; both
    with `frames`, the time points that count; flat: `x` (T * D,), for mlp and its kin."""
    normalise: Literal["none", "series"] = "none"
    """series: each dimension of each series to mean 0 and deviation 1 over the time points of its own that are kept."""
    target_scale: Literal["standard", "none"] = "standard"
    """What the numbers to predict become: mean 0 and deviation 1 over the training rows, or as they are."""
    missing: Literal["refuse", "interpolate", "mean", "zero"] = "refuse"
    """What a missing value becomes: a straight line between its neighbours, the mean of its series, or 0."""


@dataclass(frozen=True)
class Series:
    """One series as its file has it."""

    where: str
    """`file:line`, for a person."""
    values: np.ndarray
    """(T, D) float64; NaN is missing."""
    answer: str
    """Its label or target, as written; empty where the file has none."""


@dataclass(frozen=True)
class SeriesFile:
    """A file of labelled series that can be read again and again."""

    path: str
    answers: Literal["class", "number", "none"]
    """What stands behind each series."""
    declared: tuple[str, ...]
    """The classes that its header names; () where it names none."""
    read: Callable[[], Iterator[Series]]
    notes: tuple[str, ...] = ()
    """What its header leaves open, for a person."""


@dataclass
class _Facts:
    """What a scan finds."""

    longest: int = 0
    shortest: int = 0
    dimensions: int = 0
    series: int = 0
    missing: int = 0
    cut_series: int = 0
    cut_points: int = 0
    found: dict[str, int] = field(default_factory=dict)
    """Labels that occur, in the order of their first series."""
    answers: array[float] = field(default_factory=lambda: array("d"))
    """Of each series its target, or the place of its label in `found`."""


def prepare_series(
    options: SeriesOptions, train: SeriesFile, test: SeriesFile | None, notes: Sequence[str], bad: BadRows
) -> Prepared:
    """The columns that `layout` names, and `label` int64 with its class names or `y` float32. The files are read twice.
    `bad`: series that the readers have set aside, which others may join."""
    if options.length < 0:
        raise InputError(f"length is {options.length}", allowed="0 (of the longest series) or more")
    if options.pad == "front" and options.layout == "recording":
        what = "pad=front with layout=recording, whose `frames` are counted from the first time point on"
        raise InputError(what, fix="pad=end, or layout=image")
    train, test = _without(train, bad), _without(test, bad) if test else None
    facts = _scan(train, options, None, bad)
    of_test = _scan(test, options, facts.dimensions, bad, train.declared or tuple(facts.found)) if test else _Facts()
    bad.check(facts.series + of_test.series)
    classes, told = _classes(train, facts)
    notes = [*notes, *train.notes, *_notes(train, facts, options), *told]
    length = options.length or facts.longest
    if test:
        _same_classes(train, classes, test, of_test)
        notes += [*test.notes, *_notes(test, of_test, options)]
        length = options.length or max(length, of_test.longest)
    if options.pad == "front" and options.layout == "image" and facts.shortest < length:
        notes.append(
            f"series of fewer than {length:,} time points begin with zeros, which a recurrent family reads as values: "
            "pad=end with model.frames: true reads none"
        )
    columns = _columns(options, length, facts.dimensions, train.answers)
    record = {
        "kind": "series",
        "version": 1,
        "length": length,
        "dimensions": facts.dimensions,
        **{name: getattr(options, name) for name in ("pad", "layout", "normalise", "missing")},
    }
    info: dict[str, Any] = {"series_lengths": [facts.shortest, facts.longest], "missing_values": facts.missing}
    info |= {"notes": notes} if notes else {}
    preparation: dict[str, Any] = {next(iter(columns)): record}
    answers = _answers(train, facts, classes)
    splitter = Splitter(options, label="label" if classes else "", where=train.path, tested=test is not None)
    if splitter.looks:
        splitter.look([answers])
    scale: dict[str, Any] = {}
    if train.answers == "class":
        info["classes"] = classes
        preparation["label"] = {"kind": "class", "version": 1, "classes": classes}
    elif train.answers == "number":
        scale, mean = _target_scale(splitter, answers, options)
        preparation["y"] = {"kind": "number", "version": 1, "name": "target", "scale": scale, "center": mean}
    info["split"] = splitter.record()
    numbers = {name: float(i) for i, name in enumerate(classes)}

    def answer(text: str) -> float:
        return numbers[text] if classes else (number(text) - scale["shift"]) / scale["divide"]

    def chunks() -> Iterator[tuple[str, Rows]]:
        yield from splitter.share(_rows(train, options, columns, answer, length))
        for rows in _rows(test, options, columns, answer, length) if test else ():
            yield "test", rows

    return Prepared(columns, chunks(), info, preparation, bad=bad)


def _without(file: SeriesFile, bad: BadRows) -> SeriesFile:
    """A file without the series that were set aside."""
    read = Kept(file.read, lambda series: series.values.nbytes)
    return replace(file, read=lambda: (series for series in read() if series.where not in bad))


def _scan(
    file: SeriesFile, options: SeriesOptions, dimensions: int | None, bad: BadRows, classes: Sequence[str] = ()
) -> _Facts:
    """`dimensions`, `classes`: those of the training file, for another one."""
    facts = _Facts(dimensions=dimensions or 0)
    for series in file.read():
        told = f"{' x '.join(map(str, series.values.shape))} values, {series.answer!r}"
        with bad.row(series.where, told, "does not fit"):
            _check(facts, series, file, options)
            if bad.wanted:
                _check_values(series, options, classes if file.answers == "class" else ())
            steps = len(series.values)
            facts.missing += int(np.isnan(series.values).sum())
            facts.shortest = min(facts.shortest or steps, steps)
            facts.longest = max(facts.longest, steps)
            facts.series += 1
            facts.cut_series += 0 < options.length < steps
            facts.cut_points += max(0, steps - (options.length or steps))
            facts.dimensions = series.values.shape[1]
            if file.answers == "class":
                facts.answers.append(facts.found.setdefault(series.answer, len(facts.found)))
            elif file.answers == "number":
                facts.answers.append(_target(series))
    if not facts.series:
        raise InputError(f"{file.path} holds no series")
    return facts


def _check(facts: _Facts, series: Series, file: SeriesFile, options: SeriesOptions) -> None:
    """InputError: a series is not as the others."""
    width = series.values.shape[1]
    if width != (facts.dimensions or width):
        raise InputError(
            f"the series has {width} dimensions",
            where=series.where,
            allowed=f"{facts.dimensions}, as the first one has",
        )
    missing = int(np.isnan(series.values).sum())
    if missing and options.missing == "refuse":
        raise InputError(
            f"{missing:,} of the series' {series.values.size:,} values are missing",
            where=series.where,
            fix="missing=interpolate, mean or zero fills them",
        )
    if file.answers == "class":
        _label(series, file)
    elif file.answers == "number":
        _target(series)


def _check_values(series: Series, options: SeriesOptions, classes: Sequence[str]) -> None:
    """InputError: what is refused only when the rows are made, otherwise."""
    if classes and series.answer not in classes:
        what = f"the label {series.answer!r} is not one of the training file's classes"
        raise InputError(what, where=series.where, allowed=", ".join(classes[:20]))
    _row(series, options, len(series.values))


def _notes(file: SeriesFile, facts: _Facts, options: SeriesOptions) -> list[str]:
    """What becomes of its series that nobody sees in the rows."""
    notes = []
    if facts.missing:
        notes.append(f"{file.path}: {facts.missing:,} missing values become: {options.missing}")
    if facts.cut_series:
        told = f"{facts.cut_series:,} series were cut to length={options.length}"
        notes.append(f"{file.path}: {told}, {facts.cut_points:,} time points left out")
    return notes


def _label(series: Series, file: SeriesFile) -> str:
    if not series.answer or series.answer == "?":
        raise InputError("the series has no label", where=series.where, fix="add it, or remove the line")
    if file.declared and series.answer not in file.declared:
        raise InputError(
            f"the label {series.answer!r} is not one of the classes that the header names",
            where=series.where,
            allowed=", ".join(file.declared[:20]),
        )
    return series.answer


def _target(series: Series) -> float:
    value = number(series.answer)
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise InputError(f"the target {series.answer!r} is not a finite number", where=series.where)
    return value


def _answers(file: SeriesFile, facts: _Facts, classes: list[str]) -> Rows:
    """Of each series of a file its class number or its target, to share the series out by."""
    values = np.frombuffer(facts.answers)
    if file.answers == "class":
        place = {name: i for i, name in enumerate(classes)}
        return {"label": np.array([place[name] for name in facts.found], np.int64)[values.astype(np.int64)]}
    return {"y": values} if file.answers == "number" else {"row": np.arange(facts.series)}


def _target_scale(splitter: Splitter, answers: Rows, options: SeriesOptions) -> tuple[dict[str, Any], float]:
    """The numbers that targets are shifted and divided by, of the training rows alone; and their mean."""
    train = np.concatenate([rows["y"] for split, rows in splitter.share([answers]) if split == "train"])
    mean, deviation = float(train.mean()), float(train.std())
    if options.target_scale == "none":
        return {"method": "none", "shift": 0.0, "divide": 1.0}, mean
    return {"method": "standard", "shift": mean, "divide": deviation or 1.0}, mean


def _classes(file: SeriesFile, facts: _Facts) -> tuple[list[str], list[str]]:
    """The classes in their order, and what is odd about them."""
    classes = in_order(file.declared or facts.found)
    notes = [
        f"{file.path}: the classes {', '.join(names)} are one number in several writings, and stay apart"
        for names in same_numbers(classes)
    ]
    if absent := [name for name in classes if name not in facts.found] if file.declared else []:
        notes.append(f"{file.path}: no series has the class {', '.join(absent[:20])}, which the header names")
    return classes, notes


def _same_classes(train: SeriesFile, classes: list[str], test: SeriesFile, of_test: _Facts) -> None:
    if train.answers != test.answers:
        told = {"class": "labels", "number": "numbers as targets", "none": "neither labels nor targets"}
        raise InputError(f"{train.path} has {told[train.answers]}, {test.path} has {told[test.answers]}")
    others = set(test.declared or of_test.found)
    strange = in_order(others - set(classes))
    if strange or (train.declared and test.declared and others != set(classes)):
        missing = in_order(set(classes) - others)
        what = f"has also {', '.join(strange[:20])}" if strange else f"lacks {', '.join(missing[:20])}"
        raise InputError(
            f"the classes of {test.path} are not those of {train.path}: it {what}", allowed=", ".join(classes[:20])
        )


def _columns(options: SeriesOptions, length: int, dimensions: int, answers: str) -> dict[str, Column]:
    columns = {
        "recording": {"x": Column("float32", (length, dimensions)), "frames": Column("int64")},
        "image": {"image": Column("float32", (1, length, dimensions))}
        | ({"frames": Column("int64")} if options.pad == "end" else {}),
        "flat": {"x": Column("float32", (length * dimensions,))},
    }[options.layout]
    if answers == "class":
        columns["label"] = Column("int64")
    if answers == "number":
        columns["y"] = Column("float32")
    return columns


def _rows(
    file: SeriesFile, options: SeriesOptions, columns: dict[str, Column], answer: Callable[[str], float], length: int
) -> Iterator[Rows]:
    first = next(iter(columns))
    at_once = max(1, min(CHUNK_ROWS, CHUNK_BYTES // columns[first].row_bytes))
    pending: list[np.ndarray] = []
    frames: list[int] = []
    answers: list[float] = []

    def stacked() -> Rows:
        rows: Rows = {first: np.stack(pending).reshape(-1, *columns[first].shape)}
        if "frames" in columns:
            rows["frames"] = np.array(frames, np.int64)
        if file.answers != "none":
            name = "label" if file.answers == "class" else "y"
            rows[name] = np.array(answers).astype(columns[name].dtype)
        for kept in (pending, frames, answers):
            kept.clear()
        return rows

    for series in file.read():
        row = _row(series, options, length)
        frames.append(min(len(series.values), length))
        pending.append(row)
        if file.answers != "none":
            answers.append(answer(series.answer))
        if len(pending) == at_once:
            yield stacked()
    if pending:
        yield stacked()


def _row(series: Series, options: SeriesOptions, length: int) -> np.ndarray:
    """(length, D) float32."""
    values = series.values[:length]
    values = filled(values, options.missing, series.where)
    if options.normalise == "series":
        deviation = values.std(0)
        values = (values - values.mean(0)) / np.where(deviation > 0, deviation, 1)
    row = np.zeros((length, values.shape[1]), np.float32)
    start = length - len(values) if options.pad == "front" else 0
    with np.errstate(over="ignore"):  # what does not fit float32 becomes inf and is refused here
        row[start : start + len(values)] = values
    if not np.isfinite(row).all():
        step, dimension = (int(i) for i in np.argwhere(~np.isfinite(row))[0])
        raise InputError(
            f"time point {step - start + 1} of dimension {dimension + 1} is {values[step - start, dimension]:g}, which is "
            "not a finite number of 32 bits",
            where=series.where,
        )
    return row


def filled(values: np.ndarray, how: str, where: str) -> np.ndarray:
    """(T, D) without missing values. InputError: a dimension has no value to fill from."""
    gaps = np.isnan(values)
    if not gaps.any():
        return values
    if how == "zero":
        return np.where(gaps, 0, values)
    if empty := np.flatnonzero(gaps.all(0)).tolist():
        raise InputError(
            f"dimension {empty[0] + 1} has no value at all, so there is nothing to fill its gaps from",
            where=where,
            fix="missing=zero, or remove the series",
        )
    if how == "mean":
        return np.where(gaps, np.nanmean(values, axis=0), values)
    times, values = np.arange(len(values)), values.copy()
    for d in np.flatnonzero(gaps.any(0)).tolist():
        there = ~gaps[:, d]
        values[~there, d] = np.interp(times[~there], times[there], values[there, d])  # the ends hold their neighbour
    return values
