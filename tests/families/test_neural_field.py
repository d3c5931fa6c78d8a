"""The counts, SIREN's derivatives against the chain rule, and its start."""

from __future__ import annotations

import math

import pytest
import torch

from distdl.families.neural_field import Config, NeuralField
from tests.families.common import made, parameters


def test_the_counts() -> None:
    assert parameters("neural_field") == 198_915  # 2-256x4-3
    assert parameters("neural_field", network="fourier", features=128, layers=3, width=64) == 256 * 64 + 64 + 2 * (
        64 * 65
    ) + 3 * (65)


def test_siren_is_two_lines_and_its_gradient_the_chain_rule() -> None:
    learner = made({"family": "neural_field", "width": 9, "layers": 2, "omega": 5.0}).double()
    x = torch.rand(7, 2, dtype=torch.float64) * 2 - 1
    (W1, b1), (W2, b2), (W3, b3) = ((m.weight.detach(), m.bias.detach()) for m in learner.maps)
    z1 = 5 * (x @ W1.T + b1)
    z2 = 5 * (z1.sin() @ W2.T + b2)
    assert torch.allclose(learner.field(x), z2.sin() @ W3.T + b3, atol=1e-12)
    first = 5 * z1.cos().unsqueeze(-1) * W1  # (B, H, 2): dh1/dx
    second = 5 * z2.cos().unsqueeze(-1) * (W2 @ first)  # (B, H, 2)
    assert torch.allclose(learner.gradient(x), W3 @ second, atol=1e-12)


def test_the_laplacian_of_a_single_sine() -> None:
    """d^2 sin(omega (w x + b)) = -omega^2 |w|^2 sin(...)."""
    learner = made({"family": "neural_field", "outputs": 1, "width": 1, "layers": 1, "omega": 3.0}).double()
    with torch.no_grad():
        learner.maps[1].weight.fill_(1.0)
        learner.maps[1].bias.zero_()
    x = (torch.rand(5, 2, dtype=torch.float64) * 2 - 1).requires_grad_()
    slopes = torch.autograd.grad(learner.field(x).sum(), x, create_graph=True)[0]
    laplacian = sum(torch.autograd.grad(slopes[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
    w = learner.maps[0].weight.detach()
    assert torch.allclose(laplacian, -9 * w.square().sum() * learner.field(x)[:, 0], atol=1e-12)


def test_every_layer_of_siren_starts_alike() -> None:
    """Sitzmann et al. 2020, theorem 1.8: the weights' part of a sine's argument has a variance of 1 in every layer. The
    biases, uniform within 1/sqrt(H), add omega^2 / 3H."""
    torch.manual_seed(0)
    learner = NeuralField(Config(width=512, layers=6))
    h, sizes = torch.rand(2000, 2) * 2 - 1, []
    with torch.no_grad():
        for linear in learner.maps[:-1]:
            z = 30 * linear(h)
            sizes.append(float(z.std()))
            h = z.sin()
    assert all(size == pytest.approx(math.sqrt(1 + 900 / (3 * 512)), rel=0.1) for size in sizes[1:])


def test_fourier_features_know_distances_only() -> None:
    """gamma(x) . gamma(y) is a function of x - y: the kernel is stationary (Tancik et al. 2020, eq. 4)."""
    learner = made({"family": "neural_field", "network": "fourier", "features": 32, "scale": 2.0})

    def features(x: torch.Tensor) -> torch.Tensor:
        angles = 2 * math.pi * x @ learner.frequencies.T
        return torch.cat([angles.cos(), angles.sin()], 1)

    x, y, shift = torch.rand(4, 2), torch.rand(4, 2), torch.rand(1, 2)
    before, after = ((features(x + s) * features(y + s)).sum(1) for s in (0 * shift, shift))
    assert torch.allclose(before, after, atol=1e-4)
    rows = []
    learner.maps[0].register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0]))
    learner.field(x)
    assert torch.allclose(rows[0], features(x))
    assert "frequencies" in dict(learner.named_buffers())
