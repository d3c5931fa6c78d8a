"""Writes a checkpoint: every rank a part, one rename at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save as to_safetensors
from torch import Tensor

from distdl.checkpoint.layout import (
    FORMAT,
    MANIFEST,
    PREPARATION,
    REMOVING,
    STATE,
    VERSION,
    checksum,
    seal,
    step_folder,
)
from distdl.checkpoint.state import RunState
from distdl.engine.base import Engine
from distdl.errors import TrainingFailed
from distdl.files import sync_folder, write_json
from distdl.run.attempts import Attempt, TakenOver

DRAFT = ".writing-"
"""Begins the name of a checkpoint that is not published yet; the attempt's number follows."""
NO_ATTEMPT = Attempt()
FILE_BYTES = 256 * 2**20
"""A rank starts a new file beyond this; it is also what a rank holds in memory at a time."""


def save(
    folder: Path,
    engine: Engine,
    state: RunState,
    attempt: Attempt = NO_ATTEMPT,
    preparation: Mapping[str, Any] | None = None,
) -> tuple[Path, int]:
    """Collective. Publishes the engine's tensors and `state` as one checkpoint; returns its folder and size in bytes.

    `preparation`: how the data set came from raw values, as `data/preparation.py` records it.

    Raises TrainingFailed on every rank if any rank cannot write (a full disk), or where a newer attempt than `attempt`
    trains the run; older checkpoints stay as they are.
    """
    final = folder / step_folder(state.step)
    draft = folder / f"{DRAFT}{attempt.number}-{final.name}"
    part = _Part(draft, engine.rank)
    if engine.rank == 0:
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir(parents=True)
        except OSError as error:
            part.error = f"{error.strerror or error}"
    _barrier(engine)
    for index, (name, tensor) in enumerate(engine.tensors()):  # collective: no rank may leave this loop early
        holders = engine.holders(name)
        if index % holders.size == holders.index:
            part.add(name, tensor)
    part.flush()
    parts = _everyones(engine, (part.error, part.files, part.tensors))
    errors = [f"rank {rank}: {error}" for rank, (error, _, _) in enumerate(parts) if error]
    if not errors and engine.rank == 0:
        kept = {STATE: state.to_dict()} | ({} if preparation is None else {PREPARATION: dict(preparation)})
        errors = _publish(draft, final, engine, state.step, kept, parts, attempt)
    errors = _everyones(engine, errors)[0] or errors
    if errors:
        if engine.rank == 0:
            shutil.rmtree(draft, ignore_errors=True)
        if words := attempt.taken_over():
            raise TakenOver(words)
        raise TrainingFailed(
            f"the checkpoint of step {state.step} could not be written: {'; '.join(errors)}\n"
            f"    older checkpoints in {folder} are untouched\n    fix: free space or rights there, then start again"
        )
    return final, sum(meta["bytes"] for _, files, _ in parts for meta in files.values())


def remove_drafts(folder: Path) -> None:
    """Takes away what earlier attempts left half-written or half-removed. They may be alive: each draft goes by one rename,
    after which its owner can no longer publish it."""
    for doomed in folder.glob(f"{REMOVING}*"):  # its owner was killed at it, or is at it
        shutil.rmtree(doomed, ignore_errors=True)
    for draft in folder.glob(f"{DRAFT}*"):
        doomed = draft.with_name(f"{REMOVING}{draft.name}")
        with contextlib.suppress(OSError):  # its owner was faster, and what it has published is whole
            draft.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


class _Part:
    """One rank's files. Remembers an error instead of raising it, since the other ranks wait in collectives."""

    def __init__(self, draft: Path, rank: int) -> None:
        self.draft, self.rank = draft, rank
        self.files: dict[str, dict[str, Any]] = {}
        self.tensors: dict[str, dict[str, Any]] = {}
        self.error = ""
        self._held: dict[str, Tensor] = {}
        self._held_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        if self.error:
            return
        self._held[name] = tensor.detach().cpu().clone().contiguous()
        self._held_bytes += tensor.nbytes
        if self._held_bytes >= FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._held or self.error:
            return
        file = f"tensors-{self.rank:05d}-{len(self.files):05d}.safetensors"
        try:
            _write(self.draft / file, to_safetensors(self._held))
            self.files[file] = {"bytes": (self.draft / file).stat().st_size, "xxh3": checksum(self.draft / file)}
        except OSError as error:
            self.error = f"{error.strerror or error}"
        for name, tensor in self._held.items():
            dtype = str(tensor.dtype).removeprefix("torch.")
            self.tensors[name] = {"file": file, "shape": list(tensor.shape), "dtype": dtype}
        self._held, self._held_bytes = {}, 0


def _publish(
    draft: Path,
    final: Path,
    engine: Engine,
    step: int,
    kept: Mapping[str, dict[str, Any]],
    parts: list[Any],
    attempt: Attempt,
) -> list[str]:
    """Writes what is `kept` (file -> plain values) and the manifest, and renames the folder. Returns what went wrong.

    A process may be frozen between the look for a newer attempt and the rename. It can do no harm when it wakes: the newer
    attempt removes all drafts before it chooses what to continue from, so the rename finds nothing; and a rename that came
    first has published a whole checkpoint of this very run.
    """
    try:
        files = {name: meta for _, part, _ in parts for name, meta in part.items()}
        for name, values in kept.items():
            write_json(draft / name, values)
            files[name] = {"bytes": (draft / name).stat().st_size, "xxh3": checksum(draft / name)}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "family": engine.plan.model.family,
            "model": engine.plan.config["model"],  # of a family's file its name: the run may move
            "step": step,
            "files": files,
            "tensors": {name: meta for _, _, part in parts for name, meta in part.items()},
        }
        write_json(draft / MANIFEST, {**manifest, "xxh3": seal(manifest)})
        sync_folder(draft)  # the names of its files, before a rename shows them
        damaged = final.exists()  # the same step again, after a restart from an older checkpoint
        if words := attempt.taken_over():
            return [words]
        if damaged:
            _replace(draft, final)
        else:
            os.rename(draft, final)
        sync_folder(final.parent)
    except OSError as error:
        return [f"rank 0: {error.strerror or error}"]
    return []


def _replace(draft: Path, final: Path) -> None:
    """Puts the draft where a damaged checkpoint is; that one comes back where there is no draft any more."""
    aside = final.with_name(f"{REMOVING}{final.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(final, aside)
    try:
        os.rename(draft, final)
    except OSError:
        os.rename(aside, final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _barrier(engine: Engine) -> None:
    if engine.plan.world > 1:
        dist.barrier()


def _everyones(engine: Engine, value: Any) -> list[Any]:
    """Every rank's value, on every rank. Only our own processes' objects travel here, never a file's content."""
    if engine.plan.world == 1:
        return [value]
    values: list[Any] = [None] * engine.plan.world
    dist.all_gather_object(values, value)
    return values
