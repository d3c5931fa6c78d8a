"""One picture, decoded: the only place that asks Pillow.

A picture becomes uint8 (channels, height, width), whatever it was stored as:

- turned upright as its EXIF says; its colours as they are written (no ICC profile is applied);
- what is transparent lies on a background, white where nothing else is said;
- 16 bits are scaled from 0..65535 to 0..255, 12 bits from 0..4095; of 16 bits a colour keeps the upper eight, which is all
  that Pillow reads; real numbers are scaled from 0..1; 32-bit whole numbers have no range of their own, and need one;
- palettes, CMYK, one bit and the rest as Pillow turns them to RGB, or to grey by the weights of ITU-R 601.

Only formats that Pillow decodes itself are opened: PostScript would start another program.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

from distdl.errors import InputError

FORMATS = (
    *(
        "JPEG",
        "PNG",
        "WEBP",
        "TIFF",
        "GIF",
        "BMP",
        "AVIF",
        "JPEG2000",
        "PPM",
        "TGA",
        "DDS",
        "DIB",
        "ICO",
        "PCX",
        "PSD",
        "QOI",
    ),
    *("SGI", "SUN"),
)
"""Of Pillow's, those that are tried first in front. An MPO of two cameras is opened as the JPEG that it begins with."""
ONE_PICTURE = ("ICO", "MPO", "PSD")
"""Formats whose frames are the same picture in other sizes, a preview, or layers: the first frame is the picture."""
FITS = ("stretch", "crop", "pad")
KIND, VERSION = "picture", 1
LOOKED_AT = 16
"""Pictures of 16 bits whose values are looked at before the range of 16 bits is taken for theirs."""
BITS_TOO_FEW = 14
BLOCK_PIXELS = 1 << 20

Range = tuple[float, float]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Look:
    """What all pictures of a data set are brought to."""

    channels: int = 3
    size: tuple[int, int] | None = None
    """Height and width, or None: as they are."""
    fit: str = "stretch"
    """How a picture comes to that size: stretched, cropped in the middle, or padded with the background."""
    range: Range | None = None
    """Values of pictures of more than 8 bits that become 0 and 255, what lies outside of them too; None: the mode's own."""
    background: tuple[int, int, int] = (255, 255, 255)


class Header(NamedTuple):
    """What a picture says of itself before it is decoded."""

    format: str
    mode: str
    bits: int
    """8, 12, 16 or 32 of a channel."""
    height: int
    width: int
    """Upright."""
    frames: int
    transparent: bool
    turned: bool
    """EXIF says that it stands otherwise than it is stored."""


def need_pillow(source: str) -> None:
    """InputError: Pillow is not installed."""
    if importlib.util.find_spec("PIL") is None:
        raise InputError(
            f"the source {source} needs Pillow, which is not installed", fix="pip install 'distdl[images]'"
        )


def endings() -> frozenset[str]:
    """The endings of the formats that are opened, in lower case with the dot."""
    from PIL import Image

    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO"))


def make_look(channels: int, size: tuple[int, int] | None, fit: str, range: Range | None, background: str) -> Look:
    """The look that options ask for. InputError: they make none."""
    from PIL import ImageColor

    if channels not in (1, 3):
        raise InputError(f"channels is {channels}", allowed="1, 3")
    if size and min(size) < 1:
        raise InputError(f"size is {size}", allowed="two sizes of at least 1, as 224x224")
    if fit not in FITS:
        raise InputError(f"fit is '{fit}'", allowed=", ".join(FITS))
    if range and not (np.isfinite(range).all() and range[0] < range[1]):
        raise InputError(f"range is {range[0]:g},{range[1]:g}", allowed="the lower value first, as 0,4095")
    try:
        colour = ImageColor.getcolor(background, "RGB")
    except ValueError:
        raise InputError(f"background is '{background}'", allowed="a colour, as white, black or #80c0ff") from None
    return Look(channels, size, fit, range, colour)  # type: ignore[arg-type]


