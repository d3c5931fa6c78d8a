"""Figures of what families show of themselves hold the numbers that were spooled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distdl.nn.watch import DRAWINGS
from distdl.track.pictures.arrays import MOST_BYTES, packed, thinned, unpacked
from distdl.track.pictures.draw import draw
from distdl.track.pictures.looks import FIGURES, distances_of, grid_of, hits_of, of_look, plane_of
from distdl.track.spool import SpoolWriter
from tests.track.conftest import spool
from tests.track.test_pictures import Client

DRAWS = np.random.default_rng(0)


def event(drawing: str, *calls: dict[str, np.ndarray], step: int = 3, bits: int = 32) -> dict[str, Any]:
    told = [{name: packed(np.asarray(array, float), bits) for name, array in call.items()} for call in calls]
    return {"kind": "picture", "step": step, "split": "test", "drawing": drawing, "calls": told}


def figure_of(told: dict[str, Any], *before: dict[str, Any]) -> Any:
    ((_, figure),) = of_look(told, before)
    return figure


def test_whatever_is_shown_has_a_figure() -> None:
    assert set(FIGURES) == set(DRAWINGS)
    assert of_look(event("of a later version", {"x": np.zeros(1)}), []) == []


@pytest.mark.parametrize(("bits", "error"), [(32, 0.0), (16, 1e-3), (8, 1 / 509)])
def test_arrays_travel_as_text(bits: int, error: float) -> None:
    values = DRAWS.random((4, 3, 2)).astype(np.float32)
    again = unpacked(packed(values, bits))
    assert again.shape == values.shape and np.abs(again - values).max() <= error
    many = unpacked(packed(np.zeros((100_000, 3)), bits))
    assert 3 * len(many) * bits // 8 <= MOST_BYTES and many.shape[1] == 3, "rows beyond the bound are left out"
    assert thinned(np.zeros((2, 3, 200, 100))).shape == (2, 3, 50, 25)
    with pytest.raises(ValueError, match="no array of ours"):
        unpacked({"type": "|O", "shape": [1], "base64": ""})


def test_a_raster_has_a_dot_for_each_spike() -> None:
    spikes = (DRAWS.random((20, 7)) < 0.2).astype(float)
    axes, other = figure_of(event("spikes", {"spikes": spikes}, {"spikes": 0 * spikes}, bits=8)).axes
    dots = axes.collections[0].get_offsets()
    assert sorted(map(tuple, dots.astype(int).tolist())) == sorted(zip(*map(list, np.nonzero(spikes))))
    assert len(other.collections[0].get_offsets()) == 0
    assert f"{spikes.mean():.2f} spikes" in axes.get_title()


def test_the_map_counts_winners_and_measures_neighbours() -> None:
    assert hits_of(np.array([0, 5, 5, 3.0]), 2, 3).tolist() == [[1, 0, 0], [1, 0, 2]]
    prototypes = np.array([[[0.0], [1.0]], [[4.0], [9.0]]])
    assert distances_of(prototypes).tolist() == [[2.5, 4.5], [4.5, 6.5]]
    pictures = DRAWS.random((2, 3, 1, 4, 4))
    tiles, hits, *_ = figure_of(event("map", {"prototypes": pictures, "winner": np.array([0, 5, 5])})).axes
    assert np.allclose(tiles.images[0].get_array()[:4, :4], pictures[0, 0, 0], atol=1e-6)
    assert hits.images[0].get_array().sum() == 3


def test_grids_have_the_pictures_in_their_order() -> None:
    pictures = DRAWS.random((5, 3, 4, 6))
    page = grid_of(pictures, 3)
    assert page.shape == (9, 20, 3)
    assert np.allclose(page[5:, 7:13], pictures[4].transpose(1, 2, 0)) and (page[5:, 14:] == 1).all(), (
        "white behind them"
    )
    stretched = grid_of(pictures - 0.5, 5, each=True)
    assert stretched[:, :6].min() == 0 and stretched[:, :6].max() == 1
    given, told = DRAWS.random((2, 4, 1, 8, 8))
    axes = figure_of(event("reconstructions", {"given": given, "told": told}, bits=8)).axes[0]
    drawn = axes.images[0].get_array()
    assert np.allclose(drawn[:8, :8], given[0, 0], atol=1e-2) and np.allclose(drawn[9:, 27:], told[3, 0], atol=1e-2)
    rows = figure_of(event("reconstructions", {"given": np.zeros((4, 6)), "told": np.ones((4, 6))})).axes
    assert any(a.get_title() == "told - given" and (a.images[0].get_array() == 1).all() for a in rows)


def test_a_field_has_its_error_and_masks_their_wrong_pixels() -> None:
    place, told, true = DRAWS.random((50, 2)), DRAWS.random((50, 1)), DRAWS.random((50, 1))
    figure = figure_of(event("field", {"place": place, "told": told, "true": true}))
    (error,) = [a for a in figure.axes if a.get_title() == "told - true"]
    assert np.allclose(error.collections[0].get_array(), (told - true)[:, 0], atol=1e-6)
    assert np.allclose(error.collections[0].get_offsets(), place, atol=1e-6)
    mask = np.zeros((2, 4, 4))
    mask[1, 0, 0] = -100  # no class
    wrong = np.zeros((2, 4, 4))
    wrong[0, :2], wrong[1, 0, 0] = 1, 1
    titles = [a.get_title() for a in figure_of(event("masks", {"told": wrong, "true": mask})).axes]
    assert "wrong: 50.0%" in titles and "wrong: 0.0%" in titles


def test_a_view_is_what_its_camera_sees() -> None:
    right, up = np.meshgrid(np.linspace(-0.5, 0.5, 5), np.linspace(-0.5, 0.5, 5))
    direction = np.stack([np.ones(25), right.ravel(), up.ravel()], 1)  # a camera that looks along x; z is up
    at = plane_of(direction * 3.0)
    assert np.allclose(at, np.stack([-right.ravel(), up.ravel()], 1)), "y points to the left of who looks along x"
    colour = DRAWS.random((30, 3))
    origin = np.concatenate([np.zeros((25, 3)), np.ones((5, 3))])
    rays = {"origin": origin, "direction": np.concatenate([direction, direction[:5]]), "told": colour, "true": colour}
    told, true, error = figure_of(event("view", rays)).axes
    assert np.allclose(told.collections[0].get_facecolors()[:, :3], colour[:25], atol=1e-6), "the first camera's rays"
    assert np.allclose(error.collections[0].get_facecolors()[:, :3], 0) and len(true.collections[0].get_offsets()) == 25


def test_returns_and_losses_by_place() -> None:
    earlier, now = event("returns", {"returns": [1.0, 3.0]}, step=1), event("returns", {"returns": [5.0, 7.0]}, step=2)
    axes = figure_of(now, earlier).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[1, 2], [2, 6]], "the means"
    assert sorted(y for dots in axes.collections for _, y in dots.get_offsets().tolist()) == [1, 3, 5, 7]
    losses = figure_of(event("places", {"losses": [[1.0, 2.0], [3.0, 6.0]]})).axes[0].lines[0]
    assert losses.get_xydata().tolist() == [[1, 2], [2, 4]]


@pytest.mark.slow
def test_looks_are_drawn_beside_the_counts_and_once(run_dir: Path) -> None:
    spool(run_dir, range(5))
    writer = SpoolWriter(run_dir / "events.jsonl")
    shares = np.tril(np.ones((2, 6, 6))) / np.arange(1, 7)[:, None]
    for told in (
        event("attention", {"shares": shares}, {"shares": shares[:1]}),
        event("heat: labels over time", {"values": DRAWS.random((4, 9))}),
        event("returns", {"returns": [1.0]}, step=2),
        event("returns", {"returns": [2.0]}),
    ):
        writer.write("picture", **{name: value for name, value in told.items() if name != "kind"})
    writer.close()
    client = Client()
    draw(run_dir, client, "id")
    assert client.images[:4] == [
        *[("attention maps", 3), ("labels over time", 3), ("episode returns", 2), ("episode returns", 3)]
    ]
    assert {"attention_maps.png", "labels_over_time.png", "episode_returns.png"} <= set(client.files)
    assert draw(run_dir, Client(), "id") == ["learning_curves.png"]
