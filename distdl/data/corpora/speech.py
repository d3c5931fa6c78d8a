"""Spoken words as log-mel features: WAV files named WORD_SPEAKER_TAKE.wav, in a folder or a zip (FSDD is such a set).

A frame is 25 ms of sound under a Hamming window, every 10 ms; its features are the logarithms of the energies that
triangular filters, evenly spaced on the mel scale 1127 ln(1 + f / 700), find in its spectrum. Each filter's outputs are
brought to mean 0 and variance 1 over the training part.

With `longest` above 1 recordings of one speaker are joined to strings of words; each stands in one string of a pass.
Without a path: the ten digits as telephone tones (DTMF), with a little noise, which needs no download.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows
from distdl.data.sounds import log_mel, read_plain_wav, samples_of
from distdl.errors import InputError

LARGEST_BYTES = 8 * 2**30
"""Recordings of a data set, unpacked."""
NAME = re.compile(r"([^_/\\]+)_([^_/\\]+)_(\d+)\.wav$")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = (" ", *"abcdefghijklmnopqrstuvwxyz", "'")
ROWS, COLUMNS = (697, 770, 852, 941), (1209, 1336, 1477)  # Hz of a telephone's keys
CHUNK_ROWS = 256


@dataclass(frozen=True)
class Options:
    """Options of the source `speech`."""

    path: str = ""
    """Folder or .zip with the WAV files; empty: telephone tones."""
    mels: int = 40
    """Filters."""
    frames: int = 100
    """Frames of a row; shorter recordings are padded with zeros, longer ones are cut, or leave words out of a string."""
    test_takes: int = 5
    """Takes numbered below this are the split `test`."""
    test_speaker: str = ""
    """Hold out this speaker instead of takes."""
    validation_takes: int = 0
    """So many takes behind those of the test split (with test_speaker: the first ones of the others) are the split
    `validation`."""
    longest: int = 1
    """Words of the longest strings; lengths from 1 to this are equally frequent. 1: words alone."""
    spell: bool = False
    """The label is the words' letters with blanks between them, digits by their English names, instead of the words."""
    passes: int = 1
    """How often each training recording is used where `longest` is above 1; each pass makes other strings."""
    takes: int = 20
    """Telephone tones of each digit and each of three speakers, where no path is given."""
    seed: int = 0
    """Seed of the strings and of the telephone tones."""


@dataclass(frozen=True)
class Recording:
    word: str
    speaker: str
    take: int
    sound: np.ndarray
    """(samples,) in -1..1."""


def prepare(options: Options) -> Prepared:
    """`x` float32 (frames, mels), of which `frames` count; `label` int64, where longest is 1 and nothing is spelt, else
    int64 (L,) with its `length`."""
    for name in ("mels", "frames", "longest", "passes", "takes"):
        if getattr(options, name) < 1:
            raise InputError(f"{name} is {getattr(options, name)}", allowed="at least 1")
    recordings, rate = _read(options.path) if options.path else _tones(options)
    splits: dict[str, list[Recording]] = {"train": [], "test": []}
    splits |= {"validation": []} if options.validation_takes else {}
    first = 0 if options.test_speaker else options.test_takes
    for r in recordings:
        held_out = r.speaker == options.test_speaker if options.test_speaker else r.take < options.test_takes
        validated = r.take < first + options.validation_takes
        splits["test" if held_out else "validation" if validated else "train"].append(r)
    wanted = {
        "train",
        *(("test",) if options.test_speaker else ()),
        *(("validation",) if options.validation_takes else ()),
    }
    if not all(splits[split] for split in wanted):
        speakers = sorted({r.speaker for r in recordings})
        raise InputError("no recording is left for a split", fix=f"other test_takes; the speakers are {speakers}")
    spelt = options.spell or options.longest > 1
    words = sorted({r.word for r in recordings})
    classes = LETTERS if options.spell else words
    strings = {split: _strings(some, rate, options, i) for i, (split, some) in enumerate(splits.items())}
    labels = {split: [_label(s, words, options) for s in some] for split, some in strings.items()}
    longest = max(len(label) for some in labels.values() for label in some)
    columns = {"x": Column("float32", (options.frames, options.mels)), "frames": Column("int64")}
    columns |= (
        {"label": Column("int64", (longest,)), "length": Column("int64")} if spelt else {"label": Column("int64")}
    )
    features = {split: [_log_mels(s, rate, options) for s in some] for split, some in strings.items()}
    train = np.concatenate(features["train"])  # (N, mels)
    mean, std = train.mean(0), np.maximum(train.std(0), 1e-3)
    chunks = (
        (split, _rows(some[i : i + CHUNK_ROWS], labels[split][i : i + CHUNK_ROWS], mean, std, columns))
        for split, some in features.items()
        for i in range(0, len(some), CHUNK_ROWS)
    )
    return Prepared(columns, chunks, {"classes": list(classes), "mean": mean.tolist(), "std": std.tolist()})


