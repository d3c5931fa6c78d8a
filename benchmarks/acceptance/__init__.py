"""What every family must reach on real data: `make acceptance`, or `python -m benchmarks.acceptance FAMILY ...`.

One file per family in `cases/` lists its cases. A case trains through the same command line as a user's run, measures, and
is compared with a figure from the literature or from an independent implementation.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.small import shipped

REPOSITORY = Path(__file__).parent.parent.parent


class Absent(Exception):
    """Raw data that this machine does not have."""


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    folder: Path
    metrics: dict[str, float]
    """The last evaluation of the held-out split."""

    def learner(self) -> Any:
        """The trained learner, in evaluation mode."""
        from distdl.checkpoint.load import latest
        from distdl.config.load import config_from_dict
        from distdl.train import worker

        checkpoint, _ = latest(self.folder / "checkpoints")
        config = config_from_dict(json.loads((self.folder / "config.json").read_text()))
        return worker.build_learner(config, checkpoint).eval()


class Bench:
    """Where a case trains: a scratch folder that keeps prepared data sets from case to case."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    def raw(self, name: str) -> str:
        """A raw file or folder below $DISTDL_DATA. Raises Absent."""
        path = Path(os.environ.get("DISTDL_DATA", "")) / name
        if not os.environ.get("DISTDL_DATA") or not path.exists():
            raise Absent(f"DISTDL_DATA has no {name}")
        return str(path)

    def data(self, name: str, source: str, **options: Any) -> str:
        """The path of a prepared data set; it is written the first time."""
        from distdl.data.prepare import prepare_dataset

        path = self.scratch / "data" / name
        if not path.exists():
            prepare_dataset(source, path, options)
        return str(path)

    def mnist(self, **options: Any) -> str:
        """MNIST, 60,000 and 10,000 pictures of 28 x 28."""
        name = "-".join(["mnist", *(f"{k}{v}" for k, v in options.items())])
        return self.data(name, "idx", path=self.raw("mnist"), **options)

    def train(self, config: str, *overrides: str) -> Trained:
        """`distdl train CONFIG.yaml OVERRIDES`, one process of plain PyTorch on two threads, untracked.

        Other layouts give the same numbers (tests/parity/test_parity.py)."""
        plain = ["runtime.kind=local", "runtime.workers=1", "parallel.engine=torch", "track.enabled=false"]
        plain += [f"runs={self.scratch / 'runs'}", "train.threads_per_worker=2", "checkpoint.every_steps=0"]
        path = shipped(config)
        command = [sys.executable, "-m", "distdl", "train", str(path), *plain, *overrides, "--fresh"]
        name = next((o.removeprefix("name=") for o in overrides if o.startswith("name=")), config)
        folder = self.scratch / "runs" / name
        shutil.rmtree(folder, ignore_errors=True)  # --fresh would leave it and write NAME-2
        variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, cwd=self.scratch, env=variables, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return Trained(folder, json.loads((folder / "summary.json").read_text())["metrics"])


@dataclass(frozen=True)
class Case:
    """One requirement of one family."""

    family: str
    data: str
    """The data in words."""
    metric: str
    """What is measured, in words, with its unit."""
    required: float
    better: Literal["higher", "lower"]
    run: Callable[[Bench], float]
    """Trains and measures; returns what was reached."""

    def met(self, reached: float) -> bool:
        return reached >= self.required if self.better == "higher" else reached <= self.required
