"""Recordings (WAV, FLAC, Ogg, Opus, MP3, AIFF) in one folder per class, or with a table of labels; in a folder, zip or tar.

A row is the waveform, or its log-mel features as the source `speech` has them. Which folder is a class or a split is
written in `distdl/data/class_folders.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distdl.data.advice import Advice, Wish
from distdl.data.bad_rows import BadRows
from distdl.data.class_folders import FolderOptions, Found, find, find_sound, headers_of, refuse_all, rows_of
from distdl.data.each_file import Part, Refused, of_each
from distdl.data.folders import fits
from distdl.data.manifest import Column
from distdl.data.raw import Prepared
from distdl.data.sounds import (
    ENDINGS,
    FEATURES,
    Hearing,
    log_mel,
    need_soundfile,
    padded,
    read_sound,
    read_sound_header,
    sound_record,
    standardised,
)
from distdl.errors import InputError, Problem

CHUNK_RECORDINGS, CHUNK_BYTES = 256, 16 << 20
LONGEST_SAMPLES = 1 << 27
LONGEST_BY_MEDIAN = 4
"""Recordings are padded to the longest one unasked only where it is no longer than this many times the median."""


@dataclass(frozen=True)
class Options(FolderOptions):
    """Options of the source `sound`."""

    path: str
    """Folder, zip or tar with one folder of recordings per class."""
    rate_hz: int = 0
    """Samples a second that all recordings are resampled to; 0: they all have the same rate."""
    seconds: float = 0.0
    """Length of a row: longer recordings are cut at their end, shorter ones padded with zeros. 0: that of the longest."""
    features: str = "log_mel"
    """`log_mel`: frames of 25 ms every 10 ms through mel filters, each of mean 0 and variance 1 over the training part.
    `waveform`: the samples, from -1 to 1."""
    mels: int = 40
    """Filters of `log_mel`."""
    channel: str = "mean"
    """Of several channels: their `mean`, or the number of one, from 0."""
    as_image: bool = False
    """`log_mel` as the column `image` (1, frames, mels), for families that take pictures, instead of `x`."""


@dataclass
class _Facts:
    """What the headers of all recordings say."""

    rates: Counter[int] = field(default_factory=Counter)
    first_of_rate: dict[int, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    channels: Counter[int] = field(default_factory=Counter)
    subtypes: Counter[str] = field(default_factory=Counter)


def prepare(options: Options) -> Prepared:
    """`x` float32 (frames, mels) or `image` (1, frames, mels), of which `frames` count; or `x` (samples,), of which
    `samples` count; and `label` int64."""
    need_soundfile("sound")
    _check(options)
    bad = BadRows(options)
    found = find_sound(options.path, options, ENDINGS, "recordings", bad, partial(_looked_at, options=options))
    facts = _read_headers(found)
    hearing = _hearing(facts, options)
    mean, std = _scale(found, hearing) if options.features == "log_mel" else (None, None)
    whole = (hearing.frames, hearing.mels) if options.features == "log_mel" else (hearing.samples,)
    name = "image" if options.as_image else "x"
    shape = (1, *whole) if options.as_image else whole
    columns = {name: Column("float32", shape)}
    columns["frames" if options.features == "log_mel" else "samples"] = Column("int64")
    record = sound_record(hearing, shape, mean, std)
    chunk = max(1, min(CHUNK_RECORDINGS, CHUNK_BYTES // columns[name].row_bytes))
    chunks = rows_of(
        found,
        chunk,
        partial(_recordings, hearing=hearing, columns=columns, mean=mean, std=std),
    )
    info = {**found.info(_notes(facts, hearing, options)), "sounds": {"stored_as": dict(facts.subtypes)}}
    preparation = {name: record, "label": found.label_record()}
    return Prepared({**columns, "label": Column("int64")}, chunks, info, preparation, bad=bad, rows=len(facts.seconds))


def _looked_at(part: Part, i: int, options: Options) -> Iterator[tuple[int | None, str]]:
    """Decodes a file as it will be read, and tells the rate that all must have, once. InputError: it cannot be used."""
    name = part.called(i)
    with part.open(i) as file:
        header = read_sound_header(file, name)
    rate = options.rate_hz or header.rate_hz
    samples = round(options.seconds * rate) or math.ceil(header.samples * rate / header.rate_hz)
    with part.open(i) as file:
        read_sound(file, name, Hearing(rate, min(samples, LONGEST_SAMPLES), options.channel))
    yield (None, "") if options.rate_hz else (header.rate_hz, f"{header.rate_hz:,} samples a second")


def _check(options: Options) -> None:
    if options.features not in FEATURES:
        raise InputError(f"features is '{options.features}'", allowed=", ".join(FEATURES))
    if options.channel != "mean" and not options.channel.isdecimal():
        raise InputError(f"channel is '{options.channel}'", allowed="mean, or a number from 0")
    if options.mels < 1 or options.seconds < 0 or options.rate_hz < 0:
        what = f"mels={options.mels} seconds={options.seconds:g} rate_hz={options.rate_hz}"
        raise InputError(what, allowed="mels at least 1, the others at least 0")
    if options.as_image and options.features != "log_mel":
        raise InputError("as_image goes with features=log_mel alone", fix="leave one of them out")


def _read_headers(found: Found) -> _Facts:
    facts = _Facts()
    bad: list[Problem] = []
    for _, _, name, header in headers_of(found, read_sound_header, bad):
        facts.rates[header.rate_hz] += 1
        facts.first_of_rate.setdefault(header.rate_hz, name)
        facts.seconds.append(header.samples / header.rate_hz)
        facts.channels[header.channels] += 1
        facts.subtypes[header.subtype] += 1
    refuse_all(bad)
    return facts


def _hearing(facts: _Facts, options: Options) -> Hearing:
    """The rate and length of all rows. InputError: the recordings have several, and nothing says which."""
    if len(facts.rates) > 1 and not options.rate_hz:
        told = ", ".join(f"{n:,} of {rate:,} Hz" for rate, n in facts.rates.most_common(5))
        examples = " and ".join(facts.first_of_rate[rate] for rate, _ in facts.rates.most_common(2))
        what = f"the recordings have {len(facts.rates)} rates: {told}, such as {examples}"
        raise InputError(what, fix=f"resample them to one: rate_hz={facts.rates.most_common(1)[0][0]}")
    rate = options.rate_hz or next(iter(facts.rates))
    if rate < 100 and options.features == "log_mel":
        raise InputError(f"the rate is {rate} Hz", allowed="at least 100 for log_mel, whose frames come every 10 ms")
    longest, middle = max(facts.seconds), float(np.median(facts.seconds))
    if not options.seconds and longest > LONGEST_BY_MEDIAN * middle:
        what = f"the longest recording has {longest:.3g} s, half of them at most {middle:.3g} s"
        raise InputError(what, fix=f"say how long a row is: seconds={_most_seconds(facts):g} cuts one in 20")
    samples = round((options.seconds or longest) * rate)
    if samples < 1:
        raise InputError(f"seconds is {options.seconds:g}, less than a sample at {rate} Hz", allowed="more")
    if samples > LONGEST_SAMPLES:  # a damaged header says anything
        raise InputError(
            f"a row would have {samples:,} samples", allowed=f"{LONGEST_SAMPLES:,}", fix="seconds= cuts them"
        )
    return Hearing(rate, samples, options.channel, options.features, options.mels)


def _scale(found: Found, hearing: Hearing) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each filter over the training part, one recording at a time (Chan et al. 1979)."""
    count, mean, squares = 0, np.zeros(hearing.mels), np.zeros(hearing.mels)
    bad: list[Problem] = []
    for _, _, features in of_each(found.parts, partial(_log_mels, hearing=hearing), "train"):
        if isinstance(features, Refused):
            bad += features.problems
        elif features is not None:  # (T, mels)
            apart, total = features.mean(0) - mean, count + len(features)
            squares += ((features - features.mean(0)) ** 2).sum(0) + apart**2 * count * len(features) / total
            mean += apart * len(features) / total
            count = total
    refuse_all(bad)
    return mean, np.maximum(np.sqrt(squares / count), 1e-3)