def _rows(
    features: list[np.ndarray],
    labels: list[list[int]],
    mean: np.ndarray,
    std: np.ndarray,
    columns: dict[str, Column],
) -> Rows:
    """Standardised features and labels, padded with zeros."""
    x = np.zeros((len(features), *columns["x"].shape), np.float32)
    label = np.zeros((len(labels), *(columns["label"].shape or (1,))), np.int64)
    for i, (frames, told) in enumerate(zip(features, labels)):
        x[i, : len(frames)] = (frames - mean) / std
        label[i, : len(told)] = told
    rows: Rows = {"x": x, "frames": np.array([len(frames) for frames in features])}
    if "length" in columns:
        return {**rows, "label": label, "length": np.array([len(told) for told in labels])}
    return {**rows, "label": label[:, 0]}


def _read(path: str) -> tuple[list[Recording], int]:
    """All recordings, sorted by name, and the rate in samples a second that they share."""
    files: dict[str, bytes] = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            files = _unpacked(archive, path)
    elif Path(path).is_dir():
        found = sorted(file for file in Path(path).rglob("*.wav") if NAME.search(str(file)))
        _refuse_size(path, [file.stat().st_size for file in found])
        files = {str(file): file.read_bytes() for file in found}
    else:
        raise InputError(f"there is no folder or zip {path}", fix="check the path")
    if not files:
        raise InputError(f"{path} holds no file named WORD_SPEAKER_TAKE.wav, such as seven_ann_0.wav")
    recordings, rates = [], {}
    for name in sorted(files):
        word, speaker, take = NAME.search(name).groups()  # type: ignore[union-attr]
        sound, rates[name] = read_plain_wav(files[name], name)
        recordings.append(Recording(word, speaker, int(take), sound))
    first = next(iter(rates))
    if other := [name for name in rates if rates[name] != rates[first]]:
        what = f"{first} has {rates[first]} samples a second, {other[0]} {rates[other[0]]}"
        raise InputError(what, fix="resample them to one rate")
    return recordings, rates[first]


def _unpacked(archive: zipfile.ZipFile, path: str) -> dict[str, bytes]:
    members = [info for info in archive.infolist() if NAME.search(info.filename)]
    _refuse_size(path, [info.file_size for info in members])
    try:
        return {info.filename: archive.read(info) for info in members}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{path} cannot be unpacked: {error}") from error


def _refuse_size(path: str, sizes: list[int]) -> None:
    """What is read is held in memory, and a zip may say little and hold much."""
    if sum(sizes) > LARGEST_BYTES:
        what = f"the recordings of {path} have {sum(sizes) / 2**30:.1f} GiB"
        raise InputError(what, allowed=f"{LARGEST_BYTES / 2**30:.0f} GiB", fix="prepare them in parts")


def _tones(options: Options, rate: int = 8000) -> tuple[list[Recording], int]:
    """Each digit as the two tones of its key, 0.1 to 0.2 s long, as loud and as noisy as the speaker is."""
    random = np.random.default_rng(options.seed)
    recordings = []
    for digit, take, (speaker, loud) in (
        (d, t, s) for d in range(10) for t in range(options.takes) for s in (("a", 0.1), ("b", 0.2), ("c", 0.4))
    ):
        row, column = divmod(digit - 1, 3) if digit else (3, 1)
        time = np.arange(random.integers(rate // 10, rate // 5)) / rate
        sound = sum(np.sin(2 * np.pi * (f * time + random.random())) for f in (ROWS[row], COLUMNS[column]))
        noisy = loud * sound + 0.05 * random.standard_normal(len(time))
        recordings.append(Recording(str(digit), speaker, take, noisy))
    return recordings, rate


def _strings(recordings: list[Recording], rate: int, options: Options, place: int) -> list[list[Recording]]:
    """Shuffled recordings of one speaker after the other, cut into strings that fit the frames."""
    if options.longest == 1:
        return [[r] for r in recordings]
    random = np.random.default_rng([options.seed, place])
    room = samples_of(options.frames, rate)
    strings: list[list[Recording]] = []
    wanted = 0
    for _ in range(1 if place else options.passes):
        shuffled = [recordings[i] for i in random.permutation(len(recordings))]
        for r in sorted(shuffled, key=lambda r: r.speaker):  # the sort is stable
            last = strings[-1] if strings else []
            fits = sum(len(s.sound) for s in [*last, r]) <= room
            if last and last[0].speaker == r.speaker and len(last) < wanted and fits:
                last.append(r)
            else:
                strings.append([r])
                wanted = int(random.integers(1, options.longest + 1))
    return strings


def _label(string: list[Recording], words: list[str], options: Options) -> list[int]:
    if not options.spell:
        return [words.index(r.word) for r in string]
    names = [DIGITS[int(r.word)] if r.word in tuple("0123456789") else r.word.lower() for r in string]
    if foreign := set("".join(names)) - set(LETTERS):
        raise InputError(f"the words have the letters {sorted(foreign)}", allowed="a to z and '", fix="spell=false")
    return [LETTERS.index(letter) for letter in " ".join(names)]


def _log_mels(string: list[Recording], rate: int, options: Options) -> np.ndarray:
    sound = np.concatenate([r.sound for r in string])
    return log_mel(sound[: samples_of(options.frames, rate)], rate, options.mels)
