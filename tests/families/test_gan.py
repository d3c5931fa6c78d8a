"""The players against an independent DCGAN, the discriminator against its closed form, the score against scikit-learn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.families import load_family, model_config
from distdl.layout import noise
from tests.families.common import made, rows_of
from tests.small import prepared

TINY = {"family": "gan", "inputs": [1, 8, 8], "latent": 5, "generator_width": 6, "discriminator_width": 4}


class Steps:
    """An engine for one process that remembers the gradients it was asked for, and steps by plain SGD."""

    def __init__(self, learner: Any, rates: dict[str, float]) -> None:
        self.players = {name: getattr(learner, name) for name in learner.players}
        self.rates, self.losses = rates, dict.fromkeys(rates, math.nan)
        self.gradients: dict[str, list[Tensor]] = {}

    def minimize(self, loss: Tensor, player: str = "learner") -> None:
        loss.backward()
        self.losses[player] = float(loss.detach())
        parameters = list(self.players[player].parameters())
        self.gradients[player] = [p.grad.clone() for p in parameters]
        assert all(p.grad is None for other in self.players.values() if other is not self.players[player]
                   for p in other.parameters())  # fmt: skip
        with torch.no_grad():
            for p in parameters:
                p -= self.rates[player] * p.grad
                p.grad = None


def peer_generator(z: int, width: int, channels: int) -> nn.Sequential:
    """The generator of Radford et al. 2015 for 64x64, as the well-known example code writes it."""
    layers: list[nn.Module] = []
    for n_in, n_out, stride, padding in (
        (z, 8 * width, 1, 0),
        (8 * width, 4 * width, 2, 1),
        (4 * width, 2 * width, 2, 1),
        (2 * width, width, 2, 1),
    ):
        layers += [
            nn.ConvTranspose2d(n_in, n_out, 4, stride, padding, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(True),
        ]
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False), nn.Tanh())


def peer_discriminator(width: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
    for n in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(n, 2 * n, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * n), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, 1, 0, bias=False))


def count(model: dict[str, Any]) -> tuple[int, int]:
    with torch.device("meta"):
        learner = load_family("gan")(model_config({"family": "gan", **model}))
    return tuple(sum(p.numel() for p in net.parameters()) for net in (learner.generator, learner.discriminator))  # type: ignore[return-value]


def test_parameter_counts() -> None:
    with torch.device("meta"):
        peers = peer_generator(100, 64, 3), peer_discriminator(64, 3)
    assert count({}) == tuple(sum(p.numel() for p in net.parameters()) for net in peers) == (3_576_704, 2_765_568)
    mnist = {"inputs": (1, 28, 28), "latent": 64, "generator_width": 60, "discriminator_width": 32}
    assert count(mnist) == (492_840, 36_544)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_dcgan_is_the_example_code(dtype: torch.dtype, tolerance: float) -> None:
    """Training mode, weights copied across: outputs, running statistics and the evaluation mode that they make."""
    learner = made({"family": "gan", "latent": 10, "generator_width": 4, "discriminator_width": 4}).to(dtype).train()
    peers = peer_generator(10, 4, 3).to(dtype), peer_discriminator(4, 3).to(dtype)
    for ours, theirs in zip((learner.generator, learner.discriminator), peers):
        with torch.no_grad():
            for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
                assert p.shape == q.shape
                p.normal_(0, 0.2)
                q.copy_(p)
    z = torch.randn(6, 10, dtype=dtype)
    real = torch.randn(6, 3, 64, 64, dtype=dtype)
    fake = peers[0](z[:, :, None, None])
    assert (learner.generator(z) - fake).abs().max() < tolerance and float(fake.detach().std()) > 0.05
    expected = [peers[1](x).flatten() for x in (real, fake)]  # one after the other: each is normalised by itself
    got = learner.discriminator(real, fake)
    size = max(float(x.detach().abs().max()) for x in expected)
    assert size > 0.1
    assert all((a - b).abs().max() < tolerance * max(1, size) for a, b in zip(got, expected))
    for net in (learner, *peers):
        net.eval()
    with torch.no_grad():
        assert (learner.made(z) - peers[0](z[:, :, None, None])).abs().max() < tolerance
        assert (learner.discriminator(real)[0] - peers[1](real).flatten()).abs().max() < tolerance * max(1, size)


@pytest.mark.parametrize("side", [8, 12, 28, 32, 64])
def test_dcgan_makes_and_judges_pictures_of_any_such_side(side: int) -> None:
    learner = made({**TINY, "inputs": [2, side, side]})
    fake = learner.made(torch.randn(3, 5))
    assert fake.shape == (3, 2, side, side) and float(fake.abs().max()) <= 1
    assert learner.discriminator(fake)[0].shape == (3,)


@pytest.mark.parametrize("architecture", ["dcgan", "dense"])
def test_one_update_is_the_two_steps_of_the_paper(architecture: str, small_data: Path) -> None:
    """Losses and gradients, with the discriminator's step between them, by plain autograd on copies of the weights."""
    learner, peer = (made({**TINY, "architecture": architecture, "hidden": [7]}).train() for _ in range(2))
    batch = rows_of(prepared({"source": "digits"}, small_data), range(12))
    engine = Steps(learner, {"generator": 0.1, "discriminator": 0.1})
    noise.begin(3, batch["position"])
    z = noise.normal(12, 5)
    noise.begin(3, batch["position"])
    metrics = learner.update(batch, engine, 0)
    noise.begin(0, None)

    real, fake = batch["image"].float() / 127.5 - 1, peer.generator(z)
    d_real, d_fake = (peer.discriminator(x)[0] for x in (real, fake.detach()))
    d_loss = F.binary_cross_entropy_with_logits(d_real, torch.ones(12))
    d_loss = d_loss + F.binary_cross_entropy_with_logits(d_fake, torch.zeros(12))
    d_grads = torch.autograd.grad(d_loss, list(peer.discriminator.parameters()))
    with torch.no_grad():
        for p, g in zip(peer.discriminator.parameters(), d_grads):
            p -= 0.1 * g
    g_loss = F.binary_cross_entropy_with_logits(peer.discriminator(fake)[0], torch.ones(12))
    g_grads = torch.autograd.grad(g_loss, list(peer.generator.parameters()))

    assert float(metrics["loss"].total) == pytest.approx(float(d_loss), abs=1e-6)
    assert engine.losses["generator"] == pytest.approx(float(g_loss), abs=1e-6)
    for name, expected in (("discriminator", d_grads), ("generator", g_grads)):
        for ours, theirs in zip(engine.gradients[name], expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6) and float(theirs.abs().max()) > 0
    assert float(metrics["real_score"].total) / 12 == pytest.approx(float(d_real.sigmoid().mean()), abs=1e-6)
    assert float(metrics["fake_score"].total) / 12 == pytest.approx(float(d_fake.sigmoid().mean()), abs=1e-6)


