"""Keeps the newest checkpoints and the best, and removes the rest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

from distdl.checkpoint.layout import STATE, checkpoints


def prune(folder: Path, keep_last: int, keep_best: int, better: Literal["higher", "lower"]) -> list[Path]:
    """Removes every checkpoint that is neither among the newest nor among the best. Returns what was removed."""
    found = checkpoints(folder)
    keep = {path for _, path in found[-keep_last:]} | set(best(folder, better)[:keep_best])
    removed = [path for _, path in found if path not in keep]
    for path in removed:
        doomed = path.with_name(f".removing-{path.name}")  # a half-removed folder must not look like a checkpoint
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return removed


def best(folder: Path, better: Literal["higher", "lower"]) -> list[Path]:
    """Checkpoints whose step was evaluated, best primary metric first; of equals the earlier one first."""
    scored = []
    for step, path in checkpoints(folder):
        try:
            value = json.loads((path / STATE).read_text(encoding="utf-8")).get("primary")
        except (OSError, ValueError):
            continue
        if value is not None and value == value:
            scored.append((-value if better == "higher" else value, step, path))
    return [path for _, _, path in sorted(scored)]
