"""Building blocks by name, against torch's and formulas by hand, and that a network learns with each of them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distdl.config import fields
from distdl.nn import blocks
from tests.families.common import Rehearsal, made
from tests.small import contract_config

X = torch.linspace(-3, 3, 24, dtype=torch.float64).view(4, 6)
BY_HAND = {
    "linear": lambda x: x,
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
    "relu": lambda x: x * (x > 0),
    "leaky_relu": lambda x: torch.where(x > 0, x, x / 100),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "silu": lambda x: x / (1 + (-x).exp()),
    "softmax": lambda x: x.exp() / x.exp().sum(1, keepdim=True),
    "maxout": lambda x: torch.maximum(x[:, :3], x[:, 3:]),
}


@pytest.mark.parametrize("name", sorted(blocks.ACTIVATIONS))
def test_activations_by_hand(name: str) -> None:
    assert torch.allclose(blocks.ACTIVATIONS[name]()(X), BY_HAND[name](X), atol=1e-12)


def test_every_word_of_a_config_names_a_block() -> None:
    assert set(get_args(fields.Activation)) < blocks.ACTIVATIONS.keys()
    assert [len(blocks.normalisation(name, 4)) for name in get_args(fields.Norm)] == [0, 1, 1, 1]
    for name in get_args(fields.Init):
        layer = nn.Linear(3, 2)
        blocks.initialise(layer, name)
        assert bool(layer.bias.any()) == (name == "default")


def test_a_maxout_of_maps() -> None:
    x = torch.randn(2, 6, 3, 3)
    assert torch.equal(blocks.Maxout(2)(x), torch.maximum(x[:, :3], x[:, 3:]))


@pytest.mark.parametrize("name", ["none", "batch", "layer", "group", "rms"])
def test_normalisations_of_features_by_hand(name: str) -> None:
    x = torch.randn(16, 12, dtype=torch.float64) * 3 + 1
    y = nn.Sequential(*blocks.normalisation(name, 12, groups=8)).double()(x)

    def normal(x: torch.Tensor, *axes: int) -> torch.Tensor:
        return (x - x.mean(axes, keepdim=True)) / (x.var(axes, unbiased=False, keepdim=True) + 1e-5).sqrt()

    expected = {
        "none": x,
        "batch": normal(x, 0),
        "layer": normal(x, 1),
        "group": normal(x.view(16, 3, 4), 2).view(16, 12),  # four features to each group
        "rms": x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt(),
    }[name]
    assert torch.allclose(y, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("glorot_uniform", 2 / (200 + 300)),
        ("glorot_normal", 2 / (200 + 300)),
        ("he_uniform", 2 / 200),
        ("he_normal", 2 / 200),
        ("lecun_uniform", 1 / 200),
        ("lecun_normal", 1 / 200),
        ("orthogonal", 1 / 300),
    ],
)
def test_initial_weights_have_the_variance_of_their_paper(name: str, variance: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(200, 300)
    blocks.initialise(layer, name)
    assert float(layer.weight.detach().var()) == pytest.approx(variance, rel=0.03) and not layer.bias.any()
    bound = math.sqrt(3 * variance)
    if name.endswith("uniform"):
        assert 0.99 * bound < layer.weight.abs().max() <= bound
    if name == "orthogonal":
        assert torch.allclose(layer.weight.T @ layer.weight, torch.eye(200), atol=1e-4)
    kernel = nn.Conv2d(8, 40, 5)  # 25 places see 8 maps
    blocks.initialise(kernel, name)
    of_kernel = {"glorot": 2 / (200 + 1000), "he": 2 / 200, "lecun": 1 / 200, "orthogonal": 1 / 200}
    assert float(kernel.weight.detach().var()) == pytest.approx(of_kernel[name.split("_")[0]], rel=0.06)


def test_losses_against_torchs_and_by_hand() -> None:
    logits, label = torch.randn(9, 5, dtype=torch.float64), torch.arange(9) % 5
    target = F.one_hot(label, 5).double()
    assert torch.equal(
        blocks.class_losses("cross_entropy", logits, label), F.cross_entropy(logits, label, reduction="none")
    )
    assert torch.allclose(blocks.class_losses("squared", logits, label), (logits - target).square().sum(1))
    hinge = F.multi_margin_loss(logits, label, reduction="none") * 5  # torch divides by the classes
    assert torch.allclose(blocks.class_losses("hinge", logits, label), hinge)
    out, y = torch.randn(9, dtype=torch.float64) * 3, torch.randn(9, dtype=torch.float64)
    for name, theirs in (("squared", F.mse_loss), ("absolute", F.l1_loss), ("huber", F.huber_loss)):
        assert torch.allclose(blocks.value_losses(name, out, y), theirs(out, y, reduction="none"))


def test_dueling_streams_by_hand() -> None:
    torch.manual_seed(1)
    head = blocks.Dueling(4, 6, 3).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    v, a = head.value(x), head.advantage(x)
    q = torch.stack([v[:, 0] + a[:, i] - (a[:, 0] + a[:, 1] + a[:, 2]) / 3 for i in range(3)], 1)
    assert torch.allclose(head(x), q) and torch.allclose(head(x).mean(1), v[:, 0])


ACTIVATIONS = ["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "softmax", "maxout", "linear"]
CHOICES: list[dict[str, Any]] = [
    *({"activation": name, "hidden": [24] if name == "softmax" else [24, 16]} for name in ACTIVATIONS),
    *({"norm": name} for name in ("none", "batch", "layer", "group", "rms")),
    *({"init": name, "norm": "none"} for name in ("glorot_uniform", "he_normal", "lecun_normal", "orthogonal")),
    *({"loss": name} for name in ("cross_entropy", "squared", "hinge")),
]


@pytest.mark.slow
def test_a_perceptron_learns_with_each_of_them(small_data: Path) -> None:
    for choice in CHOICES:
        config = contract_config("mlp", small_data, train__steps=100)
        config["model"] = config["model"] | {"norm": "layer", "hidden": [24, 16], "dropout": 0.0, **choice}
        run = Rehearsal(config)
        run.train(100)
        assert run.evaluate()["accuracy"] > 0.7, (choice, run.evaluate())


@pytest.mark.parametrize("norm", ["none", "batch", "layer", "group"])
def test_a_convolutional_network_of_each_norm(norm: str) -> None:
    net = made(
        {"family": "cnn", "image": [1, 8, 8], "stages": [[4, 3, 2]], "dense": [6], "norm": norm, "init": "he_normal"}
    )
    kinds = {"none": None, "batch": "BatchNorm", "layer": "GroupNorm", "group": "GroupNorm"}
    assert [type(m).__name__ for m in net.net if "Norm" in type(m).__name__] == ([kinds[norm]] if kinds[norm] else [])
    assert net.batch_coupled == (norm == "batch") and (net.net[0].bias is None) == (norm == "batch")


def test_a_loss_of_the_wrong_target_is_refused() -> None:
    for target, loss in itertools.product(("class", "value"), ("cross_entropy", "squared", "absolute")):
        fits = loss == "squared" or (target == "class") == (loss == "cross_entropy")
        model = {"family": "mlp", "inputs": [4], "hidden": [3], "target": target, "loss": loss}
        if fits:
            made(model)
        else:
            with pytest.raises(ValueError, match=f"loss {loss} is not one of a {target}"):
                made(model)
