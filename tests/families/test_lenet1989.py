"""The zip-code net: its counts, the paper's arithmetic unit by unit, and how it starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.families.common import made, parameters

NET = {"family": "lenet1989"}


def test_counts_are_the_papers() -> None:
    assert parameters("lenet1989") == 9760
    learner = made(NET)
    parts = {name: sum(p.numel() for p in getattr(learner, name).parameters()) for name in ("h1", "h2", "h3", "head")}
    assert parts == {"h1": 1068, "h2": 2592, "h3": 5790, "head": 310}
    # 256 inputs; a unit's connections are its weights and its bias, shared or not
    assert 256 + 12 * 64 + 12 * 16 + 30 + 10 == 1256
    assert 12 * 64 * (25 + 1) + 12 * 16 * (8 * 25 + 1) + 30 * (192 + 1) + 10 * (30 + 1) == 64660


def unit_by_unit(w: dict[str, np.ndarray], image: np.ndarray) -> np.ndarray:
    """The forward pass in loops, without a convolution or a mask."""

    def patch(plane: np.ndarray, i: int, j: int) -> np.ndarray:
        padded = np.full((plane.shape[0] + 4, plane.shape[1] + 4), -1.0)
        padded[2:-2, 2:-2] = plane
        return padded[2 * i : 2 * i + 5, 2 * j : 2 * j + 5]

    h1 = np.zeros((12, 8, 8))
    for m, i, j in np.ndindex(12, 8, 8):
        h1[m, i, j] = np.tanh((patch(image, i, j) * w["h1.weight"][m]).sum() + w["h1.bias"][m, i, j])
    seen = [range(8), range(4, 12), [0, 1, 2, 3, 8, 9, 10, 11]]
    kernels = w["h2.weight"].reshape(12, 8, 5, 5)
    h2 = np.zeros((12, 4, 4))
    for m, i, j in np.ndindex(12, 4, 4):
        total = sum((patch(h1[source], i, j) * kernels[m, k]).sum() for k, source in enumerate(seen[m // 4]))
        h2[m, i, j] = np.tanh(total + w["h2.bias"][m, i, j])
    h3 = np.tanh(w["h3.weight"] @ h2.reshape(-1) + w["h3.bias"])
    return np.tanh(w["head.weight"] @ h3 + w["head.bias"])


def test_it_is_the_paper_unit_by_unit() -> None:
    learner = made(NET).double()
    with torch.no_grad():
        for p in learner.parameters():
            p.normal_(0, 0.2)  # biases, too
    w = {name: p.detach().numpy() for name, p in learner.named_parameters()}
    images = torch.rand(3, 1, 16, 16, dtype=torch.float64) * 2 - 1
    expected = np.stack([unit_by_unit(w, image[0].numpy()) for image in images])
    assert np.abs(learner.outputs(images).detach().numpy() - expected).max() < 1e-12 and np.ptp(expected) > 0.5
    assert np.abs(learner.float().outputs(images.float()).detach().numpy() - expected).max() < 1e-5


def test_pixels_come_to_minus_one_and_one_and_to_sixteen_a_side() -> None:
    learner = made(NET)
    pixels = torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8)
    assert torch.equal(learner.outputs(pixels), learner.outputs(2 * (pixels.float() / 255) - 1))
    small = torch.rand(4, 1, 8, 8) * 2 - 1
    large = F.interpolate(small, (16, 16), mode="bilinear", align_corners=False)
    assert torch.equal(learner.outputs(small), learner.outputs(large))


def test_the_loss_is_the_squared_error_to_one_at_the_class_and_minus_one_elsewhere() -> None:
    learner = made(NET)
    outputs = torch.tensor([[-1.0] * 10, [0.0] * 10, [0.0] * 10])
    outputs[0, 3] = 1
    outputs[2, 1] = 0.5
    learner.outputs = lambda image: outputs
    batch = {"image": torch.zeros(3, 1, 16, 16), "label": torch.tensor([3, 5, 7]), "id": torch.arange(3)}
    loss, metrics = learner.loss(batch, 0)
    assert float(loss) == pytest.approx((0 + 1 + (9 + 1.5**2) / 10) / 3)
    assert float(metrics["error"].total) == 2 and metrics["error"].count == 3  # a tie is no answer
    assert float(learner.evaluate(batch)["loss"].total) / 30 == pytest.approx(float(loss))


def test_initial_weights_are_as_narrow_as_the_paper_says() -> None:
    learner = made(NET)
    for name, inputs in (("h1", 25), ("h2", 8 * 25), ("h3", 192), ("head", 30)):
        layer = getattr(learner, name)
        bound, weight = 2.4 / inputs, layer.weight.detach()
        largest = float(weight.abs().max())
        assert 0.9 * bound < largest <= bound and float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.15)
        assert not layer.bias.any()
