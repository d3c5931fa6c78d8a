"""Attention as encoders and decoders use it: to both sides, past padding, and from one sequence to another.

`nn/language.py` has the causal one of language models, whose sequence may be cut over ranks. Here the tensor axis may
share out the heads (`qkv: column/3`, `query: column`, `key_value: column/2`, `out: row`).

A pipeline sends one tensor from stage to stage, and which places are padding must travel with it: `together` makes that
the last feature of the stream, `apart` takes it off.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.layout import noise
from distdl.layout.axes import here
from distdl.nn.watch import MOST_PLACES, shown


class SelfAttention(nn.Module):
    """Every place of a sequence attends to every real one (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.head_width, self.dropout = width // heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, real: Tensor | None = None, causal: bool = False) -> Tensor:
        """x (B, T, D); `real` (B, T) is False where a place is padding; `causal`: no place attends to later ones."""
        B, T, _ = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, -1, self.head_width).permute(2, 0, 3, 1, 4)  # 3 x (B, H, T, D/H)
        y = attend(q, k, v, real, causal, self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, D)


class CrossAttention(nn.Module):
    """Every place of one sequence attends to every real one of another."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.head_width, self.dropout = width // heads, dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, real: Tensor | None = None) -> Tensor:
        """x (B, T, D), memory (B, S, D); `real` (B, S) is False where a place of the memory is padding."""
        (B, T, _), S = x.shape, memory.shape[1]
        q = self.query(x).view(B, T, -1, self.head_width).transpose(1, 2)  # (B, H, T, D/H)
        k, v = self.key_value(memory).view(B, S, 2, -1, self.head_width).permute(2, 0, 3, 1, 4)  # 2 x (B, H, S, D/H)
        y = attend(q, k, v, real, False, self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, D)


def attend(q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, causal: bool, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of this rank's heads. q (B, H, T, d), k and v (B, H, S, d) -> (B, H, T, d)."""
    if not dropout:
        mask = None if real is None else real[:, None, None, :]
        first = None if mask is None else mask[0]
        shown("attention", lambda: {"shares": shares(q[0, :, :MOST_PLACES], k[0], first, causal)})
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return _dropped(shares(q, k, None if real is None else real[:, None, None, :], causal), dropout) @ v


def shares(q: Tensor, k: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) (..., T, S) of q (..., T, d) and k (..., S, d); 0 where `mask` (..., T, S) is False."""
    scores = q @ k.mT * q.shape[-1] ** -0.5  # (..., T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu_(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(-1)


def _dropped(shares: Tensor, p: float) -> Tensor:
    """Dropout of attention (B, H, T, S). Noise is drawn for the heads of all ranks, so that each head meets its own."""
    B, H, T, S = shares.shape
    keep = noise.kept(torch.Size((B, H * here.tensor.size, T, S)), p, shares.device)
    return noise.dropped(shares, keep.narrow(1, H * here.tensor.index, H), p)


def together(x: Tensor, real: Tensor) -> Tensor:
    """(B, T, D) and (B, T) -> (B, T, D + 1)."""
    return torch.cat([x, real[..., None].to(x.dtype)], -1)


def apart(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, D + 1) -> (B, T, D) and bool (B, T)."""
    return x[..., :-1], x[..., -1] > 0.5