def picture_record(look: Look, size: tuple[int, int]) -> dict[str, Any]:
    """What the manifest says of a column of pictures, for `prepare_picture`; `size`: what they have."""
    fit = look.fit if look.size else "none"
    about = {"size": list(size), "channels": look.channels, "fit": fit, "resample": "bilinear"}
    more = {"range": list(look.range) if look.range else None, "background": list(look.background)}
    return {"kind": KIND, "version": VERSION, **about, **more}


def prepare_picture(record: Mapping[str, Any], file: str | Path | BinaryIO, frame: int = 0) -> np.ndarray:
    """A new picture as those of a data set were prepared, uint8 (C, H, W). InputError: it cannot be.

    `record`: the manifest's `preparation` of the column.
    """
    need_pillow("images")
    if (record.get("kind"), record.get("version")) != (KIND, VERSION):
        raise InputError(
            f"a preparation of the kind {record.get('kind')}, version {record.get('version')}",
            allowed=f"{KIND}, version {VERSION}",
        )
    height, width = record["size"]
    values = (record["range"][0], record["range"][1]) if record["range"] else None
    size = None if record["fit"] == "none" else (height, width)
    red, green, blue = record["background"]
    fit = "stretch" if size is None else record["fit"]
    name = str(file) if isinstance(file, str | Path) else "the picture"
    pixels = read_picture(file, name, Look(record["channels"], size, fit, values, (red, green, blue)), frame)
    if pixels.shape[1:] != (height, width):
        what = (
            f"{name} has {pixels.shape[1]} x {pixels.shape[2]} pixels, the pictures of the data set {height} x {width}"
        )
        raise InputError(what, fix="resize it first, or prepare the data set with size=")
    return pixels


def read_header(file: str | Path | BinaryIO, name: str) -> Header:
    """What a picture is, with what can be checked without decoding it. InputError that names it: it is damaged."""
    with _opened(file, name) as picture:
        transposed = picture.format == "TIFF"  # Pillow turns TIFFs itself, and says the upright size
        in_header = picture.format != "PNG" or picture.info.keys() & {"exif", "Raw profile type exif"}
        orientation = picture.getexif().get(0x0112, 1) if in_header else 1  # Pillow decodes a PNG to look behind it
        across = orientation in (5, 6, 7, 8) and not transposed
        width, height = picture.size[::-1] if across else picture.size
        frames = 1 if picture.format in ONE_PICTURE else getattr(picture, "n_frames", 1)
        header = Header(
            *(str(picture.format), picture.mode, _bits(picture), height, width, frames),
            transparent=picture.has_transparency_data,
            turned=orientation in range(2, 9),
        )
    if header.format == "PNG":  # it has checksums; other formats have none, or none that Pillow looks at
        if not isinstance(file, str | Path):
            file.seek(0)
        with _opened(file, name) as picture:
            picture.verify()
    return header


def read_picture(file: str | Path | BinaryIO, name: str, look: Look, frame: int = 0) -> np.ndarray:
    """One picture as uint8 (C, H, W). InputError that names it: it cannot be read, or not be scaled to 8 bits."""
    from PIL import Image, ImageColor, ImageOps

    with _opened(file, name) as picture:
        picture.seek(frame)
        flat = _on_background(_of_8_bits(picture, name, look), look.background)
        if flat.mode != (mode := "L" if look.channels == 1 else "RGB"):  # it would copy one that is so already
            flat = flat.convert(mode)
        if look.size:
            across = (look.size[1], look.size[0])
            if look.fit == "crop":
                flat = ImageOps.fit(flat, across, Image.Resampling.BILINEAR)
            elif look.fit == "pad":
                around = ImageColor.getcolor("#{:02x}{:02x}{:02x}".format(*look.background), flat.mode)
                flat = ImageOps.pad(flat, across, Image.Resampling.BILINEAR, color=around)
            else:
                flat = flat.resize(across, Image.Resampling.BILINEAR)
        if look.channels == 1:
            return np.array(flat)[None]
        lines = np.frombuffer(
            flat.tobytes("raw", "RGB;L"), np.uint8
        )  # of each line the red values, then the green ones
    return lines.reshape(flat.height, 3, flat.width).transpose(1, 0, 2).copy()


