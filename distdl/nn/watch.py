"""What an evaluation has at hand, told to who looks on: answers beside what they should have been, where metrics are made
of them, and whatever else a family can be seen in.

with watching(see, show):
    evaluate(...)          see("classes", logits (B, K), label (B,)), see("numbers", told (B,), true (B,))
                           show("filters", lambda: {"filters": weight})

with as_written():
    learner(...)           no compiled function: hooks see what each module puts out

What can be drawn, by name, and of which arrays; `NAME: TITLE` gives the picture a title of its own:

samples          made (N, ...): what the family makes by itself
reconstructions  given, told (N, ...), and `damaged` where that is what it saw
masks            told, true (N, H, W), and the `picture` (N, C, H, W) that they are of
map              prototypes (R, C, ...) in their places, winner (N,) the number of each row's
filters          filters (K, C, h, w) of the first layer
attention        shares (H, T, S) of one row, layer by layer
spikes           spikes (T, N) of one row, 0 or 1, layer by layer
field            place (N, D), told, true (N, K)
view             origin, direction (N, 3) of rays, told, true (N, 3) their colours
series           told, true (T, K) of one row
returns          returns (N,) of episodes
places           losses (N, T) by the place in a row
beside           told, true (N, K), anything that is one number beside another
heat             values (H, W), anything that is a matrix
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

See = Callable[[str, Tensor, Tensor], None]
Arrays = Callable[[], Mapping[str, Tensor]]
Show = Callable[[str, Arrays], None]

DRAWINGS = (
    *("samples", "reconstructions", "masks", "map", "filters", "attention", "spikes", "field", "view", "series"),
    *("returns", "places", "beside", "heat"),
)
FEW = 16
"""Samples, or rows, of which there is a picture each."""
MOST_PLACES = 48
"""Of a sequence, of which attention is drawn."""
COLOURS = (1, 3)
"""Channels of what can be looked at."""

_see: See | None = None
_show: Show | None = None
_as_written = False


@contextlib.contextmanager
def watching(see: See, show: Show | None = None) -> Iterator[None]:
    """Within it, `see` is told of every answer of this process that is measured, and `show` of what can be drawn."""
    global _see, _show
    before, (_see, _show) = (_see, _show), (see, show)
    try:
        yield
    finally:
        _see, _show = before


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Within it, this process goes through its functions as they were written, where some are compiled."""
    global _as_written
    before, _as_written = _as_written, True
    try:
        yield
    finally:
        _as_written = before


def looked_at() -> bool:
    """Whether someone looks on, from whom a compiled function would hide what happens within it."""
    return _as_written or _see is not None or _show is not None


def seen(kind: str, told: Tensor, true: Tensor) -> None:
    """Tells who looks on, if anyone does."""
    if not torch.compiler.is_compiling() and _see is not None:
        _see(kind, told.detach(), true)


def shown(drawing: str, arrays: Arrays) -> None:
    """Tells who looks on, if anyone does. `arrays` are made only if they are wanted, then on every rank alike.

    Compiled code shows nothing, and does not ask whether someone looks on: it would be compiled again for either answer.
    """
    if not torch.compiler.is_compiling() and _show is not None:
        _show(drawing, arrays)


def as_filters(weight: Tensor, inputs: Sequence[int]) -> Tensor:
    """The weights of the first units of a layer, each in the shape of the inputs that it sees; none of a weight that lies
    on other ranks (ZeRO-3)."""
    some = weight[: 4 * FEW]
    return some.view(len(some), *inputs)


def show_filters(module: nn.Module, drawing: str = "filters") -> None:
    """Those of the first convolution, where it sees a picture."""
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None and first.in_channels in COLOURS and max(first.kernel_size) > 1:
        shown(drawing, lambda: {"filters": first.weight})
