"""One picture as a function: a row for each pixel, its place and its colour. Needs Pillow.

Without a path it is the flower of scikit-learn's sample pictures (flower.jpg).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distdl.data.manifest import Column
from distdl.data.raw import Prepared
from distdl.errors import InputError


@dataclass(frozen=True)
class Options:
    """Options of the source `pixels`."""

    path: str = ""
    """The picture; without it, scikit-learn's flower.jpg."""
    size: int = 128
    """Pixels of a side: the largest square in the middle is scaled to that."""
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
    try:
        from PIL import Image
    except ImportError:
        raise InputError("the source pixels needs Pillow", fix="pip install 'distdl[images]'") from None
    if options.path and not Path(options.path).is_file():
        raise InputError(f"there is no file {options.path}", fix="check the path")
    try:
        image = Image.open(options.path) if options.path else Image.fromarray(_flower())
        image = image.convert("RGB")
    except OSError as error:
        raise InputError(f"{options.path} is not a picture: {error}") from error
    side = min(image.size)
    left, top = ((n - side) // 2 for n in image.size)
    box = (left, top, left + side, top + side)
    scaled = image.resize((options.size, options.size), Image.Resampling.BOX, box=box)
    return np.asarray(scaled, np.float32) / 255


def _flower() -> np.ndarray:
    from sklearn.datasets import load_sample_image

    return load_sample_image("flower.jpg")
