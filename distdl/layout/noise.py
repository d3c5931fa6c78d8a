"""Noise that does not depend on the layout: a pure function of (seed, sample, place in the network).

A random generator per process gives other dropout masks on two workers than on one. Here each bit is a hash of the run's
seed, the sample's position in the endless sample stream, the draw's number within the forward pass, and the element's
index, so the same sample meets the same mask whichever rank, micro-batch or restart it falls into. The hash is murmur3's
32-bit finaliser (Appleby 2011) over counters, as in counter-based generators (Salmon et al. 2011).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.layout import process
from distdl.layout.axes import here


def _int32(unsigned: int) -> int:
    return unsigned - 2**32 if unsigned >= 2**31 else unsigned


_GOLDEN, _MIX1, _MIX2 = _int32(0x9E3779B1), _int32(0x85EBCA6B), _int32(0xC2B2AE35)


class _Scope:
    """Seed, sample positions, the layer and the number of its draws so far, of the forward pass under way."""

    seed: int = 0
    positions: Tensor | None = None
    layer: Tensor = torch.zeros((), dtype=torch.int32)
    """Number of the layer's first draw. A tensor: a compiled block would be compiled again for every other int."""
    draws: int = 0


_scope = _Scope()
process.owns(_scope, seed=0, positions=None, layer=_Scope.layer, draws=0)


def begin(seed: int, positions: Tensor | None) -> None:
    """Says which samples the following draws are for: int64 (B,), or None to end."""
    _scope.seed, _scope.positions = seed, positions
    layer(-1)


@contextlib.contextmanager
def apart(seed: int, positions: Tensor) -> Iterator[None]:
    """Within it draws are for these samples; afterwards those of the forward pass under way go on as if nothing was."""
    before = dict(vars(_scope))
    begin(seed, positions)
    try:
        yield
    finally:
        vars(_scope).clear()
        vars(_scope).update(before)


def layer(index: int) -> None:
    """Numbers the following draws from this layer on, so that a pipeline stage or a recomputed layer draws the same."""
    _scope.layer = torch.tensor((index + 1) << 16, dtype=torch.int32)
    _scope.draws = 0


def active() -> bool:
    """Whether draws know which samples they are for."""
    return _scope.positions is not None


def bits(shape: torch.Size) -> Tensor:
    """Uniform int32 of the given shape, whose leading dimension holds the samples (or a multiple of them: B*k).

    Where the sequence is cut, the next dimension is this rank's slice of it: the draws are those of the same tokens.
    """
    positions = _scope.positions
    assert positions is not None
    _scope.draws += 1
    site = _fmix(_scope.layer + _int32((_scope.seed * 0x9E3779B1 + _scope.draws) & 0xFFFFFFFF))
    high, low = (positions >> 32).int(), positions.int()  # position modulo 2^32: int() keeps the low bits
    keys = _fmix(_fmix(low ^ site) + high * _GOLDEN)  # (B,)
    if shape[0] % len(keys):
        raise ValueError(f"noise of shape {tuple(shape)} for {len(keys)} samples: the first dimension must hold them")
    count = shape.numel() // len(keys)
    first = count * here.sequence.index
    elements = torch.arange(first, first + count, device=positions.device).int()  # modulo 2^32 again
    return _fmix(keys[:, None] + elements * _GOLDEN).view(shape)


def _fmix(x: Tensor) -> Tensor:
    """murmur3's finaliser on int32; the masks make the shifts logical."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * _MIX1
    x = (x ^ ((x >> 13) & 0x7FFFF)) * _MIX2
    return x ^ ((x >> 16) & 0xFFFF)


def uniform(*shape: int, device: torch.device | str | None = None) -> Tensor:
    """Uniform float32 in the open interval (0, 1); the first dimension holds the samples (or a multiple of them)."""
    if not active():
        return torch.rand(shape, device=device).clamp_(2**-25, 1 - 2**-24)
    # 23 bits and a half are exact in float32; the half keeps 0 and 1 out, whose logarithm is asked for.
    return (((bits(torch.Size(shape)) >> 9) & 0x7FFFFF).float() + 0.5) * 2**-23


def normal(*shape: int, device: torch.device | str | None = None) -> Tensor:
    """Standard normal float32, by Box and Muller (1958): sqrt(-2 log u) cos(2 pi v)."""
    if not active():
        return torch.randn(shape, device=device)
    u, v = uniform(*shape), uniform(*shape)
    return (-2 * u.log()).sqrt() * (2 * math.pi * v).cos()


def bernoulli(probability: Tensor) -> Tensor:
    """0 or 1 with the given probability of a 1, in its shape and type; no gradient flows through."""
    with torch.no_grad():
        return (uniform(*probability.shape, device=probability.device) < probability).to(probability.dtype)


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) whose masks are the same on every layout. Input (B, ...) or (B*k, ...)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if not active():
            return F.dropout(x, self.p)
        keep = bits(x.shape) >= int(self.p * 2**32) - 2**31
        return x * keep / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
