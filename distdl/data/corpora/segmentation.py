"""Pictures and masks of the same names, cut into tiles: a class for every pixel.

A class is a value of the masks: a grey value of any depth, an index of a palette, or a colour. Both may be the pages of one
TIFF, as in the ISBI 2012 challenge (train-volume.tif and train-labels.tif). Whole pictures are held out, since neighbouring
tiles resemble each other.
"""

from __future__ import annotations

import math
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np

from distdl.data.folders import Files, open_files
from distdl.data.manifest import Column
from distdl.data.pictures import (
    Look,
    check_range_in_use,
    endings,
    make_look,
    need_pillow,
    picture_record,
    read_header,
    read_picture,
    read_values,
    some_of,
)
from distdl.data.raw import Prepared, Rows
from distdl.errors import InputError, Problem

COLOUR = 1 << 24  # from here on a value is a colour, see `read_values`
REACH = 5  # sigmas; further away a border weighs less than e^-12


@dataclass(frozen=True)
class Options:
    """Options of the source `segmentation`."""

    images: str
    """Folder, zip or tar of pictures, or one TIFF of several pages."""
    masks: str
    """Folder, zip or tar of masks of the same names (endings aside), or one TIFF of as many pages."""
    channels: int = 1
    """3 for colour, 1 for grey."""
    tile: tuple[int, int] | None = None
    """Height and width of the tiles that pictures are cut into, as 128x128; without it a picture is one tile."""
    margin: int = 0
    """Pixels of surroundings on each side of a tile, mirrored at the edge of the picture: what valid convolutions eat."""
    test_pictures: int = 1
    """The last so many pictures, in the order of the numbers in their names, are the split `test`."""
    validation_pictures: int = 0
    """So many pictures before those are the split `validation`."""
    sigma: float = 0.0
    """Above 0: a column `border`, 1 where two objects touch and falling with this distance in pixels; see `borders`."""
    range: tuple[float, float] | None = None
    """The values of pictures of more than 8 bits that become black and white, as 0,4095; what lies outside of it, too."""
    background: str = "white"
    """The colour that transparent pictures lie on."""
    most_classes: int = 32
    """More values in the masks than this, at most 256, are refused: masks saved with loss have values in between."""


class Page(NamedTuple):
    """One picture: a file, or a page of one."""

    files: Files | Path
    number: int
    """Of a file in a folder, or of a page in a file."""
    name: str

    @property
    def called(self) -> str:
        """Its name for a person."""
        return str(self.files) if isinstance(self.files, Path) else self.files.called(self.number)

    @property
    def frame(self) -> int:
        """Which of a file's pictures it is."""
        return self.number if isinstance(self.files, Path) else 0

    def open(self) -> BinaryIO:
        """Its file, for reading bytes."""
        return self.files.open("rb") if isinstance(self.files, Path) else self.files.open(self.number)


def prepare(options: Options) -> Prepared:
    """`image` uint8 (C, H, W), `mask` uint8 (H, W) of class numbers in the order of the masks' values, and `border`."""
    need_pillow("segmentation")
    look = make_look(options.channels, None, "stretch", options.range, options.background)
    if options.margin < 0 or options.sigma < 0 or (options.tile and min(options.tile) < 1):
        raise InputError(f"tile {options.tile}, margin {options.margin} or sigma {options.sigma} is too small")
    if not 1 <= options.most_classes <= 256:
        raise InputError(f"most_classes is {options.most_classes}", allowed="1 to 256")
    left_out: Counter[str] = Counter()
    pairs = _pairs(_pages(options.images, left_out), _pages(options.masks, left_out))
    counts = (options.test_pictures, options.validation_pictures)
    if min(counts) < 0 or sum(counts) >= len(pairs):
        told = f"test_pictures is {counts[0]}" + (f" and validation_pictures {counts[1]}" if counts[1] else "")
        raise InputError(
            f"{told}, there are {len(pairs)} pictures",
            allowed=f"from 0 to {len(pairs) - 1}" + (" together" if counts[1] else ""),
        )
    deep = _check_headers(pairs)
    if not look.range:
        check_range_in_use((page.called, page.open()) for page in some_of(deep))
    found = _values_of([mask for _, mask in pairs], options.most_classes)
    tile = options.tile or _values(pairs[0][1]).shape
    height, width = (side + 2 * options.margin for side in tile)
    columns = {"image": Column("uint8", (options.channels, height, width)), "mask": Column("uint8", (height, width))}
    if options.sigma:
        columns["border"] = Column("float32", (height, width))
    classes = [str(value) if value < COLOUR else f"#{value - COLOUR:06x}" for value in found]
    info = {"classes": classes, "left_out": dict(sorted(left_out.items()))}
    told = ", ".join(f"{count:,} {why}" for why, count in sorted(left_out.items()))
    info |= {"notes": [f"left out: {told}"]} if told else {}
    preparation = {
        "image": {**picture_record(look, (height, width)), "tile": list(tile), "margin": options.margin},
        "mask": {"kind": "class", "version": 1, "classes": classes},
    }
    return Prepared(columns, _chunks(pairs, found, (tile[0], tile[1]), look, options), info, preparation)


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


