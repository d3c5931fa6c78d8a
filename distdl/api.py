"""distdl from Python: the steps of the command line, with objects for what it prints and errors for what it exits with.

    run = distdl.train("configs/families/mlp.yaml", overrides={"train.epochs": 3})
    run.metrics["accuracy"], run.history[0], run.last
    run.predict([{"age": 39, "work": "State-gov"}])       # what it says of new rows
    model = distdl.load(run)                              # the trained nn.Module

`import distdl` imports none of this: each name is looked up here when it is first used.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distdl import driver
from distdl.config.load import load_config, load_values
from distdl.config.schema import Config
from distdl.config.yaml_file import as_overrides
from distdl.errors import InputError
from distdl.plan.plan import Plan
from distdl.run.folder import RunFolder, find_run

if TYPE_CHECKING:
    from distdl.learner import Learner

Overrides = Mapping[str, Any] | Sequence[str]
"""Keys of the config, dotted or nested: {"train.epochs": 3} or {"train": {"epochs": 3}}; or the command line's texts."""


@dataclass(frozen=True)
class Run:
    """A run, as its folder tells of it."""

    folder: Path
    plan: Plan = field(repr=False)
    """Every decided number of it."""
    summary: dict[str, Any] = field(repr=False)
    """What came out of it, and where its time went; {} while it has not ended."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether it was trained to its end; early stopping is an end, too."""
        return bool(self.summary.get("finished"))

    @property
    def steps(self) -> int:
        """Optimizer steps that it had taken when it ended, or when its last checkpoint was written."""
        if self.summary:
            return int(self.summary["steps"])
        return max((step for step, _ in self._checkpoints()), default=0)

    @property
    def metrics(self) -> dict[str, float]:
        """The held-out metrics at its end."""
        return dict(self.summary.get("metrics", {}))

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was measured on the way, by step: {"step": 100, "split": "train", "loss": 0.3, …}, one row a point.

        `split` is the held-out split's name in the rows of evaluations. `pandas.DataFrame(run.history)` is a table.
        """
        from distdl.track.spool import SpoolReader

        rows: dict[tuple[int, str], dict[str, Any]] = {}
        for event in SpoolReader(RunFolder(self.folder).events).poll():
            if event["kind"] in ("metrics", "evaluation"):
                split = str(event.get("split") or "train")
                # A run that was continued from a checkpoint takes some steps again: what came of the last time counts.
                rows[event["step"], split] = {"step": event["step"], "split": split, **event["values"]}
        return [rows[key] for key in sorted(rows, key=lambda key: (key[0], key[1] != "train"))]

    @property
    def last(self) -> Path | None:
        """Its newest checkpoint."""
        return next((path for _, path in reversed(self._checkpoints())), None)

    @property
    def best(self) -> Path | None:
        """The checkpoint with the best held-out primary metric, of those that were kept and evaluated."""
        from distdl.checkpoint.prune import best

        return next(iter(best(RunFolder(self.folder).checkpoints, self.plan.model.better)), None)

    def predict(
        self,
        rows: Any,
        *,
        which: str | os.PathLike[str] = "latest",
        top_k: int = 1,
        probabilities: bool = False,
        embeddings: bool = False,
        device: str = "cpu",
    ) -> list[dict[str, Any]]:
        """What the trained model says of each row, as `distdl predict` writes it: names of classes, numbers in their units.

        `rows`: a list of mappings or a DataFrame with the columns of the table that it learned from, a list of texts,
        arrays of the columns that the model reads by their names, or the path of a file, a folder or a data set. Raises
        InputError for a row that cannot be read, and where the family answers no question.
        """
        from distdl.data.asking.told import Wish
        from distdl.model.model import Model

        with _guest():
            model = Model(RunFolder(self.folder), os.fspath(which), device)
            return model.told_of(rows, Wish(top_k, probabilities, embeddings))

    def _checkpoints(self) -> list[tuple[int, Path]]:
        from distdl.checkpoint.layout import checkpoints

        return checkpoints(RunFolder(self.folder).checkpoints)

    def __repr__(self) -> str:
        metrics = "".join(f", {name} {value:.4g}" for name, value in self.metrics.items())
        return f"Run({self.name}: {'finished' if self.finished else 'not finished'}, step {self.steps:,}{metrics})"


def train(
    config: str | os.PathLike[str] | Mapping[str, Any],
    *,
    overrides: Overrides = (),
    fresh: bool = False,
    take_over: bool = False,
    show: bool | None = None,
) -> Run:
    """Trains a config to its end, or continues its run, as `distdl train` does.

    `config` is a YAML file, or its content as a mapping. `fresh` starts a new run beside earlier ones of the same name;
    `take_over` trains it even while another process does. `show` prints the progress; None: where stdout is a terminal.

    Raises InputError for what is wrong with the input, DistdlError for a run that failed, and KeyboardInterrupt after
    Ctrl-C, when the checkpoint is written that the same call continues from.
    """
    found, source, texts = _config(config, overrides)
    return _trained(found, None, source, texts, fresh=fresh, take_over=take_over, show=show)


def resume(
    run: Run | str | os.PathLike[str],
    *,
    overrides: Overrides = (),
    take_over: bool = False,
    show: bool | None = None,
) -> Run:
    """Continues a run (a Run, its name, or its folder) with its own config, as `distdl train --resume` does. Raises like
    `train`."""
    texts = as_overrides(overrides)
    config, folder = driver.resumed(_name(run), texts)
    return _trained(config, folder, None, texts, take_over=take_over, show=show)


def plan(
    config: str | os.PathLike[str] | Mapping[str, Any],
    *,
    overrides: Overrides = (),
    workers: int | None = None,
    prepare: bool = False,
) -> Plan:
    """What would run, decided and checked, without starting it, as `distdl plan` does: the numbers that it prints.

    `workers` plans for so many. `prepare` writes the data set that `data.prepare` describes, if it is not there; without it
    nothing is written. Raises InputError.
    """
    more = [] if workers is None else [f"runtime.workers={workers}"]
    found, _, _ = _config(config, [*as_overrides(overrides), *more])
    if prepare:
        driver.prepare_if_missing(found, _silent)
    elif missing := driver.missing_data(found):
        raise InputError(f"a plan needs the rows of its data set, and {missing}", fix="plan(config, prepare=True)")
    with _guest():
        return driver.planned(found)


def evaluate(
    run: Run | str | os.PathLike[str], *, which: str | os.PathLike[str] = "latest", split: str = ""
) -> dict[str, float]:
    """The held-out metrics of a run's checkpoint, computed in this process, as `distdl evaluate` does.

    `which` is `latest`, `best`, or the folder of a checkpoint; `split` another than the run's `data.eval_split`. Raises a
    DistdlError.
    """
    with _guest():
        _, _, metrics = driver.evaluated(_folder(run), os.fspath(which), split)
    return metrics


def load(
    run: Run | str | os.PathLike[str], *, which: str | os.PathLike[str] = "latest", device: str = "cpu"
) -> Learner:
    """The trained model of a run: an nn.Module on one device, in evaluation mode, whatever layout trained it.

    `which` is `latest`, `best`, or the folder of a checkpoint. Raises a DistdlError.
    """
    with _guest():
        return driver.trained_model(_folder(run), os.fspath(which)).to(device).eval()


def open_run(run: str | os.PathLike[str]) -> Run:
    """A run that was trained before, by its name below runs/ or its folder. Raises InputError where there is none."""
    return _run(_folder(run))


# -- what they share ---------------------------------------------------------------------------------------------------


def _trained(
    config: Config,
    folder: RunFolder | None,
    source: Path | None,
    texts: Sequence[str],
    *,
    fresh: bool = False,
    take_over: bool = False,
    show: bool | None = None,
) -> Run:
    # As in cli/main.py: OpenMP threads that spin while they wait are slow beside anything else that wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    terminal = sys.stdout.isatty()
    shown = terminal if show is None else show
    if shown:
        from distdl.cli.display import Display

        watcher: driver.Show = functools.partial(Display, plain=not terminal)
    else:
        watcher = driver.Unwatched
    with _guest():
        done = driver.train(
            config,
            folder=folder,
            source=source,
            named=texts,
            fresh=fresh,
            take_over=take_over,
            show=watcher,
            say=driver.at_once if shown else _silent,
        )
    return Run(done.folder.path, done.plan, done.summary)


def _silent(text: str) -> None:
    pass


def _config(
    config: str | os.PathLike[str] | Mapping[str, Any], overrides: Overrides
) -> tuple[Config, Path | None, list[str]]:
    """The checked config, the file that it was read from, and the overrides as the command line has them."""
    texts = as_overrides(overrides)
    if isinstance(config, Mapping):
        return load_values(config, texts), None, texts
    return load_config(os.fspath(config), texts).config, Path(config), texts


def _name(run: Run | str | os.PathLike[str]) -> str:
    return str(run.folder if isinstance(run, Run) else os.fspath(run))


def _folder(run: Run | str | os.PathLike[str]) -> RunFolder:
    return find_run(_name(run), "runs")


def _run(folder: RunFolder) -> Run:
    planned = folder.read("plan.json")
    if planned is None:
        raise InputError(f"the run in {folder.path} has not begun to train", fix="distdl.resume(run) starts it")
    return Run(folder.path, Plan.from_dict(planned, folder.path), folder.read_derived("summary.json") or {})


@contextlib.contextmanager
def _guest() -> Iterator[None]:
    """Leaves the caller's random numbers as they were: a single local worker trains in this very process, and a model is
    drawn before its weights are read. What else a worker changes it puts back itself (`layout/process.py`)."""
    import torch

    from distdl.layout.process import alone

    with alone:
        state = torch.get_rng_state()
        of_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        with alone:
            torch.set_rng_state(state)
            if of_gpus is not None:
                torch.cuda.set_rng_state_all(of_gpus)
