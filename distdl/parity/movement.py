"""How each tensor of a run moved, and how far its move is from the reference's.

Loss curves hide what is wrong with a small tensor: a layer norm's gain may take one rank's gradient only, and the loss of
twenty steps shows it in the sixth digit. Its own movement shows it in the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distdl.engine.base import Engine

Tensors = dict[str, Tensor]
KEPT = ("weights/", "buffers/")
EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Gap:
    """How far a tensor is from the reference's."""

    error: float
    """Length of the difference, over that of the reference's."""
    name: str


def held(engine: Engine) -> Tensors:
    """Collective. Copies of the run's weights and buffers in their one-process shapes; each is on one rank in all."""
    found = {}
    for name, tensor in engine.tensors():
        if name.startswith(KEPT) and engine.holders(name).index == 0:
            found[name] = tensor.detach().cpu().clone().contiguous()
    return found


def keep(file: Path, start: Tensors, end: Tensors) -> None:
    """Writes one rank's part."""
    both = {"start": start, "end": end}
    save_file({f"{when}/{name}": t for when, part in both.items() for name, t in part.items()}, file)


def kept(files: list[Path]) -> dict[str, Tensors]:
    """{start, end} of all ranks' parts together."""
    whole: dict[str, Tensors] = {"start": {}, "end": {}}
    for file in files:
        for name, tensor in load_file(file).items():
            when, _, rest = name.partition("/")
            whole[when][rest] = tensor
    return whole


def widest_start(reference: dict[str, Any], result: dict[str, Any]) -> Gap | None:
    """The tensor whose initial values are furthest from the reference's, over their length there; None: there is none."""
    pairs = _pairs(reference["start"], result["start"])
    return max((Gap(_apart(a, b, 0.0), _bare(name)) for name, a, b in pairs), key=_error, default=None)


def widest_gap(reference: dict[str, Any], result: dict[str, Any]) -> Gap | None:
    """The tensor whose movement is furthest from the reference's; None: there is none."""
    return max(gaps(reference, result), key=_error, default=None)


def gaps(reference: dict[str, Any], result: dict[str, Any]) -> list[Gap]:
    """How far the movement of each tensor is from the reference's, over its length there, of two curves with their tensors.
    A tensor that is missing on one side, or has another shape there, is infinitely far."""
    found = []
    for name, end, other_end in _pairs(reference["end"], result["end"]):
        start, other_start = reference["start"].get(name), result["start"].get(name)
        if end is None or not end.is_floating_point():
            error = _apart(end, other_end, 0.0)
        else:
            # Each step rounds a weight to fp32; the roundings of two runs part like random walks.
            rounding = EPS * float(end.double().norm()) * math.sqrt(len(reference["loss"]))
            error = _apart(_move(start, end), _move(other_start, other_end), rounding)
        found.append(Gap(error, _bare(name)))
    return found


def _bare(name: str) -> str:
    """Without what a checkpoint puts before it."""
    return name.partition("/")[2]


def _pairs(one: Tensors, other: Tensors) -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
    for name in sorted(one.keys() | other.keys()):
        yield name, one.get(name), other.get(name)


def _move(start: Tensor | None, end: Tensor | None) -> Tensor | None:
    return None if start is None or end is None or start.shape != end.shape else end.double() - start.double()


def _apart(want: Tensor | None, got: Tensor | None, rounding: float) -> float:
    """Length of the difference beyond the rounding, over that of `want`."""
    if want is None or got is None or want.shape != got.shape:
        return math.inf
    if not want.is_floating_point():
        return 0.0 if torch.equal(want, got) else math.inf
    gap, size = float((want.double() - got.double()).norm()), float(want.double().norm())
    if not math.isfinite(gap):
        return math.inf
    beyond = max(0.0, gap - rounding)
    return 0.0 if beyond == 0.0 else beyond / size if size else math.inf


def _error(gap: Gap) -> float:
    return gap.error
