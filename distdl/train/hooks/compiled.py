"""Keeps what torch.compile has made in the run's folder, so that the run's next start, on any machine, compiles nothing.

A file of such code is run when it is loaded, and a run's folder may be a stranger's: it is loaded where this user has
written it (trust.py remembers its SHA-256); otherwise everything is compiled again. On a CPU torch keeps the last step, the
machine code of its C++ compiler, in a folder of its own (TORCHINDUCTOR_CACHE_DIR).
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from distdl import trust
from distdl.errors import DistdlError
from distdl.metrics import Metrics
from distdl.parallel.compiled import Compiled
from distdl.plan.plan import Plan
from distdl.run.folder import RunFolder
from distdl.train.hooks.hook import Hook

FOLDER = "compiled"


class Kept:
    """The file of this rank's place on the mesh: ranks that differ in their samples alone have the same code."""

    def __init__(self, plan: Plan, folder: RunFolder, rank: int) -> None:
        first = plan.mesh.line(rank, "data")[0]
        self.file: Path = folder.path / FOLDER / f"rank-{first}.bin"
        self.asked, self.writes, self.attempt = plan.settings.train.compile, rank == first, folder.attempt

    def load(self) -> list[str]:
        """Loads it where it may be; else says why not."""
        if not self.asked or not self.file.is_file():
            return []
        try:
            known = trust.known(self.file)
        except DistdlError:  # it cannot be read
            known = False
        if not known:
            return [f"{self.file} was compiled elsewhere, by whom is not known here: it is not loaded, but made again"]
        torch.compiler.load_cache_artifacts(self.file.read_bytes())
        return []

    def save(self) -> None:
        """What this process has compiled or loaded so far, in one file."""
        if not self.writes or self.attempt.taken_over() or (found := torch.compiler.save_cache_artifacts()) is None:
            return
        self.file.parent.mkdir(exist_ok=True)
        draft = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        draft.write_bytes(found[0])
        trust.remember(draft)  # before anyone can find it
        os.replace(draft, self.file)


class KeepCompiled(Hook):
    """Writes after the first step, and after each that has had more compiled: the first evaluation."""

    def __init__(self, kept: Kept) -> None:
        self.kept, self._made = kept, Compiled.made

    def after_step(self, step: int, metrics: Metrics) -> None:
        if Compiled.made > self._made:
            self._made = Compiled.made
            self.kept.save()
