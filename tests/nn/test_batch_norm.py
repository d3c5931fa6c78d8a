"""Batch normalisation: torch's on one rank, and the same numbers however the batch is cut over ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distdl.nn import batch_norm
from distdl.nn.batch_norm import BatchNorm
from tests.pretended_gpu import PretendedGPU, put
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


def test_weights_that_zero_keeps_in_half_precision_train_and_evaluate() -> None:
    """The statistics stay in fp32."""
    x = torch.randn(16, 3, 4, 4)
    norm, whole = BatchNorm(3), BatchNorm(3)
    norm.weight.data, norm.bias.data = norm.weight.bfloat16(), norm.bias.bfloat16()
    for mode in (True, False):
        out = norm.train(mode)(x.bfloat16())
        assert torch.allclose(out.float(), whole.train(mode)(x.bfloat16().float()), atol=2e-2)
        assert torch.equal(norm.running_var, whole.running_var)
    assert norm.running_var.dtype is torch.float32


def test_gpus_normalise_half_precision_as_it_is_with_statistics_in_fp32() -> None:
    x = torch.randn(16, 3, 4, 4).bfloat16()
    norm, single = BatchNorm(3), BatchNorm(3)
    single(x.float())
    with PretendedGPU() as gpu:
        put([*norm.parameters(), *norm.buffers()], True)
        out = norm(put(x.clone(), True))
    assert out.dtype is torch.bfloat16 and not gpu.wrong and not gpu.reads
    assert torch.allclose(norm.running_mean, single.running_mean, atol=1e-6)


def test_several_gpus_take_the_kernels_of_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    ranks = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_world_size=lambda: 4,
        group=SimpleNamespace(WORLD="world"),
    )
    monkeypatch.setattr(batch_norm, "dist", ranks)
    monkeypatch.setattr(batch_norm.SyncBatchNorm, "apply", lambda x, *rest: asked.append(rest) or x)
    norm, x = BatchNorm(3), torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    with PretendedGPU():
        put([*norm.parameters(), *norm.buffers()], True)
        out = norm(put(x, True))
    assert out is x and asked[0][4:] == (norm.eps, norm.momentum, "world", 4)
    assert asked[0][2] is norm.running_mean and asked[0][3] is norm.running_var


def test_one_value_of_a_channel_is_its_own_mean() -> None:
    """torch refuses it; a last layer of one place and a batch of one are no mistake."""
    norm = fresh()
    before = norm.running_var.clone()
    out, dx, _, dbias = out_and_gradients(norm, batch(0, size=1))
    assert torch.allclose(out[0], norm.bias.detach()) and dx.abs().max() < 1e-12 and dbias.all()
    assert torch.allclose(norm.running_var, before * 0.9)
