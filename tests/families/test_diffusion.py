"""DDPM against diffusers: the U-Net with its weights copied across, and each step back from noise to data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.families import model_config
from distdl.layout import noise
from tests.families.common import Small, made, parameters, rows_of
from tests.small import prepared

UNET = {"family": "diffusion", "width": 32, "multipliers": [1, 2, 2], "inputs": [3, 16, 16], "attention": [8]}
MLP = {"family": "diffusion", "network": "mlp", "inputs": [1, 8, 8], "steps": 50, "hidden": 24, "width": 8}


def randomised(learner: Any) -> Any:
    """Weights far from their start, and averaged ones that are others again."""
    with torch.no_grad():
        for p in learner.net.parameters():
            p.normal_(0, 0.1)
        for name, buffer in learner.named_buffers():
            if name.startswith("average_"):
                buffer.normal_(0, 0.1)
    return learner


def test_parameter_counts() -> None:
    assert parameters("diffusion") == 35_746_307  # diffusers' UNet2DModel with the configuration of ddpm-cifar10
    layer = (512 * 512 + 512) + (128 * 512 + 512) + 2 * 512
    assert (
        parameters("diffusion", network="mlp", inputs=(1, 8, 8)) == 3 * layer + (64 * 512 + 512) + (513 * 64) + 2 * 512
    )


def peer_unet(dtype: torch.dtype, channels: tuple[int, ...], attention: tuple[bool, ...]) -> Any:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(4)
    peer = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=channels,
        down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attention),
        up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        attention_head_dim=None,
    )
    with torch.no_grad():
        for p in peer.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return peer.to(dtype).eval()


def copy_residual(ours: nn.Module, theirs: Any) -> None:
    pairs = [(ours.norm1, theirs.norm1), (ours.conv1, theirs.conv1), (ours.time, theirs.time_emb_proj)]
    pairs += [(ours.norm2, theirs.norm2), (ours.conv2, theirs.conv2)]
    pairs += [(ours.shortcut, theirs.conv_shortcut)] if theirs.conv_shortcut is not None else []
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict())


def copy_attention(ours: nn.Module, theirs: Any) -> None:
    ours.norm.load_state_dict(theirs.group_norm.state_dict())
    ours.out.load_state_dict(theirs.to_out[0].state_dict())
    for kind in ("weight", "bias"):
        parts = [getattr(part, kind) for part in (theirs.to_q, theirs.to_k, theirs.to_v)]
        getattr(ours.qkv, kind).data.copy_(torch.cat(parts))


def copy_unet(ours: Any, theirs: Any) -> None:
    pairs = [(ours.time[0], theirs.time_embedding.linear_1), (ours.time[2], theirs.time_embedding.linear_2)]
    pairs += [(ours.first, theirs.conv_in), (ours.norm, theirs.conv_norm_out), (ours.last, theirs.conv_out)]
    for parts, blocks, ends in (
        (ours.down, theirs.down_blocks, "downsamplers"),
        (ours.up, theirs.up_blocks, "upsamplers"),
    ):
        todo = iter(parts)
        for block in blocks:
            for place, residual in enumerate(block.resnets):
                mine = next(todo)
                copy_residual(mine[0], residual)
                if hasattr(block, "attentions"):
                    copy_attention(mine[1], block.attentions[place])
            pairs += [(next(todo).conv, end.conv) for end in getattr(block, ends) or ()]
        assert next(todo, None) is None
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict())
    copy_residual(ours.middle[0], theirs.mid_block.resnets[0])
    copy_attention(ours.middle[1], theirs.mid_block.attentions[0])
    copy_residual(ours.middle[2], theirs.mid_block.resnets[1])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_unet_is_diffusers(dtype: torch.dtype, tolerance: float) -> None:
    peer = peer_unet(dtype, (32, 64, 64), (False, True, False))
    ours = made(UNET).to(dtype).net
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in peer.parameters())
    copy_unet(ours, peer)
    x, t = torch.randn(2, 3, 16, 16, dtype=dtype), torch.tensor([3, 700])
    with torch.no_grad():
        expected = peer(x, t).sample
        got = ours(x, t)
    assert float((got - expected).abs().max()) < tolerance * max(1, float(expected.abs().max()))
    assert float(expected.std()) > 0.1 and float((expected[0] - expected[1]).abs().max()) > 0.1


@pytest.mark.parametrize("variance", ["large", "small"])
def test_each_step_back_is_diffusers(variance: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    learner = made({**MLP, "steps": 1000, "variance": variance})
    beta = np.linspace(1e-4, 0.02, 1000)
    peer = diffusers.DDPMScheduler(1000, trained_betas=beta, variance_type=f"fixed_{variance}", clip_sample=True)
    peer.alphas = torch.from_numpy(1 - beta)
    peer.betas, peer.alphas_cumprod, peer.one = 1 - peer.alphas, peer.alphas.cumprod(0), torch.tensor(1.0).double()
    x, eps = torch.randn(2, 3, 1, 8, 8, dtype=torch.float64)
    times = torch.tensor([0, 500, 999])
    assert torch.allclose(learner.diffuse(x, times, eps), peer.add_noise(x, eps, times), atol=1e-12)
    for t in (999, 500, 100, 10, 1, 0):  # some values of x_0 are clipped, others not
        expected = peer.step(eps, t, x, generator=torch.Generator().manual_seed(t)).prev_sample
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        assert torch.allclose(learner.previous(x, t, eps, z), expected, atol=1e-10), t
        single = learner.previous(x.float(), t, eps.float(), z.float())
        assert single.dtype == torch.float32 and torch.allclose(single.double(), expected, atol=1e-5), t


def test_the_loss_is_the_error_of_the_guessed_noise(small_data: Path) -> None:
    learner = randomised(made(MLP))
    batch = rows_of(prepared({"source": "digits"}, small_data), range(40))
    noise.begin(3, batch["position"])
    t = (noise.uniform(40) * 50).long()
    eps = noise.normal(40, 1, 8, 8)
    beta = np.linspace(1e-4, 0.02, 50)
    abar = torch.from_numpy(np.cumprod(1 - beta)).float()[t].view(-1, 1, 1, 1)
    x = abar.sqrt() * (batch["image"].float() / 127.5 - 1) + (1 - abar).sqrt() * eps
    with torch.no_grad():
        expected = F.mse_loss(learner.net(x, t), eps)
        averaged = F.mse_loss(learner.averaged(x, t), eps)
    noise.begin(3, batch["position"])
    assert float(learner.loss(batch, 0)[0].detach()) == pytest.approx(float(expected), abs=1e-5)
    noise.begin(3, batch["position"])
    measured = learner.evaluate(batch)["loss"]
    noise.begin(0, None)
    assert float(measured.total) / measured.count == pytest.approx(float(averaged), abs=1e-5)
    assert abs(float(averaged) - float(expected)) > 1e-3
    assert int(t.min()) >= 0 and int(t.max()) <= 49 and len(t.unique()) > 15


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_averaged_weights(accumulate: int, small_data: Path) -> None:
    """Once a step, whatever the number of its micro-batches: average <- ema * average + (1 - ema) * weights."""
    run = Small("diffusion", small_data, model=MLP | {"ema": 0.7}, train__micro_batch=16 // accumulate)
    expected = {name: p.detach().clone() for name, p in run.learner.net.named_parameters()}
    for _ in range(4):
        for name, p in run.learner.net.named_parameters():  # those that the step begins with
            expected[name] = 0.7 * expected[name] + 0.3 * p.detach()
        run.train(1)
    for name, value in expected.items():
        average = run.learner.get_buffer("average_" + name.replace(".", "_"))
        assert torch.allclose(average, value, atol=1e-6)
        assert not torch.allclose(average, run.learner.net.get_parameter(name), atol=1e-4)


def test_samples_of_a_perfect_denoiser_have_the_datas_distribution() -> None:
    """For data N(0, s^2) the best eps_theta is known: sqrt(1 - abar) x_t / (abar s^2 + 1 - abar). The small and the large
    variance are the bounds of Ho et al. 2020, section 3.2: the spread of what is sampled lies a little to either side."""

    class Perfect(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            abar = learner.abar[t].view(-1, 1).float()
            return (1 - abar).sqrt() * x / (abar * 0.3**2 + 1 - abar)

    for variance, low, high in (("small", 0.28, 0.3), ("large", 0.3, 0.32)):
        model = {**MLP, "inputs": [2], "column": "x", "steps": 300, "beta_last": 0.05, "variance": variance}
        learner = made(model)
        learner.net = Perfect()
        torch.manual_seed(0)
        x = learner.denoised(10000)
        assert x.shape == (10000, 2)
        assert float(x.mean(0).abs().max()) < 0.01 and abs(float(torch.corrcoef(x.T)[0, 1])) < 0.03
        assert low < float(x.std()) < high, variance


def test_dropout_is_on_in_training_alone() -> None:
    learner = randomised(made({**UNET, "dropout": 0.5, "inputs": [3, 8, 8], "attention": []}))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    with torch.no_grad():
        assert torch.equal(learner.net(x, t), learner.net(x, t))
        learner.train()
        assert not torch.allclose(learner.net(x, t), learner.net(x, t))


def test_refused_shapes() -> None:
    with pytest.raises(ValueError, match="try mlp"):
        model_config({"family": "diffusion", "inputs": [1, 28, 28]})
    with pytest.raises(ValueError, match="choose a divisor"):
        model_config({"family": "diffusion", "width": 48})
