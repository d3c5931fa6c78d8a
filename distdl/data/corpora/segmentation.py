"""Pictures and masks of the same names, cut into tiles: a class for every pixel.

The masks are grey pictures with one value per class, or the pages of one TIFF, as in the ISBI 2012 challenge
(train-volume.tif and train-labels.tif). Whole pictures are held out, since neighbouring tiles resemble each other.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distdl.data.formats.images import SUFFIXES
from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows
from distdl.errors import InputError

MOST_CLASSES = 32
REACH = 5  # sigmas; further away a border weighs less than e^-12


@dataclass(frozen=True)
class Options:
    """Options of the source `segmentation`."""

    images: str
    """Folder of pictures, or one TIFF of several pages."""
    masks: str
    """Folder of grey masks of the same names (endings aside), or one TIFF of as many pages."""
    channels: int = 1
    """3 for colour, 1 for grey."""
    tile: tuple[int, int] | None = None
    """Height and width of the tiles that pictures are cut into, as 128x128; without it a picture is one tile."""
    margin: int = 0
    """Pixels of surroundings on each side of a tile, mirrored at the edge of the picture: what valid convolutions eat."""
    test_pictures: int = 1
    """The last so many pictures, in the order of the numbers in their names, are the split `test`."""
    sigma: float = 0.0
    """Above 0: a column `border`, 1 where two objects touch and falling with this distance in pixels; see `borders`."""


class Page(NamedTuple):
    """One picture: a file, or a page of one."""

    path: Path
    number: int
    name: str


def prepare(options: Options) -> Prepared:
    """`image` uint8 (C, H, W), `mask` uint8 (H, W) of class numbers in the order of the grey values, and `border`."""
    if importlib.util.find_spec("PIL") is None:
        raise InputError(
            "the source segmentation needs Pillow, which is not installed", fix="pip install 'distdl[images]'"
        )
    if options.channels not in (1, 3):
        raise InputError(f"channels is {options.channels}", allowed="1, 3")
    if options.margin < 0 or options.sigma < 0 or (options.tile and min(options.tile) < 1):
        raise InputError(f"tile {options.tile}, margin {options.margin} or sigma {options.sigma} is too small")
    pairs = _pairs(_pages(options.images), _pages(options.masks))
    if not 0 <= options.test_pictures < len(pairs):
        raise InputError(
            f"test_pictures is {options.test_pictures}, there are {len(pairs)} pictures",
            allowed=f"from 0 to {len(pairs) - 1}",
        )
    greys = _greys([mask for _, mask in pairs])
    tile = options.tile or _decode(pairs[0][1], 1).shape[1:]
    height, width = (side + 2 * options.margin for side in tile)
    columns = {"image": Column("uint8", (options.channels, height, width)), "mask": Column("uint8", (height, width))}
    if options.sigma:
        columns["border"] = Column("float32", (height, width))
    info = {"classes": [str(grey) for grey in greys]}
    return Prepared(columns, _chunks(pairs, greys, (tile[0], tile[1]), options), info)


def borders(objects: np.ndarray, sigma: float) -> np.ndarray:
    """How near the two nearest objects are: exp(-(d1 + d2)^2 / 2 sigma^2) between objects, 0 within (H, W).

    d1 and d2 are the distances to the nearest and to the second nearest of the connected parts of the mask `objects`: the
    weight map of Ronneberger et al. 2015 (equation 2) without its factor.
    """
    from scipy import ndimage

    labels, _ = ndimage.label(objects)
    reach = math.ceil(REACH * sigma)
    first = np.full(labels.shape, np.inf)
    second = first.copy()
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        top, left = max(rows.start - reach, 0), max(columns.start - reach, 0)
        box = np.s_[top : rows.stop + reach, left : columns.stop + reach]
        distance = ndimage.distance_transform_edt(labels[box] != number)
        second[box] = np.minimum(second[box], np.maximum(first[box], distance))
        first[box] = np.minimum(first[box], distance)
    return (np.exp(-((first + second) ** 2) / (2 * sigma**2)) * (labels == 0)).astype(np.float32)


def _pages(where: str) -> list[Page]:
    """The pictures of a folder or of a TIFF, in the order of the numbers in their names."""
    from PIL import Image

    path = Path(where)
    if path.is_dir():
        files = [file for file in path.iterdir() if file.suffix.lower() in SUFFIXES]
        numbers = {file: [(int(n), text) for text, n in re.findall(r"(\D*)(\d+)", file.stem)] for file in files}
        pages = [Page(file, 0, file.stem) for file in sorted(files, key=lambda file: (numbers[file], file.name))]
    elif path.is_file():
        try:
            with Image.open(path) as file:
                pages = [Page(path, n, f"page {n}") for n in range(getattr(file, "n_frames", 1))]
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{path} is not a picture that can be read: {error}", fix="replace it") from error
    else:
        raise InputError(f"there is no folder or file {where}", fix="check the path")
    if not pages:
        raise InputError(f"{where} holds no pictures", allowed="the endings " + ", ".join(sorted(SUFFIXES)))
    return pages


def _pairs(images: list[Page], masks: list[Page]) -> list[tuple[Page, Page]]:
    by_name = {mask.name: mask for mask in masks}
    alone = sorted({image.name for image in images} ^ by_name.keys())
    if alone:
        raise InputError(
            f"{len(alone)} names are not both among the pictures and among the masks: {', '.join(alone[:5])}",
            fix="a picture and its mask have the same name, whatever its ending",
        )
    return [(image, by_name[image.name]) for image in images]


def _greys(masks: list[Page]) -> list[int]:
    """All values of the masks, in order: the classes."""
    found: set[int] = set()
    for mask in masks:
        found |= set(np.unique(_decode(mask, 1)).tolist())
        if len(found) > MOST_CLASSES:
            raise InputError(
                f"{mask.path} brings the masks to {len(found)} grey values, more than {MOST_CLASSES} classes",
                fix="save masks without smoothing and without lossy compression, as png",
            )
    return sorted(found)


def _decode(page: Page, channels: int) -> np.ndarray:
    """One picture as uint8 (C, H, W). InputError that names the file where Pillow cannot read it."""
    from PIL import Image

    try:
        with Image.open(page.path) as file:
            file.seek(page.number)
            pixels = np.asarray(file.convert("RGB" if channels == 3 else "L"))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{page.path} is not a picture that can be read: {error}", fix="replace it") from error
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _chunks(
    pairs: list[tuple[Page, Page]], greys: list[int], tile: tuple[int, int], options: Options
) -> Iterator[tuple[str, Rows]]:
    """The tiles of one picture at a time."""
    for number, (image_page, mask_page) in enumerate(pairs):
        image = _decode(image_page, options.channels)  # (C, H, W)
        mask = np.searchsorted(greys, _decode(mask_page, 1)[0]).astype(np.uint8)  # (H, W)
        height, width = mask.shape
        if image.shape[1:] != mask.shape or height < tile[0] or width < tile[1]:
            raise InputError(
                f"{image_page.path} ({image_page.name}) has {image.shape[1]} x {image.shape[2]} pixels, its mask "
                f"{height} x {width}, a tile {tile[0]} x {tile[1]}",
                fix="masks as large as their pictures, and a tile that fits into them",
            )
        whole: Rows = {"image": image, "mask": mask}
        if options.sigma:
            whole["border"] = borders(mask > 0, options.sigma)
        if not options.tile and mask.shape != tile:
            raise InputError(
                f"{image_page.path} ({image_page.name}) is larger than the first picture",
                fix=f"cut all of them into tiles: tile={tile[0]}x{tile[1]}",
            )
        rows = {name: _tiles(pixels, tile, options.margin) for name, pixels in whole.items()}
        yield "test" if number >= len(pairs) - options.test_pictures else "train", rows


def _tiles(pixels: np.ndarray, tile: tuple[int, int], margin: int) -> np.ndarray:
    """(..., H, W) -> (n, ..., h + 2 margin, w + 2 margin); the last ones of a row or column end at the edge."""
    height, width = pixels.shape[-2:]
    around = [(0, 0)] * (pixels.ndim - 2) + [(margin, margin)] * 2
    padded = np.pad(pixels, around, mode="symmetric")  # for any margin, unlike "reflect"
    tops = [min(top, height - tile[0]) for top in range(0, height, tile[0])]
    lefts = [min(left, width - tile[1]) for left in range(0, width, tile[1])]
    cut = [padded[..., y : y + tile[0] + 2 * margin, x : x + tile[1] + 2 * margin] for y in tops for x in lefts]
    return np.stack(cut)
