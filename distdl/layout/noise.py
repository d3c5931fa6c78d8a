"""Noise that does not depend on the layout: a pure function of (seed, sample, place in the network).

A random generator per process gives other dropout masks on two workers than on one. Here each number is a hash of the run's
seed, the sample's position in the endless sample stream, the draw's number within the forward pass, and the element's
index, so the same sample meets the same mask whichever rank, micro-batch or restart it falls into, as with counter-based
generators (Salmon et al. 2011). Modulo 2^64, and of that the upper bits:

    word(sample, draw, element) = rotated(x) + draw's factor * sample's key * x        x: a number of the element's own

Keys, factors and x come from splitmix64 (Steele et al. 2014); a multiplication and an addition then mix them, as strongly
universal hashing does (Dietzfelbinger 1996). So the x are made once, the keys once a micro-batch, and dropout is four
kernels; on GPUs its mask is one, which makes the x, too.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.layout import process
from distdl.layout.axes import here

_MASK = 2**64 - 1


def _signed(unsigned: int) -> int:
    """The int64 of the same 64 bits."""
    unsigned &= _MASK
    return unsigned - 2**64 if unsigned >= 2**63 else unsigned


_GOLDEN, _MIX1, _MIX2 = (_signed(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mixed(x: int) -> int:
    """splitmix64's finaliser of a number, unsigned."""
    x &= _MASK
    x = (x ^ (x >> 30)) * _MIX1 & _MASK
    x = (x ^ (x >> 27)) * _MIX2 & _MASK
    return x ^ (x >> 31)


def _mix(x: Tensor) -> Tensor:
    """The same of int64; the masks make the shifts logical."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _MIX1
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _MIX2
    return x ^ ((x >> 31) & (2**33 - 1))


class _Scope:
    """Seed, sample positions, the layer and the number of its draws so far, of the forward pass under way."""

    seed: int = 0
    positions: Tensor | None = None
    keys: Tensor | None = None
    """The samples' keys, int64 (B, 1), once a draw has asked for them."""
    first: int = 0
    """Number of the layer's first draw."""
    start: Tensor = torch.zeros((), dtype=torch.int64)
    layer: Tensor = torch.zeros((), dtype=torch.int64)
    """What keys and factors begin with. Tensors: a compiled block would be compiled again for every other int."""
    draws: int = 0


_scope = _Scope()
process.owns(
    _scope, seed=0, positions=None, keys=None, first=0, start=_Scope.start, layer=_Scope.layer, draws=0
)  # fmt: skip


def begin(seed: int, positions: Tensor | None) -> None:
    """Says which samples the following draws are for: int64 (B,), or None to end."""
    if positions is None or positions is not _scope.positions or seed != _scope.seed:
        _scope.keys = None
    _scope.seed, _scope.positions = seed, positions
    _scope.start = torch.tensor(_signed(_start(seed)), dtype=torch.int64)
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
    _scope.first = (index + 1) << 16
    _scope.layer = torch.tensor(_signed(_first_of(_scope.seed, _scope.first)), dtype=torch.int64)
    _scope.draws = 0


def active() -> bool:
    """Whether draws know which samples they are for."""
    return _scope.positions is not None


def bits(shape: Sequence[int]) -> Tensor:
    """Uniform int32 of the given shape, whose leading dimension holds the samples (or a multiple of them: B*k).

    Where the sequence is cut, the next dimension is this rank's slice of it: the draws are those of the same tokens.
    """
    return (_words(shape) >> 32).int()


def uniform(*shape: int, device: torch.device | str | None = None) -> Tensor:
    """Uniform float32 in the open interval (0, 1); the first dimension holds the samples (or a multiple of them)."""
    if not active():
        return torch.rand(shape, device=device).clamp_(2**-25, 1 - 2**-24)
    # 23 bits and a half are exact in float32; the half keeps 0 and 1 out, whose logarithm is asked for.
    return torch.add(_MIDDLE, _words(shape) >> 41, alpha=2**-23)


_MIDDLE = torch.tensor(0.5 + 2**-24)
_zeros: dict[tuple[torch.device, torch.dtype], Tensor] = {}
"""Made once: a number would become a tensor, in a kernel of its own, at every draw."""


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


def kept(shape: torch.Size, p: float, device: torch.device | str | None = None) -> Tensor:
    """True with the probability 1 - p, bool of the given shape, whose first dimension holds the samples."""
    if not active():
        return torch.rand(shape, device=device) >= p
    floor = int(p * 2**32) - 2**31
    assert _scope.positions is not None
    if _scope.positions.is_cuda and not torch.compiler.is_compiling() and (kernel := _mask_kernel()):
        factor, keys, first, count = _draw(shape)
        if (mask := kernel(keys * factor, floor, first, count)) is not None:
            return mask.view(shape)
        _scope.draws -= 1
    return _words(shape) >= (floor << 32)


