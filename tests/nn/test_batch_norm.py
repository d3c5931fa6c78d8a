"""Batch normalisation: torch's on one rank, and the same numbers however the batch is cut over ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distdl.nn.batch_norm import BatchNorm
from tests.ranks import run_ranks

CHANNELS = 3


def fresh(seed: int = 0) -> BatchNorm:
    """With gains and shifts that are not 1 and 0."""
    torch.manual_seed(seed)
    norm = BatchNorm(CHANNELS).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    return norm


def batch(step: int, *places: int, size: int = 8) -> Tensor:
    """Channels of unlike means and spreads."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(size, CHANNELS, *places, generator=generator, dtype=torch.float64)
    spread = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64).view(1, -1, *(1,) * len(places))
    return x * spread + 5


def out_and_gradients(norm: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of a loss that weighs every element differently."""
    x = x.clone().requires_grad_()
    out = norm(x)
    weights = torch.linspace(-1, 2, out[0].numel(), dtype=torch.float64).view(out.shape[1:])
    (out.square() * weights).sum().backward()
    assert x.grad is not None
    gradients = [x.grad, *(p.grad for p in norm.parameters())]
    norm.zero_grad()
    return [out.detach(), *(g.clone() for g in gradients if g is not None)]


@pytest.mark.parametrize(("places", "peer_class"), [((), nn.BatchNorm1d), ((4, 5), nn.BatchNorm2d)])
def test_on_one_rank_it_is_torchs(places: tuple[int, ...], peer_class: type[nn.Module]) -> None:
    norm, peer = fresh(), peer_class(CHANNELS).double()
    peer.load_state_dict(norm.state_dict(), strict=False)
    for step in range(3):
        ours, theirs = out_and_gradients(norm, batch(step, *places)), out_and_gradients(peer, batch(step, *places))
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape and (a - b).abs().max() <= 1e-10 * b.abs().max()
        for name in ("running_mean", "running_var"):
            assert torch.allclose(getattr(norm, name), getattr(peer, name), rtol=1e-12, atol=0)
    norm.eval(), peer.eval()
    x = batch(7, *places)
    before = norm.running_mean.clone()
    for a, b in zip(out_and_gradients(norm, x), out_and_gradients(peer, x), strict=True):
        assert (a - b).abs().max() <= 1e-10 * b.abs().max()
    assert torch.equal(norm.running_mean, before)  # evaluations leave the statistics alone


def test_its_gradients_are_those_of_finite_differences() -> None:
    norm = fresh()
    weight, bias = norm.weight.detach(), norm.bias.detach()

    def output(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    x = torch.randn(3, CHANNELS, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(output, [t.requires_grad_() for t in (x, weight, bias)])


def on_this_rank(rank: int, world: int) -> dict[str, Any]:
    """Three training steps on this rank's part; as lists, because results travel as JSON."""
    norm = fresh()
    for step in range(3):
        part = batch(step, 4, 5).chunk(world)[rank]
        out, dx, dweight, dbias = out_and_gradients(norm, part)
    return {
        "out": out.tolist(),
        "dx": dx.tolist(),
        "dweight": dweight.tolist(),
        "dbias": dbias.tolist(),
        "running": [norm.running_mean.tolist(), norm.running_var.tolist()],
    }


@pytest.mark.slow
def test_two_ranks_are_one() -> None:
    (whole,), parts = run_ranks(on_this_rank, 1), run_ranks(on_this_rank, 2)
    for name, join in (("out", torch.cat), ("dx", torch.cat), ("dweight", sum), ("dbias", sum)):
        expected = torch.tensor(whole[name], dtype=torch.float64)
        together = join([torch.tensor(part[name], dtype=torch.float64) for part in parts])
        assert (together - expected).abs().max() <= 1e-10 * expected.abs().max(), name
    assert parts[0]["running"] == parts[1]["running"]
    found = torch.tensor(parts[0]["running"], dtype=torch.float64)
    assert torch.allclose(found, torch.tensor(whole["running"], dtype=torch.float64), rtol=1e-12, atol=0)
    alone = fresh()
    out_of_half = out_and_gradients(alone, batch(2, 4, 5)[:4])[0]
    assert (out_of_half - torch.tensor(whole["out"])[:4]).abs().max() > 1e-3  # each part alone gives other numbers


def test_half_precision_sums_in_single_precision() -> None:
    """Under autocast, whose convolutions put out bf16: the statistics are those of the same numbers in fp32."""
    x = torch.randn(16, 3, 4, 4).bfloat16()
    half, single = BatchNorm(3), BatchNorm(3)
    with torch.autocast("cpu", torch.bfloat16):
        out = half.train()(x)
    assert torch.allclose(out.float(), single.train()(x.float()), atol=1e-6)
    assert torch.equal(half.running_mean, single.running_mean)