def _pages(where: str, left_out: Counter[str]) -> list[Page]:
    """The pictures of a folder, an archive or a TIFF, in the order of the numbers in their names."""
    path = Path(where)
    if path.is_dir() or (path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))):
        files = open_files(where, endings())
        if files.forward_only:
            raise InputError(f"{where} is compressed as a whole", fix="unpack it, or make it a zip or a plain tar")
        left_out.update(files.left_out)
        stems = [str(PurePosixPath(name).with_suffix("")) for name in files.names]
        numbers = [[(int(n), text) for text, n in re.findall(r"(\D*)(\d+)", stem)] for stem in stems]
        order = sorted(range(len(stems)), key=lambda n: (numbers[n], files.names[n]))
        pages = [Page(files, n, stems[n]) for n in order]
    elif path.is_file():
        with path.open("rb") as file:
            pages = [Page(path, n, f"page {n}") for n in range(read_header(file, where).frames)]
    else:
        raise InputError(f"there is no folder or file {where}", fix="check the path")
    if not pages:
        raise InputError(f"{where} holds no pictures", allowed="the endings " + ", ".join(sorted(endings())))
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


def _check_headers(pairs: list[tuple[Page, Page]]) -> list[Page]:
    """The pictures of 16 bits. InputError names all files whose headers are damaged, or that hold several pictures."""
    deep: list[Page] = []
    bad: list[Problem] = []
    stacks: dict[Path, int] = {}  # a TIFF of pages -> its bits, asked once
    for image, mask in pairs:
        for page in (image, mask):
            try:
                bits = stacks.get(page.files) if isinstance(page.files, Path) else None
                if bits is None:
                    with page.open() as file:
                        header = read_header(file, page.called)
                    bits = header.bits
                    if isinstance(page.files, Path):
                        stacks[page.files] = bits
                    elif header.frames > 1:
                        cure = "save them as files of their own"
                        bad.append(Problem(f"{page.called} holds {header.frames} pictures", fix=cure))
            except InputError as error:
                bad += error.problems
                continue
            if bits == 16 and page is image:
                deep.append(page)
    if bad:
        raise InputError(*bad)
    return deep


def _values_of(masks: list[Page], most: int) -> list[int]:
    """All values of the masks, in order: the classes."""
    found: set[int] = set()
    for mask in masks:
        found |= set(np.unique(_values(mask)).tolist())
        if len(found) > most:
            raise InputError(
                f"{mask.called} brings the masks to {len(found)} grey values, more than {most} classes",
                fix="save masks without smoothing and without lossy compression, as png, or raise most_classes",
            )
    return sorted(found)


def _values(mask: Page) -> np.ndarray:
    with mask.open() as file:
        return read_values(file, mask.called, mask.frame)


def _chunks(
    pairs: list[tuple[Page, Page]], values: list[int], tile: tuple[int, int], look: Look, options: Options
) -> Iterator[tuple[str, Rows]]:
    """The tiles of one picture at a time."""
    for number, (image_page, mask_page) in enumerate(pairs):
        with image_page.open() as file:
            image = read_picture(file, image_page.called, look, image_page.frame)  # (C, H, W)
        mask = np.searchsorted(values, _values(mask_page)).astype(np.uint8)  # (H, W)
        height, width = mask.shape
        if image.shape[1:] != mask.shape or height < tile[0] or width < tile[1]:
            raise InputError(
                f"{image_page.called} ({image_page.name}) has {image.shape[1]} x {image.shape[2]} pixels, its mask "
                f"{height} x {width}, a tile {tile[0]} x {tile[1]}",
                fix="masks as large as their pictures, and a tile that fits into them",
            )
        whole: Rows = {"image": image, "mask": mask}
        if options.sigma:
            whole["border"] = borders(mask > 0, options.sigma)
        if not options.tile and mask.shape != tile:
            raise InputError(
                f"{image_page.called} ({image_page.name}) is larger than the first picture",
                fix=f"cut all of them into tiles: tile={tile[0]}x{tile[1]}",
            )
        rows = {name: _tiles(pixels, tile, options.margin) for name, pixels in whole.items()}
        tested = len(pairs) - options.test_pictures
        validated = tested - options.validation_pictures
        yield "test" if number >= tested else "validation" if number >= validated else "train", rows


def _tiles(pixels: np.ndarray, tile: tuple[int, int], margin: int) -> np.ndarray:
    """(..., H, W) -> (n, ..., h + 2 margin, w + 2 margin); the last ones of a row or column end at the edge."""
    height, width = pixels.shape[-2:]
    around = [(0, 0)] * (pixels.ndim - 2) + [(margin, margin)] * 2
    padded = np.pad(pixels, around, mode="symmetric")  # for any margin, unlike "reflect"
    tops = [min(top, height - tile[0]) for top in range(0, height, tile[0])]
    lefts = [min(left, width - tile[1]) for left in range(0, width, tile[1])]
    cut = [padded[..., y : y + tile[0] + 2 * margin, x : x + tile[1] + 2 * margin] for y in tops for x in lefts]
    return np.stack(cut)