def read_values(file: str | Path | BinaryIO, name: str, frame: int = 0) -> np.ndarray:
    """The numbers of a picture as they are stored, upright, int64 (H, W): grey values, or indices of a palette.

    A colour is 2^24 + its 0xRRGGBB, and a grey one its grey value. InputError: it has no such numbers.
    """
    from PIL import ImageOps

    with _opened(file, name) as picture:
        picture.seek(frame)
        mode, picture = picture.mode, ImageOps.exif_transpose(picture)
        if mode in ("RGBA", "LA"):
            if np.asarray(picture.getchannel("A")).min() < 255:
                raise InputError(f"{name} is transparent in places", fix="save masks without transparency")
            picture = picture.convert(mode[:-1])
        elif mode not in ("1", "L", "P", "RGB", "I", "F") and not mode.startswith("I;16"):
            raise InputError(f"{name} has the mode {mode}", allowed="masks in grey, RGB or a palette")
        values = np.asarray(picture)
    if picture.mode == "1":
        return values * np.int64(255)
    if picture.mode == "RGB":
        red, green, blue = np.moveaxis(values.astype(np.int64), -1, 0)
        return np.where((red == green) & (green == blue), red, (1 << 24) + (red << 16) + (green << 8) + blue)
    if (values != np.trunc(values)).any():  # NaN, too
        raise InputError(f"{name} holds numbers that are not whole", fix="save masks as whole numbers")
    return values.astype(np.int64)


