"""Pictures in one folder per class, or with a table of labels; in a folder, a zip or a tar. Decoded and resized once.

Each format that Pillow decodes is taken; what becomes of 16 bits, transparency, EXIF and palettes is written in
`distdl/data/pictures.py`, which folder is a class or a split in `distdl/data/class_folders.py`.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from distdl.data.advice import Advice, Wish, look_advice
from distdl.data.bad_rows import BadRows
from distdl.data.class_folders import FolderOptions, Found, find, find_sound, headers_of, refuse_all, rows_of
from distdl.data.each_file import Part
from distdl.data.folders import fits
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
    some_of,
)
from distdl.data.raw import Prepared
from distdl.errors import InputError, Problem

CHUNK_PICTURES, CHUNK_BYTES = 64, 16 << 20
FRAMES = ("refuse", "first", "all")


@dataclass(frozen=True)
class Options(FolderOptions):
    """Options of the source `images`."""

    path: str
    """Folder, zip or tar with one folder of pictures per class."""
    size: tuple[int, int] | None = None
    """Height and width to resize to, as 224x224; without it all pictures must have the same size."""
    channels: int = 3
    """3 for colour, 1 for grey."""
    fit: str = "stretch"
    """How a picture comes to `size`: `stretch`, `crop` in the middle, or `pad` with the background."""
    range: tuple[float, float] | None = None
    """The values of pictures of more than 8 bits that become black and white, as 0,4095; what lies outside of it, too.
    Without it 16 bits have 0,65535 and real numbers 0,1."""
    background: str = "white"
    """The colour that transparent pictures lie on."""
    frames: str = "refuse"
    """Animations and TIFFs of several pages: `refuse` them, take the `first` frame, or `all` as pictures of their own."""


@dataclass
class _Facts:
    """What the headers of all pictures say."""

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    first_of_size: dict[tuple[int, int], str] = field(default_factory=dict)
    modes: Counter[str] = field(default_factory=Counter)
    frames: dict[str, np.ndarray] = field(default_factory=dict)
    """For each part, by its split, the number of rows that each file gives."""
    moving: list[str] = field(default_factory=list)
    deep: list[tuple[Part, int]] = field(default_factory=list)
    """Of pictures of 16 bits."""
    transparent: int = 0
    turned: int = 0


def prepare(options: Options) -> Prepared:
    """`image` uint8 (C, H, W) and `label` int64; the classes are the folder names in their order (classes.py)."""
    need_pillow("images")
    look = make_look(options.channels, options.size, options.fit, options.range, options.background)
    if options.frames not in FRAMES:
        raise InputError(f"frames is '{options.frames}'", allowed=", ".join(FRAMES))
    bad = BadRows(options)
    found = find_sound(
        options.path, options, endings(), "pictures", bad, partial(_looked_at, options=options, look=look)
    )
    facts = _read_headers(found, options.frames)
    size = options.size or _common_size(facts)
    if not look.range:
        check_range_in_use((part.called(i), part.open(i)) for part, i in some_of(facts.deep))
    pictures = {"modes": dict(facts.modes), "transparent": facts.transparent, "turned": facts.turned}
    chunk = max(1, min(CHUNK_PICTURES, CHUNK_BYTES // (options.channels * size[0] * size[1])))
    return Prepared(
        {"image": Column("uint8", (options.channels, *size)), "label": Column("int64")},
        rows_of(
            found,
            chunk,
            partial(_pictures, frames=facts.frames, look=look, size=size),
        ),
        {**found.info(_notes(facts, options)), "pictures": pictures},
        {"image": {**picture_record(look, size), "frames": options.frames}, "label": found.label_record()},
        bad=bad,
    )


def _looked_at(part: Part, i: int, options: Options, look: Look) -> Iterator[tuple[tuple[int, int] | None, str]]:
    """Decodes a file as it will be read, and tells the size that all must have, once. InputError: it cannot be used."""
    name = part.called(i)
    with part.open(i) as file:
        header = read_header(file, name)
    if header.frames > 1 and options.frames == "refuse":
        raise InputError(f"{name} holds {header.frames:,} pictures")
    for frame in range(header.frames if options.frames == "all" else 1):
        with part.open(i) as file:
            shape = read_picture(file, name, look, frame).shape
        if not look.size and shape[1:] != (header.height, header.width):
            raise InputError(f"{name} has {shape[1]} x {shape[2]} pixels in picture {frame + 1}")
    yield (None, "") if options.size else ((header.height, header.width), f"{header.height} x {header.width} pixels")


def _read_headers(found: Found, frames: str) -> _Facts:
    """Opens every picture before any is decoded, so that all that is wrong with headers is told at once."""
    facts = _Facts(frames={part.split: np.ones(len(part.numbers), np.int32) for part in found.parts})
    bad: list[Problem] = []
    for part, i, name, header in headers_of(found, read_header, bad):
        size = (header.height, header.width)
        facts.sizes[size] += 1
        facts.first_of_size.setdefault(size, name)
        facts.modes[header.mode] += 1
        facts.transparent += header.transparent
        facts.turned += header.turned
        if header.bits == 16:
            facts.deep.append((part, i))
        if header.frames > 1:
            facts.moving.append(name)
            facts.frames[part.split][i] = header.frames if frames == "all" else 1
    others = []
    if facts.moving and frames == "refuse":
        what = f"{len(facts.moving):,} files hold several pictures: {', '.join(facts.moving[:5])}"
        others = [Problem(what, fix="frames=first takes the first one, frames=all each as a picture of its own")]
    refuse_all(bad, others)
    return facts


def _common_size(facts: _Facts) -> tuple[int, int]:
    """The size that all pictures have. InputError names one of each other size."""
    sizes = iter(facts.first_of_size.items())
    first, _ = next(sizes)
    problems = [
        Problem(
            f"{name} has {size[0]} x {size[1]} pixels, the first picture has {first[0]} x {first[1]}",
            fix=f"resize all of them: size={first[0]}x{first[1]}",
        )
        for size, name in sizes
    ]
    if problems:
        told = ", ".join(f"{count:,} of {h} x {w}" for (h, w), count in facts.sizes.most_common(5))
        raise InputError(*problems[:5], f"there are {len(facts.sizes):,} sizes: {told}")
    return first


def _notes(facts: _Facts, options: Options) -> list[str]:
    """Sentences about what became of unusual pictures."""
    low, high = options.range or (0, 65535)
    deep = sum(count for mode, count in facts.modes.items() if mode.startswith("I"))
    real = facts.modes["F"]
    told = {
        f"{facts.turned:,} pictures were turned upright, as their EXIF says": facts.turned,
        f"{facts.transparent:,} pictures have transparency and lie on {options.background}": facts.transparent,
        f"{deep:,} pictures of 12 or 16 bits were scaled, {low:g} to {high:g} to 0 to 255": deep,
        f"{real:,} pictures of real numbers were scaled to 0 to 255": real,
        f"{len(facts.moving):,} files hold several pictures: frames={options.frames}": len(facts.moving),
    }
    return [sentence for sentence, count in told.items() if count]


def _pictures(
    part: Part, i: int, frames: dict[str, np.ndarray], look: Look, size: tuple[int, int]
) -> Iterator[dict[str, np.ndarray]]:
    name = part.called(i)
    for frame in range(frames[part.split][i]):
        with part.open(i) as file:
            picture = read_picture(file, name, look, frame)
        if picture.shape[1:] != size:
            what = f"{name} has {picture.shape[1]} x {picture.shape[2]} pixels in picture {frame + 1}"
            raise InputError(
                what, allowed=f"{size[0]} x {size[1]}", fix=f"resize all of them: size={size[0]}x{size[1]}"
            )
        yield {"image": picture}


def recognise(path: Path) -> float:
    """A folder or an archive of folders with pictures."""
    return fits(path, endings()) if importlib.util.find_spec("PIL") else 0.0


def advise(path: str, wish: Wish) -> Advice:
    """One size for all, and whether they have colours, for `distdl init`."""
    if wish.options():
        raise InputError(f"{path} holds pictures: the folder of a picture is its class, no column is")
    need_pillow("images")
    facts = _read_headers(find(path, Options(path), endings(), "pictures"), "first")
    look = look_advice(facts.modes, facts.sizes)
    options, because = {"path": path, **look.options}, dict(look.because)
    if facts.moving:
        options["frames"], because["frames"] = "first", f"{len(facts.moving):,} files hold several pictures"
    return Advice(options, because)
