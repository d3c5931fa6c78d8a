"""Runs that are cut off and continued, with proof that they were: training is deterministic, so that a second attempt that
began anew would end on the same bits as one that went on from a checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from distdl.checkpoint.layout import checkpoints
from distdl.layout.owned import Read
from tests.ranks import run_ranks
from tests.small import trained

DIE_AFTER, SAVED, STEPS = 13, 10, 20
"""The power goes in this step, the last checkpoint before is of that one, and the run would have so many."""

Runs = dict[str, dict[str, Any]]
"""What `trained` takes: name -> {values, folder, copied}."""


def events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """The events of these kinds, of all attempts in their order."""
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] in kinds]


def of_memory(tensors: Mapping[str, Tensor]) -> Read:
    """Reads a state that is held in memory as a checkpoint is read: whole tensors, or a box of one."""
    return lambda name, box=None: tensors[name] if box is None else tensors[name][box.slices]


def learned(folder: Path, attempt: int, rank: int) -> list[int]:
    """The steps that a rank took in an attempt."""
    path = folder / f"samples-{attempt}-{rank}.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def train(world: int, runs: Runs, cut: Runs | None = None, timeout_s: float = 500) -> None:
    """Trains `runs` to their end, and `cut` until the power goes: not before, with one checkpoint to go on from. Of those
    that are the same run, to be continued on several layouts, one is trained, and its folder copied."""
    cut = cut or {}
    if not runs and not cut:
        return
    first: dict[str, str] = {}
    for name, run in cut.items():
        first.setdefault(json.dumps(run["values"], sort_keys=True), name)
    dying = {name: cut[name] | {"die_after": DIE_AFTER} for name in first.values()}
    for ended in run_ranks(trained, world, runs | dying, timeout_s=timeout_s):
        assert ended == dict.fromkeys(runs, "") | dict.fromkeys(dying, "power cut")
    for name, run in cut.items():
        if name not in dying:
            shutil.copytree(cut[first[json.dumps(run["values"], sort_keys=True)]]["folder"], run["folder"])
    folders = {name: run["folder"] for name, run in cut.items()}
    folders |= {f"{name}, copied": run["copied"][1] for name, run in runs.items() if "copied" in run}
    for name, path in folders.items():
        folder = Path(path)
        for rank in range(world):
            assert learned(folder, 0, rank) == list(range(1, DIE_AFTER)), f"{name}, rank {rank}"
        assert checkpoints(folder / "checkpoints")[-1][0] == SAVED, name
        assert events(folder, "restart") == [], name


def go_on(world: int, runs: Runs, timeout_s: float = 500) -> None:
    """Trains runs that `train` has cut to their end; they begin at the step after the checkpoint, on every rank."""
    if not runs:
        return
    for ended in run_ranks(trained, world, runs, timeout_s=timeout_s):
        assert ended == dict.fromkeys(runs, "")
    for name, run in runs.items():
        folder = Path(run["folder"])
        for rank in range(world):
            assert learned(folder, 1, rank) == list(range(SAVED + 1, STEPS + 1)), f"{name}, rank {rank}"
        told = events(folder, "restart", "metrics")
        restarts = [i for i, event in enumerate(told) if event["kind"] == "restart"]
        assert [told[i]["step"] for i in restarts] == [SAVED], name
        every = run["values"]["track"]["every_steps"]
        logged = [event["step"] for event in told[restarts[0] + 1 :]]
        assert logged == list(range(SAVED + every, STEPS + 1, every)), name
