"""Keeps the newest checkpoints and the best, and removes the rest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from distdl.checkpoint.layout import REMOVING, checkpoints
from distdl.checkpoint.state import glance
from distdl.errors import DataCorrupt


def prune(folder: Path, keep_last: int, keep_best: int, better: Literal["higher", "lower"]) -> list[Path]:
    """Removes every checkpoint that is neither among the newest nor among the best. Returns what was removed.

    What is not what its name says (renamed, or with a state that cannot be read) counts for nothing and is left alone: a
    sound checkpoint must not go in its stead.
    """
    found = [(step, path) for step, path, _ in _sound(folder)]
    keep = {path for _, path in found[-keep_last:]} | set(best(folder, better)[:keep_best])
    removed = [path for _, path in found if path not in keep]
    for path in removed:
        doomed = path.with_name(f"{REMOVING}{path.name}")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return removed


def best(folder: Path, better: Literal["higher", "lower"]) -> list[Path]:
    """Checkpoints whose step was evaluated, best primary metric first; of equals the earlier one first."""
    return [path for _, _, path in ranked(folder, better)]


def ranked(folder: Path, better: Literal["higher", "lower"]) -> list[tuple[float, int, Path]]:
    """The same with their primary metrics (negative where higher is better: the smaller the better) and steps."""
    scored = []
    for step, path, value in _sound(folder):
        if value is not None and value == value:
            scored.append((cost(value, better), step, path))
    return sorted(scored)


def cost(value: float, better: Literal["higher", "lower"]) -> float:
    """A primary metric as what is to be small."""
    return -value if better == "higher" else value


def _sound(folder: Path) -> list[tuple[int, Path, Any]]:
    """(step, path, primary metric) of each checkpoint whose state can be read and is of the step in its name, in order."""
    found = []
    for step, path in checkpoints(folder):
        try:
            said, primary = glance(path)
        except DataCorrupt:
            continue
        if said == step:
            found.append((step, path, primary))
    return found
