"""What is known of a search, in its folder: the trials as they stand, written anew at each change.

runs/NAME-search/
  search.json     the section, the seed, every trial: values, state, what each evaluation told
  config.yaml     the YAML that was searched
  NAME-001/ …     the runs, each an ordinary run folder
  best.yaml       the config of the best trial
  trials.csv      the trials as a table
  search.png      the picture of the search
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distdl.files import read_json, replace_json
from distdl.track.run import SEARCH_NAME

ENDS = ("finished", "stopped", "failed")
"""States that a trial does not leave; `running` and `interrupted` go on."""


@dataclass
class Trial:
    """One run of a search."""

    number: int
    name: str
    """Of its run, and of the run's folder."""
    values: dict[str, Any]
    """Key of the config -> what was tried. With a population, what is tried now."""
    state: str = "running"
    """running, finished, stopped (behind others), failed, or interrupted."""
    step: int = 0
    objective: float | None = None
    """The metric that is compared, at its latest evaluation."""
    history: list[tuple[int, float]] = field(default_factory=list)
    """(step, metric) of its evaluations."""
    reason: str = ""
    """Why it failed or was stopped; of whom it is a copy."""
    seconds: float = 0.0

    def told(self, step: int, value: float | None) -> None:
        """Takes what an evaluation told; steps that a continued run takes again are not doubled."""
        self.step = max(self.step, step)
        if value is not None and math.isfinite(value):
            self.history = [*((s, v) for s, v in self.history if s < step), (step, value)]
            self.objective = value


@dataclass
class Record:
    """All of a search."""

    folder: Path
    search: dict[str, Any]
    """The section, as plain values."""
    config: dict[str, Any]
    """The config that is searched, as plain values."""
    seed: int
    metric: str
    better: str
    """lower or higher."""
    steps: int = 0
    """Of a trial, where all have as many."""
    trials: list[Trial] = field(default_factory=list)

    def save(self) -> None:
        """Writes search.json in one step. May raise OSError."""
        values = {name: value for name, value in asdict(self).items() if name != "folder"}
        replace_json(self.folder / SEARCH_NAME, values, self.folder / f".{SEARCH_NAME}")

    def best(self) -> Trial | None:
        """The best of the trials that reached their end; of all where none has."""
        told = [trial for trial in self.trials if trial.objective is not None and trial.state != "failed"]
        ended = [trial for trial in told if trial.state == "finished"]
        sign = -1 if self.better == "higher" else 1
        return min(ended or told, key=lambda trial: (sign * (trial.objective or 0.0), trial.number), default=None)

    def write_table(self) -> None:
        """Writes trials.csv. May raise OSError."""
        keys = list(self.search["space"])
        with (self.folder / "trials.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["trial", "state", "step", self.metric, "seconds", *keys, "reason"])
            for t in self.trials:
                value = "" if t.objective is None else repr(t.objective)
                row = [t.name, t.state, t.step, value, f"{t.seconds:.1f}", *(t.values.get(key) for key in keys)]
                table.writerow([*row, t.reason.partition("\n")[0]])


def read_record(folder: Path) -> Record | None:
    """The record of a search's folder, or None where it has none. Raises DataCorrupt for a torn one."""
    values = read_json(folder / SEARCH_NAME, "move the folder away, and start the search again")
    if values is None:
        return None
    trials = [Trial(**{**trial, "history": [(s, v) for s, v in trial["history"]]}) for trial in values.pop("trials")]
    return Record(folder=folder, trials=trials, **values)


def counted(trials: Sequence[Trial]) -> dict[str, int]:
    """State -> how many trials are in it."""
    found: dict[str, int] = {}
    for trial in trials:
        found[trial.state] = found.get(trial.state, 0) + 1
    return found
