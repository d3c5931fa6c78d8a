"""One picture as a function: a row for each pixel, its place and its colour. Needs Pillow.

Without a path it is the flower of scikit-learn's sample pictures (flower.jpg).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distdl.data.manifest import Column
from distdl.data.pictures import check_range_in_use, make_look, need_pillow, read_header, read_picture
from distdl.data.raw import Prepared
from distdl.errors import InputError


@dataclass(frozen=True)
class Options:
    """Options of the source `pixels`."""

    path: str = ""
    """The picture; without it, scikit-learn's flower.jpg."""
    size: int = 128
    """Pixels of a side: the largest square in the middle is scaled to that."""
    range: tuple[float, float] | None = None
    """The values of a picture of more than 8 bits that are black and white, as 0,4095; what lies outside of it, too."""
    background: str = "white"
    """The colour that a transparent picture lies on."""
    held_out: bool = False
    """Train on every other pixel of every other row and test on the rest (Tancik et al. 2020); else both have all."""


def prepare(options: Options) -> Prepared:
    """`x` float32 (2,), the pixel's middle, row and column from -1 to 1, and `y` float32 (3,), its colour from 0 to 1."""
    if options.size < 2:
        raise InputError(f"size is {options.size}", allowed="at least 2")
    colours = _picture(options).reshape(-1, 3)  # (S*S, 3)
    places = (np.arange(options.size, dtype=np.float32) + 0.5) * 2 / options.size - 1
    x = np.stack(np.meshgrid(places, places, indexing="ij"), -1).reshape(-1, 2)
    even = np.arange(options.size) % 2 == 0
    kept = np.outer(even, even).flatten()
    rows = {"train": kept, "test": ~kept} if options.held_out else dict.fromkeys(("train", "test"), np.ones_like(kept))
    chunks = ((split, {"x": x[chosen], "y": colours[chosen]}) for split, chosen in rows.items())
    return Prepared({"x": Column("float32", (2,)), "y": Column("float32", (3,))}, chunks)


def _picture(options: Options) -> np.ndarray:
    """(S, S, 3) float32 from 0 to 1."""
    need_pillow("pixels")
    from PIL import Image

    pixels = _read(options) if options.path else _flower()
    side = min(pixels.shape[:2])
    top, left = ((n - side) // 2 for n in pixels.shape[:2])
    box = (left, top, left + side, top + side)
    scaled = Image.fromarray(pixels).resize((options.size, options.size), Image.Resampling.BOX, box=box)
    return np.asarray(scaled, np.float32) / 255


def _read(options: Options) -> np.ndarray:
    """(H, W, 3) uint8."""
    if not Path(options.path).is_file():
        raise InputError(f"there is no file {options.path}", fix="check the path")
    look = make_look(3, None, "stretch", options.range, options.background)
    header = read_header(options.path, options.path)
    if header.frames > 1:
        raise InputError(f"{options.path} holds {header.frames} pictures", fix="save the one you want by itself")
    if header.bits == 16 and not look.range:
        with open(options.path, "rb") as file:
            check_range_in_use([(options.path, file)])
    return np.ascontiguousarray(read_picture(options.path, options.path, look).transpose(1, 2, 0))


def _flower() -> np.ndarray:
    from sklearn.datasets import load_sample_image

    return load_sample_image("flower.jpg")
