"""Pictures in one folder per class (png, jpg, bmp, gif, webp, tiff, ppm), decoded and resized once."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from distdl.data.advice import SURE, Advice, Wish
from distdl.data.classes import in_order
from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows
from distdl.data.splits import SplitOptions, check_fraction, hold_out
from distdl.errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
CHUNK_PICTURES = 64
ADVISED_SIDE = 64
"""Pixels that pictures are resized to where they differ, or are larger than twice that."""
LOOKED_AT = 200


@dataclass(frozen=True)
class Options(SplitOptions):
    """Options of the source `images`."""

    path: str
    """Folder with one folder of pictures per class."""
    size: tuple[int, int] | None = None
    """Height and width to resize to, as 224x224; without it all pictures must have the same size."""
    channels: int = 3
    """3 for colour, 1 for grey."""
    test_path: str = ""
    """A folder of the same classes that becomes the split `test`; then nothing is held out of `path`."""


def prepare(options: Options) -> Prepared:
    """`image` uint8 (C, H, W) and `label` int64; the classes are the folder names in their order (classes.py)."""
    if importlib.util.find_spec("PIL") is None:
        raise InputError("the source images needs Pillow, which is not installed", fix="pip install 'distdl[images]'")
    check_fraction(options.test_fraction)
    if options.channels not in (1, 3):
        raise InputError(f"channels is {options.channels}", allowed="1, 3")
    if options.size and min(options.size) < 1:
        raise InputError(f"size is {options.size}", allowed="two sizes of at least 1, as 224x224")
    pictures, classes = _find(options.path)
    size = options.size or _decode(pictures[0][0], options.channels, None).shape[1:]
    test_pictures: list[tuple[Path, int]] = []
    if options.test_path:
        test_pictures, test_classes = _find(options.test_path)
        if test_classes != classes:
            raise InputError(
                f"the classes of {options.test_path} are not those of {options.path}", allowed=", ".join(classes)
            )
    return Prepared(
        {"image": Column("uint8", (options.channels, *size)), "label": Column("int64")},
        _chunks(pictures, test_pictures, options, (size[0], size[1])),
        {"classes": classes},
        rows=len(pictures) + len(test_pictures),
    )


def _chunks(
    pictures: list[tuple[Path, int]], test_pictures: list[tuple[Path, int]], options: Options, size: tuple[int, int]
) -> Iterator[tuple[str, Rows]]:
    yield from hold_out(_rows(pictures, options, size), 0 if test_pictures else options.test_fraction)
    for rows in _rows(test_pictures, options, size):
        yield "test", rows


def _find(folder: str) -> tuple[list[tuple[Path, int]], list[str]]:
    """(picture, class number) in a fixed order, and the names of the classes."""
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"there is no folder {folder}", fix="check the path")
    classes = in_order(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    pictures = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not pictures:
        raise InputError(
            f"{folder} holds no folders with pictures",
            allowed="folder/class/picture with one of the endings " + ", ".join(sorted(SUFFIXES)),
        )
    return pictures, classes


def _rows(pictures: list[tuple[Path, int]], options: Options, size: tuple[int, int]) -> Iterator[Rows]:
    for start in range(0, len(pictures), CHUNK_PICTURES):
        chunk = pictures[start : start + CHUNK_PICTURES]
        images = []
        for path, _ in chunk:
            images.append(_decode(path, options.channels, options.size))
            if images[-1].shape[1:] != size:
                raise InputError(
                    f"{path} has {images[-1].shape[1]} x {images[-1].shape[2]} pixels, the first picture has "
                    f"{size[0]} x {size[1]}",
                    fix=f"resize all of them: size={size[0]}x{size[1]}",
                )
        yield {"image": np.stack(images), "label": np.array([label for _, label in chunk], np.int64)}


def _decode(path: Path, channels: int, size: tuple[int, int] | None) -> np.ndarray:
    """One picture as uint8 (C, H, W). InputError that names the file where Pillow cannot read it."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            picture = file.convert("RGB" if channels == 3 else "L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not a picture that can be read: {error}", fix="replace or remove it") from error
    if size:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def recognise(path: Path) -> float:
    """A folder of folders with pictures: the first ones found say so."""
    folders = [folder for folder in path.iterdir() if folder.is_dir()] if path.is_dir() else []
    return (
        SURE
        if any(file.suffix.lower() in SUFFIXES for folder in folders for file in islice(folder.rglob("*"), 20))
        else 0.0
    )


def advise(path: str, wish: Wish) -> Advice:
    """One size for all, and whether they have colours, for `distdl init`."""
    if wish.label or wish.target:
        raise InputError(f"{path} is a folder of pictures: the folder of a picture is its class, no column is")
    from PIL import Image

    sizes, grey = set(), True
    pictures = _find(path)[0]
    for place in pictures[:: max(1, len(pictures) // LOOKED_AT)]:
        with suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError), Image.open(place[0]) as picture:
            sizes.add(picture.size)
            grey = grey and picture.mode in ("1", "L", "LA")
    options: dict[str, object] = {"path": path}
    because = {}
    if grey and sizes:
        options["channels"], because["channels"] = 1, "all pictures that were looked at are grey"
    if len(sizes) > 1:
        because["size"] = "the pictures differ in size"
    elif any(max(size) > 2 * ADVISED_SIDE for size in sizes):
        because["size"] = f"the pictures have {min(sizes)[1]} x {min(sizes)[0]} pixels, which is much for a first run"
    if "size" in because:
        side = min(ADVISED_SIDE, *(side for size in sizes for side in size))
        options["size"] = f"{side}x{side}"
    return Advice(options, because)