def _log_mels(part: Part, i: int, hearing: Hearing) -> Iterator[np.ndarray]:
    yield _log_mel(part, i, hearing)


def _log_mel(part: Part, i: int, hearing: Hearing) -> np.ndarray:
    with part.open(i) as file:
        return log_mel(read_sound(file, part.called(i), hearing), hearing.rate_hz, hearing.mels)


def _recordings(
    part: Part, i: int, hearing: Hearing, columns: dict[str, Column], mean: np.ndarray | None, std: np.ndarray | None
) -> Iterator[dict[str, Any]]:
    """The one row of a file."""
    (name, column), *counted = columns.items()
    if mean is not None and std is not None:
        features = _log_mel(part, i, hearing)
        row, length = standardised(features, mean, std, hearing.frames), len(features)
    else:
        with part.open(i) as file:
            sound = read_sound(file, part.called(i), hearing)
        row, length = padded(sound, hearing.samples), len(sound)
    yield {name: row.reshape(column.shape), **{other: np.int64(length) for other, _ in counted}}


def _notes(facts: _Facts, hearing: Hearing, options: Options) -> list[str]:
    """Sentences about what became of the recordings."""
    length = hearing.samples / hearing.rate_hz
    one_sample = 1 / hearing.rate_hz
    cut = sum(seconds > length + one_sample for seconds in facts.seconds)
    short = sum(seconds < length - one_sample for seconds in facts.seconds)
    several = sum(n for channels, n in facts.channels.items() if channels > 1)
    resampled = sum(n for rate, n in facts.rates.items() if rate != hearing.rate_hz)
    how = "the mean of their channels is" if options.channel == "mean" else f"their channel {options.channel} is"
    told = {
        f"{cut:,} of {len(facts.seconds):,} recordings are longer than {length:.3g} s and were cut": cut,
        f"{short:,} of {len(facts.seconds):,} recordings are shorter than {length:.3g} s and were padded": short,
        f"{several:,} recordings have several channels: {how} taken": several,
        f"{resampled:,} recordings were resampled to {hearing.rate_hz:,} Hz": resampled,
    }
    return [sentence for sentence, count in told.items() if count]


def recognise(path: Path) -> float:
    """A folder or archive of folders with recordings."""
    return fits(path, ENDINGS)


def advise(path: str, wish: Wish) -> Advice:
    """One rate and one length for all, as pictures of frames and filters, for `distdl init`."""
    if wish.options():
        raise InputError(f"{path} is a folder of recordings: the folder of a recording is its class, no column is")
    need_soundfile("sound")
    facts = _read_headers(find(path, Options(path=path), ENDINGS, "recordings"))
    options: dict[str, object] = {"path": path, "as_image": True}
    because = {"as_image": "frames and filters, as a convolutional network reads them"}
    if len(facts.rates) > 1:
        options["rate_hz"] = facts.rates.most_common(1)[0][0]
        because["rate_hz"] = f"the recordings have {len(facts.rates)} rates, and most have this one"
    if max(facts.seconds) > LONGEST_BY_MEDIAN * float(np.median(facts.seconds)):
        options["seconds"] = _most_seconds(facts)
        because["seconds"] = "a few recordings are much longer, and are cut"
    return Advice(options, because)


def _most_seconds(facts: _Facts) -> float:
    """A length that one recording in twenty is longer than."""
    return float(np.ceil(1000 * np.quantile(facts.seconds, 0.95)) / 1000)
