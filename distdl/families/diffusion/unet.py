"""The U-Net that diffusion models denoise with (Ho et al. 2020, appendix B; the shape: Ronneberger et al. 2015).

    down: at each size `blocks` residual blocks, each output kept, then half the side
    up:   at each size `blocks` + 1 residual blocks, each fed the kept output of the way down, then twice the side

The time enters every residual block. At the sides in `attention`, and in the middle, self-attention follows each block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.layout.noise import Dropout

EPS = 1e-6  # of the group norms


def time_embedding(t: Tensor, width: int) -> Tensor:
    """(B,) -> (B, width): sines and cosines of frequencies 1 to 1/10,000 (Vaswani et al. 2017)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / (half - 1))
    angles = t[:, None].float() * frequencies  # (B, width/2)
    return torch.cat([angles.sin(), angles.cos()], -1)


class ResidualBlock(nn.Module):
    """x + conv(dropout(silu(norm(conv(silu(norm(x))) + time))))"""

    def __init__(self, n_in: int, n_out: int, time_width: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, n_in, EPS), nn.Conv2d(n_in, n_out, 3, padding=1)
        self.time = nn.Linear(time_width, n_out)
        self.norm2, self.conv2 = nn.GroupNorm(groups, n_out, EPS), nn.Conv2d(n_out, n_out, 3, padding=1)
        self.dropout = Dropout(dropout)
        self.shortcut = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(time)[:, :, None, None]  # (B, C, H, W)
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class Attention(nn.Module):
    """Self-attention of one head over the places of a map, on a residual branch."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, EPS)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x).flatten(2).transpose(1, 2)).chunk(3, -1)  # (B, HW, C) each
        y = self.out(F.scaled_dot_product_attention(q, k, v))  # (B, HW, C)
        return x + y.transpose(1, 2).reshape(x.shape)


class Halve(nn.Module):
    """Half the side by a strided convolution, padded at the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    """Twice the side by repeated pixels and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """x (B, C, H, W), t (B,) -> (B, C, H, W)"""

    def __init__(
        self,
        inputs: tuple[int, ...],
        *,
        width: int,
        multipliers: tuple[int, ...],
        blocks: int,
        attention: tuple[int, ...],
        groups: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.width, time_width = width, 4 * width

        def residual(n_in: int, n_out: int) -> ResidualBlock:
            return ResidualBlock(n_in, n_out, time_width, groups, dropout)

        def attend(channels: int, side: int) -> nn.Module:
            return Attention(channels, groups) if side in attention else nn.Identity()

        self.time = nn.Sequential(nn.Linear(width, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.first = nn.Conv2d(inputs[0], width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        channels, side, kept = width, inputs[1], [width]
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                n_out = multiplier * width
                self.down.append(nn.ModuleList([residual(channels, n_out), attend(n_out, side)]))
                channels = n_out
                kept.append(channels)
            if level < len(multipliers) - 1:
                self.down.append(Halve(channels))
                kept.append(channels)
                side //= 2
        self.middle = nn.ModuleList(
            [residual(channels, channels), Attention(channels, groups), residual(channels, channels)]
        )
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                n_out = multiplier * width
                self.up.append(nn.ModuleList([residual(channels + kept.pop(), n_out), attend(n_out, side)]))
                channels = n_out
            if level:
                self.up.append(Double(channels))
                side *= 2
        self.norm, self.last = nn.GroupNorm(groups, channels, EPS), nn.Conv2d(channels, inputs[0], 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = F.silu(self.time(time_embedding(t, self.width).to(x.dtype)))  # (B, 4 * width)
        h = self.first(x)
        kept = [h]
        for part in self.down:
            h = part[1](part[0](h, time)) if isinstance(part, nn.ModuleList) else part(h)
            kept.append(h)
        before, attention, after = self.middle
        h = after(attention(before(h, time)), time)
        for part in self.up:
            h = part[1](part[0](torch.cat([h, kept.pop()], 1), time)) if isinstance(part, nn.ModuleList) else part(h)
        return self.last(F.silu(self.norm(h)))
