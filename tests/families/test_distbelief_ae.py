"""The cat network's autoencoder: local filters, pooling and normalisation against loops and other operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distdl.families import model_config
from distdl.families.distbelief_ae import Stage, neuron
from tests.families.common import made, parameters

SMALL: dict[str, Any] = {"family": "distbelief_ae", "image": [2, 11, 9], "maps": 3, "field": 4, "pool": 2, "window": 3}


def stage(**changes: Any) -> Stage:
    torch.manual_seed(0)
    config = model_config(SMALL | {"stages": 1} | changes)
    return Stage(config, config.image).double()


def test_a_billion_parameters() -> None:
    of_stages = [183**2 * 8 * 18 * 18 * 3, 162**2 * 8 * 18 * 18 * 8, 141**2 * 8 * 18 * 18 * 8]
    assert [parameters("distbelief_ae", stages=n) for n in (1, 2, 3)] == np.cumsum(of_stages).tolist()
    assert of_stages == [260_410_464, 544_195_584, 412_252_416] and sum(of_stages) == 1_216_858_464
    assert parameters("distbelief_ae", tied=False) == 2 * 1_216_858_464
    with torch.device("meta"):
        assert made({"family": "distbelief_ae"}).stages[2].out == (8, 137, 137)


@pytest.mark.parametrize("stride", [1, 2])
def test_filters_are_local_and_not_shared(stride: int) -> None:
    """Loops over places; and with the same filters everywhere it is a convolution, its reverse the transposed one."""
    layer, x = stage(stride=stride), torch.randn(5, 2, 11, 9, dtype=torch.float64)
    a, weight = layer.filters(x), layer.weight.detach()
    rows, columns = layer.places
    assert a.shape == (5, 3, rows, columns) == (5, 3, (11 - 4) // stride + 1, (9 - 4) // stride + 1)
    back = torch.zeros_like(x)
    for i in range(rows):
        for j in range(columns):
            part = (slice(None), slice(None), slice(i * stride, i * stride + 4), slice(j * stride, j * stride + 4))
            filters = weight[:, :, i * columns + j]  # (M, C * 16)
            assert torch.allclose(a[:, :, i, j], x[part].flatten(1) @ filters.T)
            back[part] += (a[:, :, i, j] @ filters).view(5, 2, 4, 4)
    assert torch.allclose(layer.restore(a), back)
    with torch.no_grad():
        layer.weight.copy_(weight[:, :, :1].expand_as(weight))
    kernel = weight[:, :, 0].view(3, 2, 4, 4)
    assert torch.allclose(layer.filters(x), F.conv2d(x, kernel, stride=stride))
    grown = F.conv_transpose2d(a, kernel, stride=stride)
    assert torch.allclose(layer.restore(a)[..., : grown.shape[2], : grown.shape[3]], grown)


def test_another_matrix_restores_where_filters_are_not_tied() -> None:
    layer, x = stage(tied=False), torch.randn(2, 2, 11, 9, dtype=torch.float64)
    assert layer.decoder is not None and torch.equal(layer.decoder, layer.weight)
    same = layer.restore(layer.filters(x))
    with torch.no_grad():
        layer.decoder.mul_(2)
    assert torch.allclose(layer.restore(layer.filters(x)), 2 * same)


def test_pooling_by_hand() -> None:
    layer, a = stage(), torch.randn(4, 3, 8, 6, dtype=torch.float64)
    p = layer.pooled(a)
    assert p.shape == (4, 3, 7, 5) and layer.out == p.shape[1:]
    for i in range(7):
        for j in range(5):
            assert torch.allclose(p[..., i, j], (1e-4 + a[..., i : i + 2, j : j + 2].square().sum((-1, -2))).sqrt())
    assert torch.allclose(stage(pool=1).pooled(a), a.abs(), atol=0.01)


def test_contrast_normalisation_by_hand() -> None:
    layer = stage()
    p = torch.rand(2, 3, 6, 5, dtype=torch.float64)
    bell = np.exp(-(np.array([-1.0, 0, 1]) ** 2) / (2 * 0.75**2))

    def around(values: np.ndarray) -> np.ndarray:
        out = np.zeros((2, 6, 5))
        for i in range(6):
            for j in range(5):
                total = weight = 0.0
                for u in range(max(0, i - 1), min(6, i + 2)):
                    for v in range(max(0, j - 1), min(5, j + 2)):
                        w = bell[u - i + 1] * bell[v - j + 1]
                        total, weight = total + w * values[:, :, u, v].mean(1), weight + w
                out[:, i, j] = total / weight
        return out[:, None]

    g = p.numpy() - around(p.numpy())
    expected = g / np.maximum(0.01, np.sqrt(around(g**2)))
    assert np.allclose(layer.normalised(p).numpy(), expected, atol=1e-6)
    assert torch.allclose(
        layer.normalised(7 * p + 3), layer.normalised(p), atol=1e-9
    )  # neither brightness nor contrast
    assert float(layer.normalised(torch.ones_like(p)).abs().max()) < 1e-6


def test_the_loss_is_that_of_all_stages() -> None:
    learner = made(SMALL | {"stages": 2, "sparsity": 0.3})
    image = torch.randint(0, 256, (6, 2, 11, 9), dtype=torch.uint8)
    x = learner.picture({"image": image})
    assert torch.allclose(x.mean((1, 2, 3)), torch.zeros(6), atol=1e-6)
    assert torch.allclose(x.square().mean((1, 2, 3)), torch.ones(6), atol=1e-5)
    expected = 0.0
    for layer in learner.stages:
        a = layer.filters(x)
        expected += ((layer.restore(a) - x).square().sum() + 0.3 * layer.pooled(a).sum()).item() / x.numel()
        x = layer.normalised(layer.pooled(a))
    loss, metrics = learner.loss({"image": image}, 0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert metrics.keys() == {"squared_error_1", "pooled_1", "squared_error_2", "pooled_2"}
    loss.backward()
    assert all(p.grad.abs().max() > 0 for p in learner.parameters())
    assert torch.allclose(learner.outputs({"image": image}), x.flatten(1), atol=1e-5)


def test_the_best_neuron_is_found_by_its_threshold() -> None:
    draw = torch.Generator().manual_seed(0)
    wanted = torch.rand(400, generator=draw) < 0.2
    outputs = torch.randn(400, 9, generator=draw)
    outputs[:, 4] = wanted * 2.0 + 0.5 * outputs[:, 4]
    found, threshold = neuron(outputs, wanted)
    right = ((outputs[:, found] > threshold) == wanted).float().mean()
    brute = max(((outputs > t) == wanted[:, None]).float().mean(0)[4] for t in outputs[:, 4])
    assert found == 4 and 0.5 < threshold < 1.5 and right == brute > 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [({"window": 4}, "an odd one"), ({"stages": 3}, "nothing is left for stage 3"), ({"field": 10}, "for stage 1")],
)
def test_configs_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_config(SMALL | change)
