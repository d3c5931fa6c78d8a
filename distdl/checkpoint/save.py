"""Writes a checkpoint, beside the training: every rank a part, one rename at the end."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distdl.checkpoint import stream
from distdl.checkpoint.layout import (
    FORMAT,
    MANIFEST,
    PREPARATION,
    REMOVING,
    STATE,
    VERSION,
    checksum,
    entry_name,
    numbers_in,
    seal,
    step_folder,
)
from distdl.checkpoint.state import RunState
from distdl.checkpoint.stream import whole, write_safetensors
from distdl.engine.base import Engine
from distdl.errors import TrainingFailed
from distdl.files import sync_folder, write_json
from distdl.layout import boxes
from distdl.layout.owned import Owned
from distdl.run.attempts import Attempt, TakenOver

DRAFT = ".writing-"
"""Begins the name of a checkpoint that is not published yet; the attempt's number follows."""
NO_ATTEMPT = Attempt()
FILE_BYTES = 256 * 2**20
"""A rank starts a new file beyond this; it is also what a rank holds in memory at a time where it does not write beside the
training."""
POLL_S = 0.05
"""Between two looks of the first rank for the others' parts."""


def save(
    folder: Path,
    engine: Engine,
    state: RunState,
    attempt: Attempt = NO_ATTEMPT,
    preparation: Mapping[str, Any] | None = None,
) -> tuple[Path, int]:
    """Collective. Publishes the engine's tensors and `state` as one checkpoint; returns its folder and size in bytes. See
    `Saving`, and `Saving.finish` for what it raises."""
    return Saving(folder, engine, state, attempt, preparation).finish()


