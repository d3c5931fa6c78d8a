"""How each tensor of a run moved, and how far its move is from the reference's.

Loss curves hide what is wrong with a small tensor: a layer norm's gain may take one rank's gradient only, and the loss of
twenty steps shows it in the sixth digit. Its own movement shows it in the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distdl.engine.base import Engine

Tensors = dict[str, Tensor]
KEPT = ("weights/", "buffers/")
EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Gap:
    """The tensor whose movement is furthest from the reference's."""

    error: float
    """Length of the difference of the two moves, over that of the reference's move."""
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


def widest_gap(reference: dict[str, Tensors], result: dict[str, Tensors], steps: int) -> Gap | None:
    """The furthest of all tensors; None where there are none."""
    return max(gaps(reference, result, steps), key=lambda gap: gap.error, default=None)


def gaps(reference: dict[str, Tensors], result: dict[str, Tensors], steps: int) -> list[Gap]:
    """That of every tensor. One that is missing on one side, or has another shape there, is infinitely far."""
    found = []
    for name in sorted(reference["end"].keys() | result["end"].keys()):
        parts = [run[when].get(name) for run in (reference, result) for when in ("start", "end")]
        found.append(Gap(_error(parts, steps), name.partition("/")[2]))
    return found


def _error(parts: list[Tensor | None], steps: int) -> float:
    start, end, other_start, other_end = parts
    if start is None or end is None or other_start is None or other_end is None or end.shape != other_end.shape:
        return math.inf
    if not end.is_floating_point():
        return 0.0 if torch.equal(end, other_end) else math.inf
    move, other_move = end.double() - start.double(), other_end.double() - other_start.double()
    gap, size = float((move - other_move).norm()), float(move.norm())
    if not math.isfinite(gap):
        return math.inf
    # Each step rounds a weight to fp32; the roundings of two runs differ like steps of a random walk.
    beyond = gap - EPS * float(end.double().norm()) * math.sqrt(steps)
    return beyond / size if beyond > 0 and size > 0 else (math.inf if beyond > 0 else 0.0)