def some_of(pictures: Sequence[Item]) -> Sequence[Item]:
    """A few of many, evenly spread."""
    return pictures[:: max(1, len(pictures) // LOOKED_AT)]


def check_range_in_use(pictures: Iterable[tuple[str, BinaryIO]]) -> None:
    """InputError: pictures of 16 bits use so few of them that another range is meant, such as a camera's 12 bits.

    `pictures`: names and open files of `some_of` them; they are closed.
    """
    largest, grey, name = -1, True, ""
    for name, file in pictures:
        with file, _opened(file, name) as picture:
            grey = _is_deep_grey(picture)
            largest = max(
                largest, int(np.asarray(picture).max()) * (1 if grey else 257)
            )  # colours: the upper eight bits
    bits = largest.bit_length()
    if largest >= 0 and bits <= BITS_TOO_FEW:
        white = 2 ** max(bits, 8) - 1
        cure = f"say which values are black and white: range=0,{white}" if grey else "save them scaled to 8 bits"
        what = f"pictures of 16 bits, such as {name}, hold no value above {largest:,} of 65,535"
        raise InputError(what, fix=f"{cure}; range=0,65535 where they are that dark")


@contextmanager
def _opened(file: str | Path | BinaryIO, name: str) -> Iterator[Any]:
    from PIL import Image

    try:
        with Image.open(file, formats=FORMATS) as picture:
            yield picture
    except InputError:
        raise
    except Exception as error:  # damaged bytes make Pillow's readers stumble over anything, not OSError alone
        reason = "its format is not known" if isinstance(error, Image.UnidentifiedImageError) else error
        raise InputError(f"{name} is not a picture that can be read: {reason}", fix="replace or remove it") from error


def _of_8_bits(picture: Any, name: str, look: Look) -> Any:
    """The picture, upright, with 8 bits a channel."""
    from PIL import Image, ImageOps

    bits, values = _bits(picture), look.range
    if not _is_deep_grey(picture):
        if bits == 16 and values not in (None, (0, 65535)):
            what = f"{name} has colours of 16 bits, of which Pillow reads the upper eight"
            raise InputError(what, fix="save it scaled to 8 bits, or leave out range=")
        _refuse_signed(picture, name)
        return _upright(picture)
    known, dark_is_high = _own_range(picture, bits), _tag(picture, 262) == 0
    unsigned = _tag(picture, 339) in (None, 1)
    hidden = picture.info.get("transparency")
    numbers = np.asarray(ImageOps.exif_transpose(picture))
    if numbers.dtype == np.int32 and unsigned and picture.format == "TIFF":
        numbers = numbers.view(np.uint32)
    if not np.isfinite(numbers).all():
        raise InputError(f"{name} holds NaN or infinite values", fix="replace or remove it")
    least, most = numbers.min(), numbers.max()
    if values is None and picture.mode == "F" and least >= 0 and most <= 1:
        values = (0.0, 1.0)
    low, high = values or known or (0.0, 0.0)
    if low == high:
        what = f"{name} has the mode {picture.mode}, whose range is not known, and values from {least:g} to {most:g}"
        raise InputError(what, fix="say which values are black and white, as range=0,4095")
    levels = _levels(numbers, low, high)
    grey = Image.fromarray(255 - levels if dark_is_high else levels)
    if isinstance(hidden, int):
        grey.putalpha(Image.fromarray(np.where(numbers == hidden, 0, 255).astype(np.uint8)))
    return grey


def _upright(picture: Any) -> Any:
    """The picture itself where nothing is to be turned, of which Pillow would make a copy."""
    from PIL import ImageOps

    picture.load()  # a TIFF is turned as it is decoded, and says so no more
    return ImageOps.exif_transpose(picture) if picture.getexif().get(0x0112, 1) in range(2, 9) else picture


def _levels(numbers: np.ndarray, low: float, high: float) -> np.ndarray:
    """(H, W) of any type -> uint8, `low` to 0 and `high` to 255, in float64, some rows at a time."""
    levels = np.empty(numbers.shape, np.uint8)
    step = max(1, BLOCK_PIXELS // max(1, numbers.shape[1]))
    for top in range(0, len(numbers), step):
        rows = numbers[top : top + step].astype(np.float64)
        levels[top : top + step] = np.clip(np.round((rows - low) * (255 / (high - low))), 0, 255)
    return levels


def _on_background(picture: Any, colour: tuple[int, int, int]) -> Any:
    from PIL import Image

    if not picture.has_transparency_data:
        return picture
    above = picture.convert("RGBA")
    below = Image.new("RGBA", above.size, (*colour, 255))
    return Image.alpha_composite(below, above).convert("RGB")


def _is_deep_grey(picture: Any) -> bool:
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def _bits(picture: Any) -> int:
    """Of a channel, as they are stored."""
    raw = str(picture.tile[0][3]) if picture.tile else ""  # Pillow's name of the bytes' layout, such as RGB;16B
    if _is_deep_grey(picture):
        narrow = picture.mode.startswith("I;16") or picture.format == "PPM"
        return 12 if "I;12" in raw else 16 if narrow or picture.format == "PNG" or "I;16" in raw else 32
    return 16 if ";16" in raw and "BGR;16" not in raw else 8  # BGR;16: 5, 6 and 5 bits


def _own_range(picture: Any, bits: int) -> Range | None:
    """The values of black and white that the picture's own format fixes."""
    if picture.mode == "F" or bits == 32 or _tag(picture, 339) == 2:
        return None
    return (0.0, 4095.0) if bits == 12 else (0.0, 65535.0)


def _tag(picture: Any, number: int) -> Any:
    """A tag of a TIFF: 262 says whether 0 is white, 339 whether numbers are unsigned (1), signed (2) or real (3)."""
    value = getattr(picture, "tag_v2", {}).get(number) if picture.format == "TIFF" else None
    return value[0] if isinstance(value, tuple) else value


def _refuse_signed(picture: Any, name: str) -> None:
    if _tag(picture, 339) == 2:  # Pillow would read -1 as 255
        raise InputError(f"{name} holds signed numbers of 8 bits", fix="save it with unsigned ones")