def dropped(x: Tensor, keep: Tensor, p: float) -> Tensor:
    """x / (1 - p) where it is kept, 0 elsewhere, in two kernels."""
    if (zero := _zeros.get(place := (x.device, x.dtype))) is None or torch.compiler.is_compiling():
        zero = torch.zeros((), dtype=x.dtype, device=x.device)
        if type(zero) is Tensor and not torch.compiler.is_compiling():
            _zeros[place] = zero
    if not x.is_contiguous():  # what comes out lies in memory as x does, such as with channels last
        keep = torch.empty_like(x, dtype=torch.bool).copy_(keep)
    return torch.add(zero, torch.where(keep, x, zero), alpha=1 / (1 - p))


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
        return dropped(x, kept(x.shape, self.p), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


# -- the hash ------------------------------------------------------------------------------------------------------------


def _start(seed: int) -> int:
    return _mixed(seed + _GOLDEN)


def _first_of(seed: int, number: int) -> int:
    """What a draw's factor is the mixture of."""
    return _mixed(_start(seed) + _GOLDEN) + number * _GOLDEN


def _words(shape: Sequence[int]) -> Tensor:
    """Uniform int64 of the given shape."""
    if torch.compiler.is_compiling():
        return _words_to_compile(shape)
    factor, keys, first, count = _draw(shape)
    x, rotated = _elements(first, count, keys.device)
    return torch.addcmul(rotated, keys, x, value=factor).view(shape)


def _draw(shape: Sequence[int]) -> tuple[int, Tensor, int, int]:
    """The next draw's factor, the samples' keys, and which elements of a sample it is for: the first's index, how many."""
    positions = _scope.positions
    assert positions is not None
    _scope.draws += 1
    if _scope.keys is None:
        _scope.keys = _keys(positions, _signed(_start(_scope.seed)))
    factor = _signed(_mixed(_first_of(_scope.seed, _scope.first + _scope.draws)) | 1)
    return factor, _scope.keys, *_places(shape, positions.shape[0])


def _keys(positions: Tensor, start: Tensor | int) -> Tensor:
    return _mix(positions[:, None] * _GOLDEN + start)


def _places(shape: Sequence[int], samples: int) -> tuple[int, int]:
    if shape[0] % samples:
        raise ValueError(f"noise of shape {tuple(shape)} for {samples} samples: the first dimension must hold them")
    count = math.prod(shape) // samples
    return count * here.sequence.index, count


def _words_to_compile(shape: Sequence[int]) -> Tensor:
    """The same for a compiler, which makes one kernel of it and of what the words are for."""
    positions = _scope.positions
    assert positions is not None
    _scope.draws += 1
    factor = _mix(_scope.layer + _signed(_scope.draws * _GOLDEN)) | 1
    x, rotated = _made(*_places(shape, positions.shape[0]), positions.device)
    return (rotated + factor * _keys(positions, _scope.start) * x).view(shape)


def _made(first: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The x of so many elements from the first on, and they with their halves exchanged. int64 (count,) each."""
    # Not multiplied: torch's compiler takes a product of indices for one of addresses, which such numbers are none of.
    x = _mix(torch.arange(first, first + count, device=device) ^ _GOLDEN)
    return x, (x << 32) | ((x >> 32) & (2**32 - 1))


LARGEST = 1 << 22
"""Elements of a sample whose x are kept, 16 bytes each: beyond them (scores of long sequences) they are made every time."""
_tables: dict[torch.device, tuple[Tensor, Tensor]] = {}


def _elements(first: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    end = first + count
    if end > LARGEST:
        return _made(first, count, device)
    table = _tables.get(device)
    if table is None or len(table[0]) < end:
        table = _made(0, 1 << max(end - 1, 1).bit_length(), device)
        if type(table[0]) is Tensor:  # and not one that is only pretended, to look at shapes
            _tables[device] = table
    return table[0][first:end], table[1][first:end]


def _mask_of(keys: Tensor, floor: int, first: int, count: int) -> Tensor:
    x, rotated = _made(first, count, keys.device)
    return (rotated + keys * x) >> 32 >= floor


@functools.cache
def _mask_kernel() -> Callable[[Tensor, int, int, int], Tensor | None] | None:
    """`_mask_of` as one kernel, for any shape; None where there is no GPU. The kernel gives None where it cannot be built:
    then the mask comes of four kernels, with the same bits."""
    if not torch.cuda.is_available():
        return None
    return _OrNone(torch.compile(_mask_of, dynamic=True))


class _OrNone:
    """A compiled function until it fails, then None each time."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function: Callable[..., Any] | None = function

    def __call__(self, *given: Any) -> Any:
        if self.function is None:
            return None
        try:
            return self.function(*given)
        except Exception as error:
            self.function = None
            why = (str(error).splitlines() or [type(error).__name__])[0]
            warnings.warn(
                f"dropout's mask is drawn by four kernels, not one, which could not be built: {why}", stacklevel=2
            )
            return None
