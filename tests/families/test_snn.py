"""Spiking units against snntorch's, in both directions, and against hand-made trains of spikes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distdl.families.snn import Config, Neurons
from distdl.layout import noise
from tests.families.common import made, parameters

SMALL = {"family": "snn", "inputs": [20], "hidden": [16, 12], "classes": 5, "steps": 25}


def test_counts() -> None:
    assert parameters("snn") == 784 * 256 + 256 + 256 * 10 + 10 == 203_530
    assert parameters("snn", hidden=(512, 512)) == parameters("mlp", hidden=(512, 512)) == 669_706


@pytest.mark.parametrize(
    ("reset", "fires_at"),
    [("subtract", [2, 4, 7, 9, 12, 14]), ("zero", [2, 5, 8, 11, 14])],
)
def test_spikes_of_a_constant_current_by_hand(reset: Any, fires_at: list[int]) -> None:
    """A current of 0.4 without a leak: 0.4, 0.8, 1.2 fires. Subtraction keeps the rest of 0.2, which zero gives away."""
    units = Neurons(Config(steps=15, beta=1.0, reset=reset)).double()
    spikes = units(torch.full((1, 1, 1), 0.4 + 1e-9, dtype=torch.float64))[0, :, 0]
    assert spikes.nonzero().flatten().tolist() == fires_at


def test_potential_of_units_that_never_fire_is_a_leaky_sum() -> None:
    current = torch.randn(3, 7, 2, dtype=torch.float64)
    u = Neurons(Config(steps=7, beta=0.8), fires=False)(current)
    for t in range(7):
        assert torch.allclose(u[:, t], sum(0.8 ** (t - i) * current[:, i] for i in range(t + 1)))


def oracle(learner: Any, x: Tensor, label: Tensor) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Spikes of every layer (T, B, N), the loss, and the gradients of the same weights, by snntorch."""
    snntorch = pytest.importorskip("snntorch", reason="snntorch is not installed (make install with the dev extra)")
    config = learner.config
    curve = {"arctan": snntorch.surrogate.atan(2.0), "fast_sigmoid": snntorch.surrogate.fast_sigmoid(25)}
    told = {"beta": config.beta, "threshold": config.threshold, "spike_grad": curve[config.surrogate]}
    units = [snntorch.Leaky(**told, reset_mechanism=config.reset) for _ in config.hidden]
    silent = config.readout == "potential"
    units.append(snntorch.Leaky(**told, reset_mechanism="none" if silent else config.reset))
    weights = [p.detach().clone().requires_grad_() for p in learner.parameters()]
    maps = [(weights[i], weights[i + 1]) for i in range(0, len(weights), 2)]
    states = [torch.zeros(0) for _ in units]
    trains: list[list[Tensor]] = [[] for _ in units]
    logits = torch.zeros(())
    for _ in range(config.steps):
        signal = x
        for i, unit in enumerate(units):
            signal, states[i] = unit(F.linear(signal, *maps[i]), states[i])
            trains[i].append(signal.detach())
        logits = logits + (states[-1] / config.steps if silent else signal)
    loss = F.cross_entropy(logits, label)
    return [torch.stack(train) for train in trains], loss, list(torch.autograd.grad(loss, weights))


@pytest.mark.parametrize(
    ("reset", "surrogate", "readout"),
    list(itertools.product(["subtract", "zero"], ["arctan", "fast_sigmoid"], ["potential", "spikes"])),
)
def test_dynamics_and_gradient_are_snntorchs(reset: str, surrogate: str, readout: str) -> None:
    learner = made({**SMALL, "reset": reset, "surrogate": surrogate, "readout": readout, "beta": 0.85})
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.mul_(3)  # so that every layer fires
    x, label = torch.rand(8, 20), torch.arange(8) % 5
    loss, _ = learner.loss({"image": x, "label": label}, 0)
    loss.backward()
    trains, expected, grads = oracle(learner, x, label)
    signal = x[:, None]
    for i, (layer, train) in enumerate(zip(learner.layers()[:-1], trains)):
        signal = layer.run(signal)
        assert torch.equal(signal.transpose(0, 1), train), f"layer {i}"
        assert 0.02 < train.mean() < 0.9
    assert abs(loss.item() - expected.item()) < 1e-6
    for ours, theirs in zip(learner.parameters(), grads):
        assert theirs.abs().max() > 1e-5 and (ours.grad - theirs).abs().max() < 1e-6 * max(1, theirs.abs().max())


@pytest.mark.parametrize(("surrogate", "k"), [("arctan", 2.0), ("arctan", 5.0), ("fast_sigmoid", 25.0)])
def test_the_surrogate_is_the_derivative_of_its_smooth_step(surrogate: Any, k: float) -> None:
    """arctan(pi/2 k x) / pi, and x / (1 + k |x|)."""
    x = torch.linspace(-0.7, 0.7, 41, dtype=torch.float64).view(1, 1, -1).requires_grad_()
    config = Config(steps=1, threshold=0.3, surrogate=surrogate, sharpness=k)
    (got,) = torch.autograd.grad(Neurons(config)(x).sum(), x)
    y = (x - 0.3).detach().requires_grad_()
    smooth = torch.atan(torch.pi / 2 * k * y) / torch.pi if surrogate == "arctan" else y / (1 + k * y.abs())
    assert torch.allclose(got, torch.autograd.grad(smooth.sum(), y)[0], atol=1e-12)


def test_a_rate_code_fires_as_often_as_the_pixel_is_bright() -> None:
    learner = made({**SMALL, "code": "rate", "steps": 4000})
    x = torch.linspace(0, 1, 20)[None]
    noise.begin(1, torch.tensor([5]))
    spikes, again = learner.inputs({"image": x}), learner.inputs({"image": x})
    noise.begin(1, torch.tensor([5]))
    same = learner.inputs({"image": x})
    noise.begin(0, None)
    assert spikes.shape == (1, 4000, 20) and set(spikes.unique().tolist()) == {0.0, 1.0}
    assert (spikes.mean(1) - x).abs().max() < 0.03
    assert torch.equal(spikes, same) and not torch.equal(spikes, again)
