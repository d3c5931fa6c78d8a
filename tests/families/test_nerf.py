"""NeRF's counts, its rendering against closed forms, its encoding and its draws, and the rays of the source."""

from __future__ import annotations

import math

import numpy as np
import torch

from distdl.data.corpora.rays import BALLS, _balls, rays_of
from distdl.families.nerf import Config, Field3D, NeRF, draw, encode, render, weights_of
from tests.families.common import made, parameters


def test_the_counts() -> None:
    assert parameters("nerf") == 1_191_688
    assert parameters("nerf", fine=0) == 595_844


def test_the_layout_is_that_of_the_known_programs() -> None:
    """The shapes of nerf-pytorch's state dict (pts_linears, views_linears, feature, alpha and rgb), the point first."""
    with torch.device("meta"):
        field = Field3D(Config())
    shapes = [tuple(layer.weight.shape) for layer in field.trunk]
    assert shapes == [(256, 63), *[(256, 256)] * 4, (256, 319), (256, 256), (256, 256)]
    heads = [tuple(m.weight.shape) for m in (field.density, field.feature, field.view, field.colour)]
    assert heads == [(1, 256), (256, 256), (128, 283), (3, 128)]


def test_constant_density_gives_the_law_of_beer_and_lambert() -> None:
    lengths = torch.rand(3, 50, dtype=torch.float64)
    density = torch.full((3, 50), 0.7, dtype=torch.float64)
    seen = 1 - torch.exp(-0.7 * lengths.sum(1))
    weights = weights_of(density, lengths)
    assert torch.allclose(weights.sum(1), seen, atol=1e-12)
    ends = lengths.cumsum(1)
    expected = torch.exp(-0.7 * (ends - lengths)) - torch.exp(-0.7 * ends)
    assert torch.allclose(weights, expected, atol=1e-12)
    red = torch.tensor([1.0, 0, 0], dtype=torch.float64).expand(3, 50, 3)
    colour, _ = render(red, density, lengths)
    assert torch.allclose(colour[:, 0], torch.ones(3, dtype=torch.float64), atol=1e-12)  # red, and the white behind it
    assert torch.allclose(colour[:, 1], 1 - seen, atol=1e-12)


def test_nothing_is_white_and_a_wall_hides_what_lies_behind() -> None:
    colour = torch.rand(1, 3, 3)
    assert torch.equal(render(colour, torch.zeros(1, 3), torch.ones(1, 3))[0], torch.ones(1, 3))
    wall, weights = render(colour, torch.tensor([[0.0, 1e9, 5.0]]), torch.ones(1, 3))
    assert torch.allclose(wall, colour[:, 1]) and weights.tolist() == [[0, 1, 0]]


def test_the_encoding() -> None:
    p = torch.tensor([[0.1, -0.2, 0.3]], dtype=torch.float64)
    expected = [*p[0].tolist()]
    for octave in (1, 2, 4):
        expected += [math.sin(octave * v) for v in p[0].tolist()] + [math.cos(octave * v) for v in p[0].tolist()]
    assert np.allclose(encode(p, 3)[0].numpy(), expected, atol=1e-12)


def test_fine_points_lie_where_the_weights_are() -> None:
    edges = torch.linspace(2, 6, 9).expand(1, -1)
    weights = torch.zeros(1, 8)
    weights[0, 2], weights[0, 5] = 3.0, 1.0
    t = draw(edges, weights, (torch.arange(4000) + 0.5)[None] / 4000)
    counts = torch.histc(t, 8, 2, 6) / 4000
    assert torch.allclose(counts, torch.tensor([0, 0, 0.75, 0, 0, 0.25, 0, 0]), atol=2e-3)
    assert t.sort(1).values.equal(t)  # the inverse of a distribution never falls


def test_evaluations_are_without_chance_and_training_is_not() -> None:
    learner = made({"family": "nerf", "layers": 2, "width": 8, "skip": 0, "coarse": 4, "fine": 4})
    rays = torch.randn(3, 3), torch.randn(3, 3)
    with torch.no_grad():
        assert torch.equal(learner.pictures(*rays)[1], learner.pictures(*rays)[1])
        learner.train()
        assert not torch.equal(learner.pictures(*rays)[1], learner.pictures(*rays)[1])


def test_the_point_enters_again_behind_the_skip() -> None:
    x, spread = torch.randn(1, 5, 3), {}
    for skip in (0, 1):
        torch.manual_seed(0)
        field = Field3D(Config(layers=3, width=16, skip=skip, point_frequencies=0))
        with torch.no_grad():
            field.trunk[0].weight.zero_()  # all that the first layer would pass on
            spread[skip] = float(field(x, torch.ones(1, 3))[0].std(1).max())
    assert spread[0] == 0 and spread[1] > 1e-3
    assert NeRF(Config(layers=2, skip=0, fine=0, width=4)).fine is None


def test_rays_go_through_the_pixels() -> None:
    """A camera at z = 4 that looks down on the origin, x to the right and y up."""
    pose = np.eye(4)
    pose[2, 3] = 4
    origin, direction = rays_of(pose, 4, 6, focal=2.0)
    assert np.allclose(origin, [0, 0, 4]) and np.allclose(direction[..., 2], -1)
    assert np.allclose(direction[0, 0], [-2.5 / 2, 1.5 / 2, -1]) and np.allclose(
        direction[3, 5], [2.5 / 2, -1.5 / 2, -1]
    )


def test_the_balls_are_where_they_are_said_to_be() -> None:
    pictures, poses, focal = _balls(4, 65)
    for picture, pose in zip(pictures, poses):
        point = np.linalg.inv(pose) @ [*BALLS[0, :3], 1]
        row, column = 32.5 - focal * point[1] / -point[2], 32.5 + focal * point[0] / -point[2]
        assert (row, column) == (32.5, 32.5)  # every camera looks at the origin, where the red one is
        colour = picture[32, 32]
        assert colour.argmax() in (0, 1, 2) and not np.allclose(colour, 1)
        assert np.allclose(picture[0, 0], 1)
