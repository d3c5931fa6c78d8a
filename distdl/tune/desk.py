"""Which trials there are, what has become of each, and which is next: the one who keeps the record of a search."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

from distdl.config.load import load_config
from distdl.config.schema import Config
from distdl.config.search import Search
from distdl.errors import InputError
from distdl.run.folder import open_run
from distdl.tune.record import ENDS, Record, Trial
from distdl.tune.samplers import Sampler
from distdl.tune.trial import Told
from distdl.tune.values import of_trial, put, write_yaml


class Work(NamedTuple):
    """What an actor is given."""

    trial: Trial
    until: int | None = None
    """Step at whose evaluation the run is ended for now, with a checkpoint; None: its last."""


WAIT = Work(Trial(0, "", {}))
"""There is nothing to do until another trial has told something."""
Tell = Callable[[Trial], None]
"""Shows a trial that has changed."""


class Desk:
    """Trials that are trained one by one, each to its end or until it is stopped."""

    def __init__(
        self, record: Record, search: Search, config: Config, given: Mapping[str, Any], sampler: Sampler
    ) -> None:
        self.record, self.search, self.config, self.given = record, search, config, given
        self.stopping = False
        self.tell: Tell = lambda trial: None
        self._sampler = sampler
        self._lock = RLock()
        self._begun: dict[int, float] = {}
        self._again = deque(trial for trial in record.trials if trial.state not in ENDS)

    def next(self) -> Work | None:
        """The next trial to be trained, its run folder made, or WAIT; None: there is no more."""
        with self._lock:
            while not self.stopping:
                if self._again:
                    return Work(self._started(self._again.popleft()))
                number = len(self.record.trials) + 1
                if number > self.search.count():
                    return None
                trial = Trial(number, self.name(number), self._sampler(number, self.record.trials))
                self.record.trials.append(trial)
                if self._made(trial):
                    return Work(self._started(trial))
            return None

    def name(self, number: int) -> str:
        """Of a trial's run."""
        return f"{self.config.name}-{number:03d}"

    def hears(self, number: int, told: Told) -> None:
        """A trial was evaluated, or has ended."""
        with self._lock:
            trial = self.record.trials[number - 1]
            if trial.state in ENDS:  # a process that died when its run was over
                return
            for step, value in told.seen:
                trial.told(step, value)
            trial.told(told.step, told.value)
            trial.state, trial.reason = told.state, told.reason or trial.reason
            if told.state != "running" and number in self._begun:
                trial.seconds += time.monotonic() - self._begun.pop(number)
            self._changed(trial)

    def _started(self, trial: Trial) -> Trial:
        trial.state = "running"
        self._begun[trial.number] = time.monotonic()
        self._changed(trial)
        return trial

    def _changed(self, trial: Trial) -> None:
        self.record.save()
        self.tell(trial)

    def _made(self, trial: Trial) -> bool:
        """Makes the folder of a trial's run. False, and the trial has failed, where its values do not fit together."""
        try:
            self.write(trial)
            return True
        except InputError as error:
            trial.state, trial.reason = "failed", str(error)
            self._changed(trial)
            return False

    def write(self, trial: Trial) -> None:
        """Writes the YAML of a trial's run, into a new folder or the one that it has. Raises InputError."""
        folder = self.record.folder
        values = of_trial(put(self.given, trial.values), self.config, trial.name, folder, self.search.cpus_per_trial)
        values = put(values, self.more())
        said = ", ".join(f"{key}={value}" for key, value in trial.values.items())
        draft = folder / f".{trial.name}.yaml"
        try:
            write_yaml(draft, values, [f"Trial {trial.number} of the search {folder.name}: {said}."])
            config = load_config(str(draft)).config
            there: Path = folder / trial.name
            if not (there / "config.json").is_file():
                open_run(config, str(draft))
            else:
                draft.replace(there / "config.yaml")
        finally:
            draft.unlink(missing_ok=True)

    def more(self) -> dict[str, Any]:
        """Key of the config -> what all trials of this kind of search have."""
        return {}
