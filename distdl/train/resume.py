"""From which checkpoint all ranks go on: one, the newest that is sound, though each reads a part of it only.

Nobody reads all of it to find out. Every rank compares what it needs as it comes. One that finds damage goes on with zeros
for as long as others may wait for it; then all of them hear of it, and begin again from the checkpoint before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distdl.checkpoint.load import Checkpoint, latest
from distdl.checkpoint.save import remove_drafts
from distdl.errors import DistdlError, TrainingFailed
from distdl.plan.plan import Plan
from distdl.run.folder import RunFolder


class Unsound(Exception):
    """The checkpoint that the ranks were about to go on from is damaged: some rank has seen it, and all are told."""

    def __init__(self, folder: Path, words: str) -> None:
        super().__init__(words)
        self.folder = folder


def agreed(
    plan: Plan, folder: RunFolder, rank: int, damaged: Mapping[Path, str]
) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint that all ranks continue from. The first rank chooses it for all: a rank that alone saw an older one
    would train on with other optimizer shards and other samples. `damaged`: those that were tried, and what is wrong."""
    checkpoint, warnings = _first(plan, folder, rank, damaged)
    if checkpoint:
        checkpoint.patient = True
    if checkpoint and (words := _other_precision(checkpoint, plan.settings.train.precision)):
        warnings.append(words)
    return checkpoint, warnings


def _first(
    plan: Plan, folder: RunFolder, rank: int, damaged: Mapping[Path, str]
) -> tuple[Checkpoint | None, list[str]]:
    """Collective. What the first rank chooses."""
    if plan.world == 1:
        return chosen(folder, damaged)
    found: list[Any] = [None, [], None]  # path, warnings, error
    checkpoint: Checkpoint | None = None
    if rank == 0:
        try:
            checkpoint, found[1] = chosen(folder, damaged)
            found[0] = str(checkpoint.path) if checkpoint else None
        except DistdlError as error:
            found[2] = str(error)
    device = torch.device("cuda", torch.cuda.current_device()) if plan.device == "cuda" else None
    dist.broadcast_object_list(found, src=0, device=device)
    if found[2]:
        raise TrainingFailed(found[2])
    if rank and found[0]:
        checkpoint = Checkpoint(Path(found[0]), verify=False)
    return checkpoint, found[1]


def chosen(folder: RunFolder, damaged: Mapping[Path, str]) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to continue from. Raises TakenOver in a worker that an older attempt has started again."""
    folder.attempt.check()
    remove_drafts(folder.checkpoints)
    return latest(folder.checkpoints, verify=False, damaged=damaged)


def together(plan: Plan, checkpoint: Checkpoint | None) -> None:
    """Collective, if there is a checkpoint. Raises Unsound on every rank where one has read something damaged of it."""
    if checkpoint is None:
        return
    words = str(checkpoint.damage or "")
    told: list[Any] = [words]
    if plan.world > 1:
        told = [""] * plan.world
        dist.all_gather_object(told, words)
    if found := next(filter(None, told), ""):
        raise Unsound(checkpoint.path, found)


def _other_precision(checkpoint: Checkpoint, precision: str) -> str:
    """What becomes of a checkpoint of a run in another precision, in words, or ''."""
    there = checkpoint.manifest.get("precision", precision)
    if there == precision:
        return ""
    taken = "are in fp64 and are rounded to fp32" if there == "fp64" else "are in fp32 and are taken as they are"
    words = f"the checkpoint is of a run in {there}, and goes on in {precision}: weights and optimizer states {taken}"
    if checkpoint.state.loss_scales and precision != "fp16":
        words += "; its loss scale is of no use here"
    if precision == "fp16":
        words += "; the loss scale begins anew"
    return words