class Copies:
    """Host memory for a rank's part of a checkpoint. It is kept from one to the next: writing to pages that are there is
    three times as fast as asking for new ones, and a GPU copies to pinned ones at the speed of its bus.

    The host waits for no copy from a GPU while they are queued. They are on the stream that training goes on by, and not on
    one of their own: so the next step changes no weight before its copy is over, and what a weight was gathered into is
    given to the next one then, too, where a second stream would hold the whole model once more.
    """

    def __init__(self, pinned: bool = False) -> None:
        self._pinned, self._kept = pinned, dict[str, Tensor]()

    def of(self, name: str, tensor: Tensor) -> Tensor:
        """A copy, contiguous, valid until the next one of this name; that from a GPU is whole when `arrived` says so."""
        kept = self._kept.get(name)
        if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._pinned)
            self._kept[name] = kept
        return kept.copy_(tensor.detach(), non_blocking=self._pinned)

    def arrived(self, groups: list[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """These, once every copy that was asked for is whole: who takes the first one waits, once, for all of them."""
        event = torch.cuda.current_stream().record_event() if self._pinned else None

        def whole_groups() -> Iterator[dict[str, Tensor]]:
            if event is not None:
                event.synchronize()
            yield from groups

        return whole_groups()


class Saving:
    """A checkpoint under way. What is made on every rank at once: the copy of its tensors. What follows needs no rank's
    training: each writes its part, and the first publishes the whole once it has heard of every part.

    A part is told of through the store of the process group, which is neither a collective of the training's groups nor a
    look into a folder, which a network file system may answer from memory for a minute.
    """

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        state: RunState,
        attempt: Attempt = NO_ATTEMPT,
        preparation: Mapping[str, Any] | None = None,
        copies: Copies | None = None,
    ) -> None:
        """Collective. `copies`: to write beside the training; without, this returns when the part is on disk.
        `preparation`: how the data set came from raw values, as `data/preparation.py` records it."""
        self.state, self.final = state, folder / step_folder(state.step)
        self._engine, self._attempt = engine, attempt
        self._kept = {STATE: state.to_dict()} | ({} if preparation is None else {PREPARATION: dict(preparation)})
        self._draft = folder / f"{DRAFT}{attempt.number}-{self.final.name}"
        self._part = _Part(self._draft, engine.rank)
        self._parts: list[Any] = []
        self._errors: list[str] = []
        self._died: BaseException | None = None
        self._written, self._given_up = Event(), Event()
        self._begin = time.perf_counter()
        self.seconds = 0.0
        """From the beginning until it is published, on the first rank."""
        self.published = False
        """On the first rank."""
        if engine.rank == 0:
            shutil.rmtree(self._draft, ignore_errors=True)
            try:
                self._draft.mkdir(parents=True)
            except OSError as error:
                self._part.error = f"{error.strerror or error}"
        _barrier(engine)
        groups = self._copied(copies)
        if copies is None:
            for group in groups:
                self._part.write(group)
            groups = iter(())
        else:
            groups = copies.arrived(list(groups))
        self._thread = Thread(target=self._write, args=(groups,), name="checkpoint", daemon=True)
        self._thread.start()

    def finish(self) -> tuple[Path, int]:
        """Collective. Waits until it is published; returns its folder and size in bytes.

        Raises TrainingFailed on every rank if any rank could not write (a full disk), or where a newer attempt trains the
        run; older checkpoints stay as they are.
        """
        self._written.wait()
        errors = [
            f"rank {rank}: {error}" for rank, error in enumerate(_everyones(self._engine, self._part.error)) if error
        ]
        if errors:
            self._given_up.set()
        self._thread.join()
        if self._died:
            raise self._died
        told = _everyones(self._engine, (self._errors, _bytes_of(self._parts)))
        errors = errors or told[0][0]
        if errors:
            if self._engine.rank == 0:
                shutil.rmtree(self._draft, ignore_errors=True)
            if words := self._attempt.taken_over():
                raise TakenOver(words)
            raise TrainingFailed(
                f"the checkpoint of step {self.state.step} could not be written: {'; '.join(errors)}\n"
                f"    older checkpoints in {self.final.parent} are untouched\n"
                "    fix: free space or rights there, then start again"
            )
        return self.final, told[0][1]

    def wait(self, seconds: float) -> None:
        """Alone, where this rank fails and no collective can be counted on: what can be published by then, is."""
        self._thread.join(seconds)

    @property
    def bytes(self) -> int:
        """Of the published one, on the first rank."""
        return _bytes_of(self._parts)

    def _copied(self, copies: Copies | None) -> Iterator[dict[str, Tensor]]:
        """What this rank has to write, a file's at a time. No rank waits for another here."""
        held: dict[str, Tensor] = {}
        size = 0
        for owned in self._engine.owned():
            name, tensor = self._part.entry(owned), owned.tensor
            held[name] = copies.of(name, tensor) if copies else tensor.detach().cpu().clone().contiguous()
            size += tensor.nbytes
            if size >= FILE_BYTES:
                yield held
                held, size = {}, 0
        if held:
            yield held

    def _write(self, groups: Iterator[dict[str, Tensor]]) -> None:
        """In a thread of its own: writing and checksums let the training run, and little Python lies between."""
        try:
            for group in groups:
                self._part.write(group)
            self._tell()
        except Exception as error:  # the store's process is gone, for one
            self._part.error = self._part.error or f"{type(error).__name__}: {error}"
        except BaseException as error:
            self._died = error
        finally:
            self._written.set()
        if self._engine.rank or self._died:
            return
        try:
            if self._heard():
                errors = [f"rank {rank}: {part[0]}" for rank, part in enumerate(self._parts) if part[0]]
                self._errors = errors or self._publish()
                self.seconds = time.perf_counter() - self._begin
                self.published = not self._errors
        except Exception as error:
            self._errors = [f"rank 0: {type(error).__name__}: {error}"]
        except BaseException as error:
            self._died = error

    def _tell(self) -> None:
        if self._engine.plan.world > 1:
            part = self._part.error, self._part.files, self._part.tensors
            _store().set(self._key(self._engine.rank), json.dumps(part))

    def _heard(self) -> bool:
        """Whether every rank's part is known, sound or not. On the first rank."""
        if self._engine.plan.world == 1:
            self._parts = [(self._part.error, self._part.files, self._part.tensors)]
            return True
        store, keys = _store(), [self._key(rank) for rank in range(self._engine.plan.world)]
        while not store.check(keys):
            if self._given_up.wait(POLL_S):
                return False
        self._parts = [json.loads(store.get(key)) for key in keys]
        for key in keys:
            store.delete_key(key)
        return True

    def _key(self, rank: int) -> str:
        return f"distdl/{self._draft.name}/{rank}"

    def _publish(self) -> list[str]:
        """Writes what is kept beside the tensors and the manifest, and renames the folder. Returns what went wrong.

        A process may be frozen between the look for a newer attempt and the rename. It can do no harm when it wakes: the
        newer attempt removes all drafts before it chooses what to continue from, so the rename finds nothing; and a rename
        that came first has published a whole checkpoint of this very run.
        """
        draft, final, plan = self._draft, self.final, self._engine.plan
        try:
            files = {name: meta for _, part, _ in self._parts for name, meta in part.items()}
            for name, values in self._kept.items():
                write_json(draft / name, values)
                files[name] = {"bytes": (draft / name).stat().st_size, "xxh3": checksum(draft / name)}
            tensors = _joined([part for _, _, part in self._parts])
            if gaps := [text for name, meta in tensors.items() if (text := _gap(name, meta))]:
                return gaps[:3]
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                "family": plan.model.family,
                "model": plan.config["model"],  # of a family's file its name: the run may move
                "step": self.state.step,
                "precision": plan.settings.train.precision,
                "block": stream.BLOCK,
                "files": files,
                "tensors": tensors,
            }
            write_json(draft / MANIFEST, {**manifest, "xxh3": seal(manifest)})
            sync_folder(draft)  # the names of its files, before a rename shows them
            damaged = final.exists()  # the same step again, after a restart from an older checkpoint
            if words := self._attempt.taken_over():
                shutil.rmtree(draft, ignore_errors=True)  # whether or not anybody waits for it still
                return [words]
            if damaged:
                _replace(draft, final)
            else:
                os.rename(draft, final)
            sync_folder(final.parent)
        except OSError as error:
            return [f"rank 0: {error.strerror or error}"]
        return []


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
        self._pieces: dict[str, tuple[str, str]] = {}
        """Name in a file -> the tensor's, and the box."""

    def entry(self, owned: Owned) -> str:
        """What a piece is called in its file."""
        name = owned.name if owned.box.shape == owned.shape else entry_name(owned.name, str(owned.box))
        dtype = str(owned.tensor.dtype).removeprefix("torch.")
        self.tensors.setdefault(owned.name, {"shape": list(owned.shape), "dtype": dtype, "pieces": {}})
        self._pieces[name] = owned.name, str(owned.box)
        return name

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Into one file, flushed to the disk."""
        if self.error:
            return
        file = f"tensors-{self.rank:05d}-{len(self.files):05d}.safetensors"
        try:
            sums = write_safetensors(self.draft / file, {name: whole(tensor) for name, tensor in tensors.items()})
            self.files[file] = {"bytes": (self.draft / file).stat().st_size, **sums._asdict()}
        except OSError as error:
            self.error = f"{error.strerror or error}"
        for entry in tensors:
            name, box = self._pieces[entry]
            self.tensors[name]["pieces"].setdefault(file, []).append(box)


def _joined(parts: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Every tensor with the pieces that all ranks have of it, as the manifest says it."""
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        for name, meta in part.items():
            found.setdefault(name, {**meta, "pieces": {}})["pieces"].update(meta["pieces"])
    for name, meta in found.items():
        (file, pieces), *others = meta["pieces"].items()
        if not others and pieces == [str(boxes.whole(meta["shape"]))]:
            found[name] = {"file": file, "shape": meta["shape"], "dtype": meta["dtype"]}
    return found


def _gap(name: str, meta: Mapping[str, Any]) -> str:
    """What no rank has written of a tensor, or two have, in words, or ''."""
    pieces = meta.get("pieces", {})
    have, all_of_it = sum(numbers_in(box) for of_file in pieces.values() for box in of_file), math.prod(meta["shape"])
    return f"{name} has {all_of_it:,} numbers, and {have:,} were written" if pieces and have != all_of_it else ""


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


def _bytes_of(parts: list[Any]) -> int:
    return sum(meta["bytes"] for _, files, _ in parts for meta in files.values())


def _store() -> dist.Store:
    """Of the process group: whoever made it, all ranks reach it."""
    store: dist.Store = dist.distributed_c10d._get_default_store()
    return store


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
