"""Rotary positions (Su et al. 2021): queries and keys are turned by their place, so that their product depends on how far
apart they are.

    (x_i, x_{i + d/2})  is turned by the angle  t f_i,    f_i = theta^(-2i/d),   i = 0 .. d/2 - 1

for a head of width d at the place t. The pairs are the halves of a head, as in GPT-NeoX and in transformers, and not the
neighbours of the paper: weights are the same up to the order of a head's rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

FEW_TURNS, MANY_TURNS = 1.0, 4.0
"""Turns within the tokens that were trained on, up to which a frequency is stretched whole, and from which not at all."""


class Rotary(NamedTuple):
    """How far a place turns a head."""

    width: int
    """Of a head; even."""
    theta: float
    stretch: float = 1.0
    """What low frequencies are divided by, so that a longer text makes no turn that was never seen (Llama 3.1,
    Grattafiori et al. 2024)."""
    trained: int = 8192
    """Tokens of a text before it was stretched."""

    def frequencies(self, like: Tensor) -> Tensor:
        """(d/2,) radians a token."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        i = torch.arange(0, self.width, 2, device=like.device, dtype=dtype)
        f = 1.0 / self.theta ** (i / self.width)
        if self.stretch == 1.0:
            return f
        turns = self.trained * f / (2 * math.pi)
        kept = ((turns - FEW_TURNS) / (MANY_TURNS - FEW_TURNS)).clamp(0, 1)
        return f * ((1 - kept) / self.stretch + kept)

    def turned(self, x: Tensor, place: Tensor) -> Tensor:
        """x (B, H, T, d) of tokens at these places, (T,) or (B, 1, T); in fp32 on the way, as angles of far places need."""
        f = self.frequencies(x)
        angle = place[..., None].to(f.dtype) * f  # (T, d/2) or (B, 1, T, d/2)
        cos, sin = angle.cos(), angle.sin()
        first, second = x.to(f.dtype).chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
