"""Labelled series of the UCR and UEA archives: `.ts`, `.tsv` (label first), and `.arff` (`series/arff_series.py`).

    @problemName Gestures                    1 <tab> 0.5 <tab> 0.25 <tab> NaN
    @timeStamps false                        the class, then the values; NaN at the end is padding
    @classLabel true left right
    @data
    0.5,0.25,?:1.5,1.0,2.0:left              dimensions are parted by ":", a missing value is "?", the class comes last

With time stamps a value is a pair, (time,value). `Name_TRAIN.ts` takes the `Name_TEST.ts` beside it as the split `test`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np

from distdl.data.advice import SURE, Advice, Wish, first_lines
from distdl.data.bad_rows import BadRows
from distdl.data.raw import Prepared, open_raw
from distdl.data.series.arff_series import of_arff
from distdl.data.series.labelled import Series, SeriesFile, SeriesOptions, prepare_series
from distdl.data.series.lines import COMMENT, flag, lines_of, number, numbers, numbers_in, whole
from distdl.data.series.pairs import find_pair
from distdl.data.unpack import without_ending
from distdl.errors import InputError, did_you_mean, nearest

PAIR = re.compile(r"\(([^()]*),([^(),]*)\)")
FLAGS = ("timestamps", "missing", "univariate", "equallength", "targetlabel")
COUNTS = ("dimension", "dimensions", "serieslength")
KEYS = (*FLAGS, *COUNTS, "problemname", "classlabel")
UNEVEN = 1e-6
"""Relative difference of two steps of time from which they are not the same one."""


@dataclass(frozen=True)
class Options(SeriesOptions):
    """Options of the source `ts`."""

    path: str
    """The file, or a folder with one pair of them; `Name_TEST.ts` beside `Name_TRAIN.ts` is the split `test`."""
    times: Literal["drop", "keep", "refuse"] = field(default="refuse", kw_only=True)
    """Time stamps that are not evenly spaced: left out, kept as a first dimension (seconds, or the unit of the file, since
    the series' first one), or refused."""


def prepare(options: Options) -> Prepared:
    """`x` float32 (T, D), of which `frames` count (other shapes by `layout`); `label` int64 or `y` float32."""
    train, test, notes = find_pair(options.path, options.test_path, (".ts", ".tsv", ".arff"))
    bad = BadRows(options)
    of_test = open_series(test, options, bad) if test else None
    return prepare_series(options, open_series(train, options, bad), of_test, notes, bad)


def open_series(path: str, options: Options, bad: BadRows) -> SeriesFile:
    """A file of either kind, as its ending says; its header is read."""
    open_raw(path).close()
    if without_ending(path).endswith(".tsv"):
        return SeriesFile(path, "class", (), lambda: _of_tsv(path, bad))
    if without_ending(path).endswith(".arff"):
        return of_arff(path)
    header = _Header(path)
    answers: Literal["class", "number", "none"] = "class" if header.classes else "number" if header.target else "none"
    return SeriesFile(path, answers, header.classes, lambda: _of_ts(header, options, bad), header.notes)


class _Header:
    """What stands before @data."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.flags: dict[str, bool] = {}
        self.counts: dict[str, int] = {}
        self.classes: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()
        self.last = 0
        """The line of @data."""
        for n, line in lines_of(path):
            if line.startswith(COMMENT):
                continue
            key, *rest = line.split()
            if not key.startswith("@"):
                raise InputError("a series stands before @data", where=f"{path}:{n}", fix="is this a .ts file?")
            if key.lower() == "@data":
                self.last = n
                break
            self._take(key[1:], rest, f"{path}:{n}")
        if not self.last:
            raise InputError(f"{path} has no line @data", fix="is this a .ts file, and complete?")
        self.target = self.flags.get("targetlabel", False)
        if self.target and self.classes:
            raise InputError(f"{path} has both @classLabel true and @targetLabel true", fix="make one of them false")

    def _take(self, key: str, rest: list[str], where: str) -> None:
        low = key.lower()
        if low not in KEYS:
            if nearest(low, KEYS):
                raise InputError(f"there is no header line @{key}", where=where, fix=did_you_mean(low, KEYS))
            self.notes += (f"{where}: the header line @{key} is not known, and was left out",)
        if low in FLAGS or low == "classlabel":
            self.flags[low] = flag(f"@{key}", rest if low in FLAGS else rest[:1], where)
        if low == "classlabel" and self.flags[low]:
            self.classes = tuple(rest[1:])
            if not self.classes or len(set(self.classes)) < len(self.classes):
                what = "one class twice" if self.classes else "no classes"
                raise InputError(f"@{key} true names {what}", where=where, allowed="@classLabel true left right")
        if low in COUNTS:
            self.counts["dimension" if low == "dimensions" else low] = whole(f"@{key}", rest, where)


def _of_ts(header: _Header, options: Options, bad: BadRows) -> Iterator[Series]:
    first = 0
    for n, line in lines_of(header.path):
        where = f"{header.path}:{n}"
        if n <= header.last or line.startswith(COMMENT) or where in bad:
            continue
        with bad.row(where, line, "damaged line"):
            series = _series(header, options, where, line)
            _as_promised(header, series.values, first, where)
            first = first or len(series.values)
            yield series


def _series(header: _Header, options: Options, where: str, line: str) -> Series:
    """The series of a line. InputError: it is none."""
    stamped = header.flags.get("timestamps", False)
    body, answer = line, ""
    if header.classes or header.target:
        body, colon, answer = line.rpartition(":")
        if not colon or (stamped and not body.rstrip().endswith(")")):
            raise InputError("the series has no label behind its last ':'", where=where)
    values = _pairs(body, where, options.times) if stamped else _dimensions(body, where)
    return Series(where, values, answer.strip())


def _as_promised(header: _Header, values: np.ndarray, first: int, where: str) -> None:
    """InputError where a series is not what the header says of all: the line was cut, or the header is wrong."""
    steps, dimensions = values.shape
    wanted = header.counts.get("dimension") or (1 if header.flags.get("univariate") else None)
    if header.flags.get("timestamps"):
        wanted = None  # times may have become one of them
    if wanted and dimensions != wanted:
        raise InputError(f"the series has {dimensions} dimensions, the header says {wanted}", where=where)
    equal = (header.counts.get("serieslength") or first) if header.flags.get("equallength") else None
    if equal and steps != equal:
        raise InputError(
            f"the series has {steps:,} time points instead of {equal:,}, and the header says @equalLength true",
            where=where,
            fix="complete the line, or correct the header",
        )


def _dimensions(body: str, where: str) -> np.ndarray:
    """`1,2:3,4` -> (T, D)."""
    return _stacked([numbers_in(part, where) for part in body.split(":")], where)


def _stacked(columns: list[np.ndarray], where: str) -> np.ndarray:
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        odd = next(i for i, n in enumerate(lengths) if n != lengths[0])
        raise InputError(
            f"dimension {odd + 1} has {lengths[odd]:,} time points, dimension 1 {lengths[0]:,}", where=where
        )
    return np.stack(columns, axis=1)


def _pairs(body: str, where: str, how: str) -> np.ndarray:
    """`(0,1),(1,2):(0,3),(1,4)` -> (T, D), or (T, 1 + D) with the times."""
    columns: list[np.ndarray] = []
    times: list[str] = []
    for d, part in enumerate(re.split(r"\)\s*:", body)):
        text = part if part.rstrip().endswith(")") else part + ")"
        pairs = PAIR.findall(text)
        if not pairs or PAIR.sub("", text).strip(" ,\t"):
            raise InputError(
                f"dimension {d + 1} is not a list of pairs: {text!r:.60}",
                where=where,
                allowed="(time,value),(time,value)",
            )
        columns.append(numbers([value for _, value in pairs], where))
        here = [time.strip() for time, _ in pairs]
        if d and here != times:
            raise InputError(
                f"dimension {d + 1} has other time stamps than dimension 1",
                where=where,
                fix="bring all dimensions of a series to the same times",
            )
        times = here
    values = _stacked(columns, where)
    seconds = _seconds(times, where)
    if how == "keep":
        return np.concatenate([seconds[:, None], values], axis=1)
    steps = np.diff(seconds)
    if how == "refuse" and len(steps) and np.ptp(steps) > UNEVEN * steps.max():
        raise InputError(
            f"the time stamps are not evenly spaced: steps of {steps.min():g} to {steps.max():g}",
            where=where,
            fix="times=keep makes them a first dimension, times=drop leaves them out",
        )
    return values


def _seconds(times: list[str], where: str) -> np.ndarray:
    """(T,) since the first one; numbers, or dates and times."""
    found = np.array([number(time) for time in times])
    if not np.isfinite(found).all():
        try:
            moments = [datetime.fromisoformat(time) for time in times]
            found = np.array([(moment - moments[0]).total_seconds() for moment in moments])
        except (ValueError, TypeError) as error:
            raise InputError(f"a time stamp is neither a number nor a date: {error}", where=where) from error
    if (np.diff(found) <= 0).any():
        at = int(np.flatnonzero(np.diff(found) <= 0)[0])
        raise InputError(f"time {times[at + 1]!r} does not come after {times[at]!r}", where=where, fix="sort the pairs")
    return found - found[0]


def _of_tsv(path: str, bad: BadRows) -> Iterator[Series]:
    """UCR: the class, then the values of one dimension. NaN at the end is padding; files hold lengths up to the longest."""
    width = 0
    for n, line in lines_of(path):
        where = f"{path}:{n}"
        if where in bad:
            continue
        with bad.row(where, line, "damaged line"):
            series = _series_of_tsv(line, where, width)
            width = width or line.count("\t")
            yield series


def _series_of_tsv(line: str, where: str, width: int) -> Series:
    """The series of a line. InputError: it is none, or has not as many values (`width`) as the first."""
    answer, *texts = line.split("\t")
    if not texts:
        raise InputError("the line has no values behind its label", where=where, allowed="label <tab> value <tab> ...")
    if width and len(texts) != width:
        raise InputError(
            f"the series has {len(texts):,} values, the first one {width:,}",
            where=where,
            fix="complete the line; unequal lengths are padded with NaN at the end",
        )
    values = numbers(texts, where) if "," in line else numbers_in(",".join(texts), where)
    there = np.flatnonzero(~np.isnan(values))
    if not len(there):
        raise InputError("the series has no values", where=where, fix="remove the line")
    return Series(where, values[: there[-1] + 1, None], answer.strip())


ENDINGS = (".ts", ".tsv", ".arff")
SURER = (1 + SURE) / 2
"""Than that a file with commas or tabs is a table."""
USUAL = (0.1, 10.0)
"""Deviations of values that a network takes as they are."""


def recognise(path: Path) -> float:
    """The header of a .ts file; an .arff file with a relational attribute; `Name_TRAIN.ts`, `.tsv`, or a folder with it."""
    if path.is_dir():
        trains = [p for p in path.iterdir() if without_ending(p.name).endswith(tuple(f"_TRAIN{e}" for e in ENDINGS))]
        return max((recognise(train) for train in trains), default=0.0)
    name = without_ending(path.name)
    if name.endswith(("_TRAIN.tsv", "_TEST.tsv")):
        return SURER
    heads = {words[0].lower() for line in first_lines(path) if line.startswith("@") and (words := line.split()[:1])}
    if name.endswith(".arff"):
        return SURER if any("relational" in line.lower() for line in first_lines(path)) else 0.0
    return SURER if heads & {"@problemname", "@classlabel", "@targetlabel", "@univariate"} else 0.0


def advise(path: str, wish: Wish) -> Advice:
    """Rows for a perceptron where all series are of one length, for a recurrent network where not, for `distdl init`."""
    if wish.options():
        raise InputError(f"{path} holds series: the class behind each of them is predicted, no column is")
    options = Options(path)
    train, test, _ = find_pair(path, "", ENDINGS)
    lengths, deviations, missing, answers = set[int](), list[float](), False, ""
    for file in filter(None, (train, test)):
        opened = open_series(file, options, BadRows(options))
        answers = opened.answers
        for series in opened.read():
            lengths.add(len(series.values))
            missing = missing or bool(np.isnan(series.values).any())
            deviations.append(float(np.nanstd(series.values)))
    if not lengths:
        raise InputError(f"{path} holds no series")
    recurrent = len(lengths) > 1 and answers == "class"
    chosen: dict[str, object] = {"path": path, "layout": "image" if recurrent else "flat"}
    unequal = f"series have {min(lengths):,} to {max(lengths):,} time points"
    because = {"layout": f"{unequal}, and frames says how many of each" if recurrent else "all time points at once"}
    if len(lengths) > 1 and not recurrent:
        because["layout"] = f"{unequal}: shorter ones end in zeros"
    if missing:
        chosen["missing"], because["missing"] = "interpolate", "values are missing"
    middle = float(np.median(deviations))
    if not USUAL[0] <= middle <= USUAL[1]:
        chosen["normalise"], because["normalise"] = "series", f"values of a series deviate by {middle:.3g}"
    return Advice(chosen, because)
