"""Pictures as points, views as rays, and the domains of differential equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distdl.data.corpora import rays
from distdl.data.generators import pde, pixels
from distdl.data.prepare import source_names
from distdl.errors import InputError


def splits(prepared: Any) -> dict[str, dict[str, np.ndarray]]:
    """Split -> all its rows."""
    parts: dict[str, list[Any]] = {}
    for name, rows in prepared.chunks:
        parts.setdefault(name, []).append(rows)
    out = {name: {c: np.concatenate([p[c] for p in rows]) for c in rows[0]} for name, rows in parts.items()}
    for rows in out.values():
        told = {name: (column.dtype, column.shape) for name, column in prepared.columns.items()}
        assert {name: (str(a.dtype), a.shape[1:]) for name, a in rows.items()} == told
    return out


def test_they_are_sources() -> None:
    assert {"pde", "pixels", "rays"} <= set(source_names())


def test_pixels_are_the_picture(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (the extra `images` has it)")
    colours = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    image.fromarray(colours).save(tmp_path / "a.png")
    found = splits(pixels.prepare(pixels.Options(str(tmp_path / "a.png"), size=4)))
    assert np.allclose(found["train"]["y"], colours[:, 1:5].reshape(-1, 3) / 255)  # the square in the middle
    assert np.allclose(
        found["train"]["x"][:5], [[-0.75, -0.75], [-0.75, -0.25], [-0.75, 0.25], [-0.75, 0.75], [-0.25, -0.75]]
    )
    assert np.array_equal(found["train"]["y"], found["test"]["y"])
    quarter = splits(pixels.prepare(pixels.Options(str(tmp_path / "a.png"), size=4, held_out=True)))
    assert len(quarter["train"]["x"]) == 4 and len(quarter["test"]["x"]) == 12
    assert np.array_equal(quarter["train"]["y"], found["train"]["y"][[0, 2, 8, 10]])
    for options, words in (
        (pixels.Options(str(tmp_path / "none.png")), "there is no file"),
        (pixels.Options(__file__), "is not a picture"),
        (pixels.Options(size=1), "size is 1"),
    ):
        with pytest.raises(InputError, match=words):
            pixels.prepare(options)


def test_rays_of_an_archive(tmp_path: Path) -> None:
    pictures = np.zeros((5, 2, 3, 4), np.uint8)
    pictures[..., :3], pictures[..., 3] = 51, 102  # a fifth of the light, two fifths opaque
    poses = np.tile(np.eye(4, dtype=np.float32), (5, 1, 1))
    poses[:, 0, 3] = np.arange(5)
    path = str(tmp_path / "views.npz")
    np.savez(path, images=pictures, poses=poses, focal=np.float32(2))
    for premultiplied, expected in ((True, 0.2 + 0.6), (False, 0.2 * 0.4 + 0.6)):
        found = splits(rays.prepare(rays.Options(path, premultiplied=premultiplied, test_every=4)))
        assert np.allclose(found["train"]["rgb"], expected, atol=1e-6)  # before white
        assert sorted(set(found["test"]["origin"][:, 0])) == [0, 4] and len(found["train"]["rgb"]) == 3 * 6
    np.savez(tmp_path / "flat.npz", images=pictures[0], poses=poses, focal=np.float32(2))
    for options, words in (
        (rays.Options("none.npz"), "there is no file"),
        (rays.Options(path, images="colours"), "is no archive of views"),
        (rays.Options(str(tmp_path / "flat.npz")), "holds pictures"),
        (rays.Options(test_every=1), "test_every=1"),
    ):
        with pytest.raises(InputError, match=words):
            splits(rays.prepare(options))


def test_points_of_an_equation() -> None:
    found = splits(pde.prepare(pde.Options("burgers", values=20, collocation=50, near=0.4, grid=5)))
    train, test = found["train"], found["test"]
    kinds = np.bincount(train["kind"])
    assert kinds.tolist() == [20, 50] and np.allclose(train["weight"], np.where(train["kind"] == 0, 70 / 20, 70 / 50))
    inside = train["x"][train["kind"] == 1]
    assert (np.abs(inside[:20, 0]) <= 0.1).all() and np.abs(inside[20:, 0]).max() > 0.5
    edges, known = train["x"][:20], train["u"][:20, 0]
    assert np.allclose(known, np.where(edges[:, 1] == 0, -np.sin(np.pi * edges[:, 0]), 0), atol=1e-12)
    assert len(test["x"]) == 25 and np.mean(test["weight"] * test["u"][:, 0] ** 2) == pytest.approx(1)
    again = splits(pde.prepare(pde.Options("burgers", values=20, collocation=50, near=0.4, grid=5)))
    assert np.array_equal(again["train"]["x"], train["x"])
    box = splits(pde.prepare(pde.Options("navier_stokes", values=30, grid=3)))
    assert set(box["train"]["kind"]) == {1} and len(box["test"]["x"]) == 27
    for options, words in ((pde.Options("heat"), "no equation 'heat'"), (pde.Options("burgers", near=2.0), "near=2.0")):
        with pytest.raises(InputError, match=words):
            pde.prepare(options)


def test_a_latin_hypercube_has_a_point_in_every_part() -> None:
    points = pde.hypercube(np.random.default_rng(0), 40, [(-1.0, 1.0), (0.0, 3.0)])
    for column, (low, high) in zip(points.T, [(-1.0, 1.0), (0.0, 3.0)]):
        assert sorted(((column - low) / (high - low) * 40).astype(int)) == list(range(40))
