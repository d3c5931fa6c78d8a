"""One recording, decoded: its samples from -1 to 1, or the logarithms of its energies on the mel scale.

`soundfile` (libsndfile) decodes; a plain WAV of 16 bits and one channel needs nothing but Python's own library. Neither
says when a WAV, AIFF or Ogg was cut off, so its length is compared with what its header promises.
"""

from __future__ import annotations

import importlib.util
import io
import math
import os
import struct
import wave
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from distdl.errors import InputError

ENDINGS = frozenset((".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff"))
FEATURES = ("log_mel", "waveform")
KIND, VERSION = "sound", 1
EXTENSIBLE, PCM = 0xFFFE, 1  # WAVE_FORMAT_EXTENSIBLE is a longer header before the same samples
UNKNOWN_LENGTHS = (0, 0xFFFFFFFF)  # written by programs that could not go back to the header
OGG_PAGE_BYTES = 65307
"""The longest page of an Ogg, with its header."""
BLOCK = 1 << 16
MOST_CHUNKS = 1000
MOST_CHANNELS, MOST_HZ = 256, 1_000_000  # a damaged header says anything


@dataclass(frozen=True)
class Hearing:
    """What all recordings of a data set are brought to."""

    rate_hz: int
    samples: int
    """Of a row; the rest of a shorter recording is silent, a longer one is cut."""
    channel: str = "mean"
    """Of several channels: their mean, or the number of one, from 0."""
    features: str = "log_mel"
    mels: int = 40

    @property
    def frames(self) -> int:
        """Of 25 ms, one every 10 ms, in a row."""
        return 1 + max(0, self.samples - self.rate_hz // 40) // (self.rate_hz // 100)


class SoundHeader(NamedTuple):
    """What a recording says of itself before it is decoded."""

    rate_hz: int
    samples: int
    channels: int
    subtype: str
    """soundfile's name of how samples are stored, such as PCM_24."""


def need_soundfile(source: str) -> None:
    """InputError: soundfile is not installed."""
    if importlib.util.find_spec("soundfile") is None:
        what = f"the source {source} needs soundfile, which is not installed"
        raise InputError(what, fix="pip install 'distdl[sound]'")


def sound_record(
    hearing: Hearing, shape: tuple[int, ...], mean: np.ndarray | None, std: np.ndarray | None
) -> dict[str, Any]:
    """What the manifest says of a column of recordings, for `prepare_sound`. `shape`: of a row. `mean`, `std`: of each
    filter over the training part."""
    about = {"rate_hz": hearing.rate_hz, "samples": hearing.samples, "channel": hearing.channel}
    about |= {"features": hearing.features, "mels": hearing.mels, "shape": list(shape)}
    fitted = {"mean": mean.tolist(), "std": std.tolist()} if mean is not None and std is not None else {}
    return {"kind": KIND, "version": VERSION, **about, **fitted}


def prepare_sound(record: Mapping[str, Any], file: str | Path | BinaryIO) -> tuple[np.ndarray, int]:
    """A new recording as those of a data set were prepared: its row, and how much of it is no padding.

    `record`: the manifest's `preparation` of the column. A recording of another rate is resampled. InputError: it cannot be
    read.
    """
    need_soundfile("sound")
    if (record.get("kind"), record.get("version")) != (KIND, VERSION):
        raise InputError(
            f"a preparation of the kind {record.get('kind')}, version {record.get('version')}",
            allowed=f"{KIND}, version {VERSION}",
        )
    names = ("rate_hz", "samples", "channel", "features", "mels")
    hearing = Hearing(*(record[name] for name in names))
    sound = read_sound(file, str(file) if isinstance(file, str | Path) else "the recording", hearing)
    if hearing.features == "waveform":
        row, length = padded(sound, hearing.samples), len(sound)
    else:
        features = log_mel(sound, hearing.rate_hz, hearing.mels)
        row = standardised(features, np.array(record["mean"]), np.array(record["std"]), hearing.frames)
        length = len(features)
    return row.reshape(record["shape"]), length


def standardised(features: np.ndarray, mean: np.ndarray, std: np.ndarray, frames: int) -> np.ndarray:
    """(T, mels) of a training set's mean and standard deviation -> float32 (frames, mels) of 0 and 1, padded with zeros."""
    return padded(((features - mean) / std).astype(np.float32), frames)


def padded(values: np.ndarray, length: int) -> np.ndarray:
    """float32, with zeros behind up to a length."""
    whole = np.zeros((length, *values.shape[1:]), np.float32)
    whole[: len(values)] = values
    return whole


def read_sound_header(file: BinaryIO, name: str) -> SoundHeader:
    """What a recording is. InputError that names it: it is damaged, or shorter than it says."""
    import soundfile

    _check_length(file, name)
    try:
        with soundfile.SoundFile(_Seekable(file)) as sound:
            return _header(sound, name)
    except soundfile.SoundFileError as error:
        raise _unreadable(name, error) from error


def read_sound(file: str | Path | BinaryIO, name: str, hearing: Hearing) -> np.ndarray:
    """At most `hearing.samples` samples from -1 to 1 of one channel and of the right rate, float32 (N,).

    InputError that names it: it is damaged, somewhere, or has no such channel.
    """
    import soundfile

    if isinstance(file, str | Path):
        if not Path(file).is_file():
            raise InputError(f"there is no file {file}", fix="check the path")
        with open(file, "rb") as opened:
            return read_sound(opened, name, hearing)
    _check_length(file, name)
    try:
        with soundfile.SoundFile(_Seekable(file)) as sound:
            header = _header(sound, name)
            share = math.gcd(sound.samplerate, hearing.rate_hz)
            up, down = hearing.rate_hz // share, sound.samplerate // share
            reach = 10 * max(up, down) // up + 2  # samples that the filter of scipy's resample_poly sees to a side
            wanted = -(-hearing.samples * down // up) + (reach if up != down else 0)
            start = sound.read(min(wanted, sound.frames), dtype="float32", always_2d=True)
            count = len(start)
            while block := len(sound.read(max(1, BLOCK // sound.channels), dtype="float32")):
                count += block  # what is cut is decoded, too: damage is damage
    except soundfile.SoundFileError as error:
        raise _unreadable(name, error) from error
    if count < header.samples:
        raise InputError(
            f"{name} is cut off or damaged: {count:,} of {header.samples:,} samples", fix="replace or remove it"
        )
    if not np.isfinite(start).all():
        raise InputError(f"{name} holds NaN or infinite samples", fix="replace or remove it")
    if hearing.channel != "mean" and int(hearing.channel) >= header.channels:
        raise InputError(
            f"{name} has {header.channels} channels, and none of the number {hearing.channel}", fix="channel=mean"
        )
    mean = hearing.channel == "mean" and header.channels > 1
    one = start.mean(1) if mean else start[:, 0 if hearing.channel == "mean" else int(hearing.channel)]
    if up != down:
        from scipy.signal import resample_poly

        one = resample_poly(one, up, down)
    return np.ascontiguousarray(one[: hearing.samples], np.float32)


def read_plain_wav(content: bytes, name: str) -> tuple[np.ndarray, int]:
    """16-bit PCM of one channel -> samples in -1..1, and how many there are in a second. Without soundfile."""
    try:
        with wave.open(io.BytesIO(_plain(content))) as file:
            form, rate, promised = (file.getsampwidth(), file.getnchannels()), file.getframerate(), file.getnframes()
            samples = np.frombuffer(file.readframes(promised), "<i2" if form[0] == 2 else "u1")
    except (wave.Error, EOFError, ValueError, RuntimeError) as error:  # wave seeks where a damaged chunk says
        raise InputError(f"{name} is no WAV file: {error}") from error
    if form != (2, 1):
        what = f"{name} has {8 * form[0]} bits and {form[1]} channels"
        raise InputError(what, fix="convert it to 16 bits and one channel")
    _check_length(io.BytesIO(content), name)
    return samples / 2**15, rate


def samples_of(frames: int, rate: int) -> int:
    """Samples that so many frames cover."""
    return (frames - 1) * (rate // 100) + rate // 40


def log_mel(sound: np.ndarray, rate: int, mels: int) -> np.ndarray:
    """(samples,) -> (frames, mels): logarithms of the filters' energies; at least one frame."""
    width, hop = rate // 40, rate // 100
    sound = np.pad(sound, (0, max(0, width - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(sound, width)[::hop] * np.hamming(width)  # (T, width)
    bins = 2 ** (width - 1).bit_length()
    power = np.abs(np.fft.rfft(frames, bins)) ** 2  # (T, bins // 2 + 1)
    return np.log(power @ filters(rate, bins, mels).T + 1e-8)


def filters(rate: int, bins: int, mels: int) -> np.ndarray:
    """(mels, bins // 2 + 1) triangles whose corners are evenly spaced on the mel scale from 0 to half the rate.

    A side narrower than the distance of two bins is as wide as that, so that no filter is empty."""
    mel = lambda f: 1127 * np.log1p(f / 700)  # noqa: E731
    corners = 700 * np.expm1(np.linspace(0, mel(rate / 2), mels + 2) / 1127)  # (mels + 2,) Hz
    peak, apart = corners[1:-1, None], rate / bins
    low, high = np.minimum(corners[:-2, None], peak - apart), np.maximum(corners[2:, None], peak + apart)
    f = np.arange(bins // 2 + 1) * apart
    return np.maximum(np.minimum((f - low) / (peak - low), (high - f) / (high - peak)), 0)


class _Seekable:
    """A file that stays where it is when a damaged recording sends libsndfile before its beginning."""

    def __init__(self, file: BinaryIO):
        self._file, self.read, self.tell = file, file.read, file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with suppress(ValueError, OSError):
            self._file.seek(offset, whence)
        return self._file.tell()


def _header(sound: Any, name: str) -> SoundHeader:
    """What an opened recording is. InputError: nobody records so."""
    header = SoundHeader(sound.samplerate, sound.frames, sound.channels, sound.subtype)
    if header.samples < 1 or header.channels > MOST_CHANNELS or header.rate_hz > MOST_HZ:
        what = f"{name} holds {header.samples:,} samples of {header.channels:,} channels at {header.rate_hz:,} Hz"
        most = f"sound of at most {MOST_CHANNELS} channels and {MOST_HZ:,} Hz"
        raise InputError(what, allowed=most, fix="replace or remove it")
    return header


def _plain(content: bytes) -> bytes:
    """A WAV with the plain header where it has the extensible one of PCM, which Python's `wave` does not know."""
    at, size = _chunk(io.BytesIO(content), b"fmt ")
    if size >= 40 and len(content) >= at + 40 and struct.unpack_from("<H", content, at)[0] == EXTENSIBLE:
        (kind,) = struct.unpack_from("<H", content, at + 24)  # the first two bytes of the sub-format's GUID
        if kind == PCM:
            return content[:at] + struct.pack("<H", PCM) + content[at + 2 :]
    return content


def _chunk(file: BinaryIO, wanted: bytes) -> tuple[int, int]:
    """Where a chunk of a RIFF file begins, and how long it says it is; (0, 0) where there is none."""
    at = 12
    for _ in range(MOST_CHUNKS):
        file.seek(at)
        header = file.read(8)
        if len(header) < 8:
            break
        name, size = struct.unpack("<4sI", header)
        if name == wanted:
            return at + 8, size
        at += 8 + size + size % 2
    return 0, 0


def _check_length(file: BinaryIO, name: str) -> None:
    """InputError: a WAV, AIFF or Ogg ends before its header or its last page does. The file is at its beginning again."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    missing = 0
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        at, size = _chunk(file, b"data")
        missing = at + size - length if size not in UNKNOWN_LENGTHS else 0
    elif head[:4] == b"FORM" and len(head) == 12:
        missing = struct.unpack_from(">I", head, 4)[0] + 8 - length
    elif head[:4] == b"OggS":
        file.seek(max(0, length - OGG_PAGE_BYTES))
        if not _has_last_page(file.read()):
            raise InputError(f"{name} is cut off: the end of its last page is missing", fix="replace or remove it")
    file.seek(0)
    if missing > 0:
        what = f"{name} is cut off: the last {missing:,} bytes that its header promises are missing"
        raise InputError(what, fix="replace or remove it")


def _has_last_page(tail: bytes) -> bool:
    """Whether the end of an Ogg has a whole page with the flag of the last one (RFC 3533, section 6)."""
    page = tail.rfind(b"OggS")
    lengths = tail[page + 27 : page + 27 + tail[page + 26]] if 0 <= page < len(tail) - 27 else b""
    return bool(lengths) and bool(tail[page + 5] & 4) and page + 27 + len(lengths) + sum(lengths) <= len(tail)


def _unreadable(name: str, error: Exception) -> InputError:
    reason = getattr(error, "error_string", "") or f"libsndfile's error {getattr(error, 'code', '')}"
    return InputError(f"{name} is not a recording that can be read: {reason}", fix="replace or remove it")
