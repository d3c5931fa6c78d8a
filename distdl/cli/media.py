"""One value of a data set as somebody can see, hear or read it: PNG, WAV, text. Written by hand, in the plainest form of
each: a page of samples is to need no further package."""

from __future__ import annotations

import io
import struct
import wave
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from distdl.data.manifest import VARIABLE, Manifest
from distdl.page import data_uri

MOST_PIXELS = 256
"""Side that a picture is thinned out to."""
MOST_SECONDS = 10.0
MOST_LETTERS, MOST_NUMBERS = 600, 24
ENCODED = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
"""First bytes of what a browser shows as it is."""
MOST_ENCODED_BYTES = 1 << 20


@dataclass(frozen=True)
class Shown:
    """A value for a page."""

    kind: Literal["picture", "sound", "text"]
    content: str
    """A data URI of a picture or a sound; else the text."""


def shown(manifest: Manifest, name: str, value: Any) -> Shown:
    """A value of a column, by what its preparation says that it is, else by its shape."""
    column, about = manifest.columns[name], manifest.preparation.get(name, {})
    if column.dtype == VARIABLE:
        return _of_bytes(value)
    kind = about.get("kind")
    rate_hz = about.get("rate_hz")
    if (
        kind == "sound"
        and about.get("features") != "log_mel"
        and isinstance(rate_hz, int | float)
        and 0 < rate_hz < 1 << 31
    ):
        return Shown("sound", data_uri("audio/wav", wav(value, int(rate_hz))))
    if kind == "picture" or is_picture(column.shape) or (name == "mask" and len(column.shape) == 2):
        return Shown("picture", data_uri("image/png", png(value)))
    if column.shape == () and (names := class_names(manifest, name)) and 0 <= value < len(names):
        return Shown("text", f"{value} ({names[int(value)]})")
    if len(column.shape) == 1 and (text := _of_tokens(manifest, name, value)) is not None:
        return Shown("text", text)
    return Shown("text", _of_numbers(value))


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether a shape is that of a picture with one, three or four channels in front."""
    return len(shape) == 3 and shape[0] in (1, 3, 4) and min(shape[1:]) >= 4


def class_names(manifest: Manifest, name: str) -> list[str]:
    """The names of the classes of a column; []: it has none."""
    known = manifest.preparation.get(name, {}).get("classes")
    known = known or (manifest.info.get("classes") if name == "label" else None)
    return [str(one) for one in known] if isinstance(known, list) else []


def png(values: np.ndarray) -> bytes:
    """A picture (C, H, W) or (H, W) as PNG. What is not bytes is stretched from its smallest to its largest value."""
    planes = values[None] if values.ndim == 2 else values
    planes = planes[:3] if len(planes) >= 3 else planes[:1]
    step = max(1, -(-max(planes.shape[1:]) // MOST_PIXELS))
    pixels = planes[:, ::step, ::step]
    if pixels.dtype != np.uint8 or values.ndim == 2:
        numbers = np.nan_to_num(pixels.astype(np.float64))
        low, high = numbers.min(), numbers.max()
        pixels = ((numbers - low) / ((high - low) or 1.0) * 255).astype(np.uint8)
    height, width = pixels.shape[1:]
    lines = pixels.transpose(1, 2, 0).reshape(height, -1)
    raw = b"".join(b"\0" + line.tobytes() for line in lines)  # 0: the line as it is, without a filter
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if len(pixels) == 3 else 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def wav(values: np.ndarray, rate_hz: int) -> bytes:
    """A sound (samples,) or (channels, samples) as a WAV file of 16 bits; reals are between -1 and 1, else made so."""
    mono = values.reshape(-1, values.shape[-1])[0][: int(MOST_SECONDS * rate_hz)]
    if mono.dtype != np.int16:
        numbers = np.nan_to_num(mono.astype(np.float64))
        numbers = numbers / max(1.0, float(np.abs(numbers).max(initial=0.0)))
        mono = (numbers * 32767).astype(np.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate_hz)
        out.writeframes(mono.astype("<i2").tobytes())
    return file.getvalue()


def _of_bytes(value: bytes) -> Shown:
    for magic, mime in ENCODED.items():
        if value.startswith(magic) and len(value) <= MOST_ENCODED_BYTES:
            return Shown("picture", data_uri(mime, value))
    try:
        return Shown("text", _cut(value.decode("utf-8")))
    except UnicodeDecodeError:
        return Shown("text", f"{len(value):,} bytes: {value[:32].hex(' ')}" + (" ..." if len(value) > 32 else ""))


def _of_tokens(manifest: Manifest, name: str, value: np.ndarray) -> str | None:
    """A row of tokens as text; None: it is no such row, or nothing says what the tokens are."""
    about: Mapping[str, Any] = manifest.preparation.get(name) or (manifest.info if name == "tokens" else {})
    if about.get("encoding") == "bytes" and value.dtype == np.uint8:
        return _cut(value.tobytes().decode("utf-8", "replace"))
    words = about.get("words") or about.get("tokens")
    if isinstance(words, list) and value.dtype.kind in "iu":
        known = {number: str(word) for number, word in enumerate(words)}
        return _cut(" ".join(known.get(int(number), "?") for number in value))
    return None


def _of_numbers(value: Any) -> str:
    flat = np.asarray(value).reshape(-1)
    told = " ".join(f"{number:g}" if flat.dtype.kind == "f" else str(number) for number in flat[:MOST_NUMBERS].tolist())
    return told + (f" ... ({flat.size:,} numbers)" if flat.size > MOST_NUMBERS else "")


def _cut(text: str) -> str:
    return text[:MOST_LETTERS] + (" ..." if len(text) > MOST_LETTERS else "")
