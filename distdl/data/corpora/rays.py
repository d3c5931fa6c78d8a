"""Rays of light: a row for each pixel of pictures of one scene that were taken from known places.

A path names a NumPy archive as NeRF's `tiny_nerf` has it: pictures (V, H, W, 3 or 4), `poses` (V, 4, 4), the matrices from
the camera to the world, and `focal`, in pixels. A fourth channel is opacity, and the picture lies before white; its colours
are multiplied by the opacity already where `premultiplied`. A camera looks along its -z axis, y is up.

Without a path it is a scene made by formulas: three balls that shine by themselves, before white.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows
from distdl.errors import InputError

DAMAGED = (ValueError, OSError, EOFError, KeyError)
BALLS = np.array(  # centre, radius, colour
    [[0, 0, 0, 0.8, 0.9, 0.3, 0.2], [0.9, 0.5, 0.4, 0.5, 0.2, 0.7, 0.3], [-0.5, -0.8, 0.6, 0.45, 0.2, 0.3, 0.9]]
)


@dataclass(frozen=True)
class Options:
    """Options of the source `rays`."""

    path: str = ""
    """The archive (.npz); without it, three balls."""
    images: str = "images"
    """Its array of pictures, uint8 or from 0 to 1."""
    premultiplied: bool = False
    """Whether the colours are multiplied by the opacity already."""
    test_every: int = 10
    """Every so-manieth view is held out as the split `test`, the first one first."""
    validation: bool = False
    """The view behind each of those is held out, too, as the split `validation`."""
    views: int = 40
    """Views of the three balls, spread evenly over the upper half of a sphere of radius 4."""
    size: int = 32
    """Pixels of a side of these views."""


def prepare(options: Options) -> Prepared:
    """`origin` and `direction` float32 (3,), the direction such that its z in the camera is -1, and `rgb` float32 (3,)."""
    if options.test_every < 2 + options.validation or min(options.views, options.size) < 2:
        what = f"test_every={options.test_every} views={options.views} size={options.size}"
        raise InputError(what, allowed="2 or more each" + (", and test_every=3 or more" * options.validation))
    pictures, poses, focal = _read(options) if options.path else _balls(options.views, options.size)
    columns = {name: Column("float32", (3,)) for name in ("origin", "direction", "rgb")}
    return Prepared(columns, _chunks(options, pictures, poses, focal))


def _chunks(options: Options, pictures: np.ndarray, poses: np.ndarray, focal: float) -> Iterator[tuple[str, Rows]]:
    for view, (picture, pose) in enumerate(zip(pictures, poses)):
        height, width = picture.shape[:2]
        origin, direction = rays_of(pose, height, width, focal)
        rgb = np.float32(picture) / (255 if picture.dtype == np.uint8 else 1)
        if picture.shape[2] == 4:
            colour, opacity = rgb[..., :3], rgb[..., 3:]
            rgb = (colour if options.premultiplied else colour * opacity) + 1 - opacity
        rows = {"origin": origin, "direction": direction, "rgb": rgb}
        rows = {name: np.ascontiguousarray(a.reshape(-1, 3), np.float32) for name, a in rows.items()}
        place = view % options.test_every
        yield "test" if place == 0 else "validation" if place == 1 and options.validation else "train", rows


def rays_of(pose: np.ndarray, height: int, width: int, focal: float) -> tuple[np.ndarray, np.ndarray]:
    """Origins and directions, (H, W, 3) each, of the rays through the pixels' middles."""
    row, column = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    camera = np.stack([(column - width / 2) / focal, (height / 2 - row) / focal, -np.ones_like(row)], -1)  # (H, W, 3)
    direction = camera @ pose[:3, :3].T
    return np.broadcast_to(pose[:3, 3], direction.shape), direction


def _read(options: Options) -> tuple[np.ndarray, np.ndarray, float]:
    if not Path(options.path).is_file():
        raise InputError(f"there is no file {options.path}", fix="check the path")
    try:
        with np.load(options.path, allow_pickle=False) as archive:  # a pickle may run code
            pictures, poses, focal = archive[options.images], archive["poses"], float(archive["focal"])
    except DAMAGED as error:
        raise InputError(f"{options.path} is no archive of views: {error}") from error
    if pictures.ndim != 4 or pictures.shape[3] not in (3, 4) or poses.shape != (len(pictures), 4, 4):
        shapes = f"pictures {list(pictures.shape)} and poses {list(poses.shape)}"
        raise InputError(f"{options.path} holds {shapes}", allowed="[V, H, W, 3 or 4] and [V, 4, 4]")
    return pictures, poses, focal


def _balls(views: int, size: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Views from a golden spiral: each pixel has the colour of the nearest ball that its ray meets, dimmed to the rim."""
    height = (np.arange(views) + 0.5) / views  # of the camera over the ground, as sines
    around = np.arange(views) * np.pi * (3 - np.sqrt(5))
    level = np.sqrt(1 - height**2)
    places = 4 * np.stack([level * np.cos(around), level * np.sin(around), height], 1)  # (V, 3)
    poses, pictures = np.tile(np.eye(4), (views, 1, 1)), np.ones((views, size, size, 3), np.float32)
    for view, place in enumerate(places):
        back = place / 4
        right = np.cross([0, 0, 1.0], back)
        right /= np.linalg.norm(right)
        poses[view, :3, :4] = np.stack([right, np.cross(back, right), back, place], 1)
        pictures[view] = _look(*rays_of(poses[view], size, size, 1.4 * size))
    return pictures, poses, 1.4 * size


def _look(origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Colours (H, W, 3) of rays, by the quadratic equation of a ray and a ball."""
    direction = direction / np.linalg.norm(direction, axis=-1, keepdims=True)
    colours, nearest = np.ones_like(direction), np.full(direction.shape[:-1], np.inf)
    for *centre, radius, red, green, blue in BALLS:
        to = origin - np.array(centre)
        middle = -(to * direction).sum(-1)  # where the ray is nearest to the centre
        inside = radius**2 - (to * to).sum(-1) + middle**2
        reach = np.sqrt(np.maximum(inside, 0))
        seen = (inside > 0) & (middle - reach < nearest)
        nearest[seen] = (middle - reach)[seen]
        colours[seen] = (0.4 + 0.6 * reach[seen] / radius)[:, None] * np.array([red, green, blue])
    return colours