def test_the_best_discriminator_is_the_share_of_the_data_in_the_density(small_data: Path) -> None:
    """Goodfellow et al. 2014, proposition 1, for N(0, 1) against a fixed generator of N(1, 1/2^2)."""
    task = {"source": "synthetic", "options": {"task": "gaussian", "length": 1, "rows": 20000}}
    rows = rows_of(prepared(task, small_data), range(20000))
    assert float(rows["x"].mean()) == pytest.approx(0, abs=0.03) and float(rows["x"].std()) == pytest.approx(
        1, abs=0.03
    )
    learner = made(
        {"family": "gan", "architecture": "dense", "inputs": [1], "column": "x", "latent": 1, "hidden": [32, 32]}
    )
    learner.generator = nn.Linear(1, 1)
    with torch.no_grad():
        learner.generator.weight.fill_(0.5)
        learner.generator.bias.fill_(1.0)
    optimizer = torch.optim.Adam(learner.discriminator.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)

    class OnlyTheDiscriminator:
        def minimize(self, loss: Tensor, player: str = "learner") -> None:
            if player == "discriminator":
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                decay.step()

    for step in range(800):
        ids = torch.arange(step * 1000, (step + 1) * 1000) % 20000
        batch = {"x": rows["x"][ids], "id": ids, "position": torch.arange(step * 1000, (step + 1) * 1000)}
        noise.begin(7, batch["position"])
        learner.update(batch, OnlyTheDiscriminator(), step)
    noise.begin(0, None)
    x = torch.linspace(-1.5, 2.5, 41)  # where there is enough of either to learn from
    data = torch.distributions.Normal(0.0, 1.0).log_prob(x).exp()
    made_up = torch.distributions.Normal(1.0, 0.5).log_prob(x).exp()
    with torch.no_grad():
        reached = learner.discriminator(x[:, None])[0].sigmoid()
    best = data / (data + made_up)
    assert float((reached - best).abs().mean()) < 0.02 and float((reached - best).abs().max()) < 0.06
    assert float(best.min()) < 0.3 and float(best.max()) > 0.95


def test_the_score_is_the_density_of_scikit_learns_windows(small_data: Path) -> None:
    from sklearn.neighbors import KernelDensity

    learner = made({**TINY, "parzen_samples": 40, "parzen_sigma": 0.7})
    batch = rows_of(prepared({"source": "digits"}, small_data), range(30), "test")
    reached = learner.evaluate(batch)["parzen"]
    windows = learner.made(learner.latents).flatten(1).double().numpy()
    real = batch["image"].flatten(1).double().numpy() / 127.5 - 1
    expected = KernelDensity(bandwidth=0.7).fit(windows).score_samples(real)
    assert reached.count == 30 and float(reached.total) == pytest.approx(expected.sum(), rel=1e-5)
    assert np.ptp(expected) > 1


def test_dense_output_and_refused_shapes() -> None:
    points = {"family": "gan", "architecture": "dense", "inputs": [2], "column": "x", "hidden": [8]}
    z = 100 * torch.randn(50, 100)
    assert float(made({**points, "output": "linear"}).made(z).detach().abs().max()) > 1
    assert float(made(points).made(z).detach().abs().max()) <= 1
    with pytest.raises(ValueError, match="square pictures"):
        model_config({**TINY, "inputs": [1, 8, 12]})
    with pytest.raises(ValueError, match="try dense"):
        model_config({**TINY, "inputs": [1, 9, 9]})
