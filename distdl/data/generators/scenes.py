"""Scenes of a few handwritten digits on a dark ground, each with a caption and the box of every digit.

    a seven        a seven left of an eight        a seven above a two above a five

The digits of MNIST's idx files, or scikit-learn's where no path is given, are cut to their ink and put down at random, so
that no two boxes overlap. A caption names them from left to right or from top to bottom, along the axis on which their
centres are further apart. Test scenes hold test digits only. 0 is padding, 1 an unknown word (there is none), 2 begins a
caption, 3 ends it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distdl.data.corpora.translation import UNITS
from distdl.data.formats import idx
from distdl.data.generators import digits
from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows
from distdl.data.vocabulary import MARKS, record_of, tokens
from distdl.errors import InputError

CHUNK_ROWS = 2048
VALIDATION = 0.1
"""Part of the digits of which validation scenes are made, where there are any."""
WORDS = [*MARKS, "a", "an", "left", "of", "above", *UNITS[:10]]
TRIES = 1000
"""How often the places of a scene are drawn before the ground is called too small."""


@dataclass(frozen=True)
class Options:
    """Options of the source `scenes`."""

    path: str = ""
    """Folder of the idx files (see the source idx); empty: scikit-learn's digits of 8 x 8 pixels."""
    rows: int = 20000
    """Training scenes."""
    test_rows: int = 1000
    """Scenes of the split `test`."""
    validation_rows: int = 0
    """Scenes of the split `validation`, of a tenth of the digits, which no training scene shows then."""
    least: int = 1
    """Digits of the emptiest scenes."""
    most: int = 2
    """Digits of the fullest scenes; numbers from `least` to this are equally frequent."""
    side: int = 0
    """Height and width of a scene in pixels; 0: three times the side of a digit's picture, or twice where that is 28."""
    contrasts: int = 0
    """How many captions of other scenes, none of which fits, come with each scene as `contrasts`."""
    seed: int = 0
    """Seed of the scenes."""


def prepare(options: Options) -> Prepared:
    """`image` uint8 (1, S, S), `caption` uint8 (4 most,), `boxes` int64 (most, 4): top, left, bottom and right (exclusive),
    in the order of the caption and zeros for no digit; and `contrasts` uint8 (contrasts, 4 most)."""
    for name in ("rows", "test_rows", "least"):
        if getattr(options, name) < 1:
            raise InputError(f"{name} is {getattr(options, name)}", allowed="at least 1")
    if options.most < options.least:
        raise InputError(f"most is {options.most}, least is {options.least}", fix="make most at least as large")
    if options.contrasts < 0:
        raise InputError(f"contrasts is {options.contrasts}", allowed="0 or more")
    if options.validation_rows < 0:
        raise InputError(f"validation_rows is {options.validation_rows}", allowed="0 or more")
    share = VALIDATION if options.validation_rows else 0.0
    single = (
        idx.prepare(idx.Options(options.path, validation_fraction=share))
        if options.path
        else digits.prepare(digits.Options(validation_fraction=share))
    )
    size = max(single.columns["image"].shape)
    side = options.side or (2 * size if size == 28 else 3 * size)
    if side < size:
        raise InputError(f"side is {side}, a digit needs up to {size} pixels", allowed=f"at least {size}")
    columns = {
        "image": Column("uint8", (1, side, side)),
        "caption": Column("uint8", (4 * options.most,)),
        "boxes": Column("int64", (options.most, 4)),
    }
    if options.contrasts:
        columns["contrasts"] = Column("uint8", (options.contrasts, 4 * options.most))
    preparation = {"caption": record_of(WORDS, 4 * options.most, begin=True)}
    return Prepared(columns, _chunks(single, options, side), {"words": WORDS}, preparation)


def _chunks(single: Prepared, options: Options, side: int) -> Iterator[tuple[str, Rows]]:
    splits: dict[str, list[Rows]] = {}
    for split, rows in single.chunks:
        splits.setdefault(split, []).append(rows)
    for place, split in enumerate(sorted(splits)):
        images = np.concatenate([rows["image"] for rows in splits[split]])[:, 0]  # (N, H, W)
        labels = np.concatenate([rows["label"] for rows in splits[split]])  # (N,)
        random = np.random.default_rng([options.seed, place])
        total = {"test": options.test_rows, "validation": options.validation_rows}.get(split, options.rows)
        for start in range(0, total, CHUNK_ROWS):
            scenes = [_scene(images, labels, options, side, random) for _ in range(min(CHUNK_ROWS, total - start))]
            rows = {name: np.stack([scene[name] for scene in scenes]) for name in scenes[0]}
            if options.contrasts:
                rows["contrasts"] = _contrasts(rows["caption"], options, random)
            yield split, rows


def _scene(
    images: np.ndarray, labels: np.ndarray, options: Options, side: int, random: np.random.Generator
) -> dict[str, np.ndarray]:
    count = int(random.integers(options.least, options.most + 1))
    chosen = random.integers(0, len(images), count)
    inks = [ink(images[n]) for n in chosen]
    boxes = _places(np.array([part.shape for part in inks]), side, random)  # (n, 4)
    image = np.zeros((1, side, side), np.uint8)
    for part, (top, left, bottom, right) in zip(inks, boxes, strict=True):
        image[0, top:bottom, left:right] = part
    order, relation = reading_order(boxes)
    names = [named(int(labels[chosen[n]])) for n in order]
    words = [word for n, name in enumerate(names) for word in ([*relation, *name] if n else name)]
    numbers = {word: number for number, word in enumerate(WORDS)}
    row = np.zeros((options.most, 4), np.int64)
    row[:count] = boxes[order]
    caption = np.array(tokens(words, numbers, 4 * options.most, True), np.uint8)
    return {"image": image, "caption": caption, "boxes": row}


def named(digit: int) -> list[str]:
    """A digit in words, with its article."""
    return ["an" if digit == 8 else "a", UNITS[digit]]


def ink(picture: np.ndarray) -> np.ndarray:
    """The smallest part of a picture (H, W) that holds all its ink."""
    rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
    if not len(rows):
        return picture
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def reading_order(boxes: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The order in which a caption names the boxes (n, 4), and the words between two names."""
    centres = boxes[:, :2] + boxes[:, 2:]  # (n, 2), doubled
    down, across = np.ptp(centres, 0)
    axis = int(across >= down)
    return np.argsort(centres[:, axis], kind="stable"), ["left", "of"] if axis else ["above"]


def _places(sizes: np.ndarray, side: int, random: np.random.Generator) -> np.ndarray:
    """Boxes (n, 4) of these heights and widths (n, 2) that do not overlap."""
    for _ in range(TRIES):
        corner = random.integers(0, side - sizes + 1)  # (n, 2)
        apart = (corner[:, None] >= corner + sizes) | (corner[:, None] + sizes[:, None] <= corner)  # (n, n, 2)
        if (apart.any(-1) | np.eye(len(sizes), dtype=bool)).all():
            return np.concatenate([corner, corner + sizes], 1)
    raise InputError(
        f"{len(sizes)} digits found no room on {side} x {side} pixels", fix="give a larger side, or smaller most"
    )


def _contrasts(captions: np.ndarray, options: Options, random: np.random.Generator) -> np.ndarray:
    """(B, contrasts, T): captions of other scenes of this chunk, none of them the scene's own."""
    picked = []
    for own in captions:
        others = np.flatnonzero((captions != own).any(1))
        if not len(others):
            raise InputError("all scenes have the same caption, there is none to contrast", fix="ask for more rows")
        picked.append(captions[random.choice(others, options.contrasts)])
    return np.stack(picked)
