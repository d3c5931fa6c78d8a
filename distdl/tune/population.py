"""Population-based training (Jaderberg et al. 2017): all members are trained to the same step, then the worst quarter goes
on from copies of the best quarter's checkpoints with changed values, and so on to the end.

A round is over before the next begins, so that what comes of it depends on the seed alone and not on who was faster.
"""

from __future__ import annotations

import math
import shutil
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from distdl.checkpoint.layout import checkpoints
from distdl.config.schema import Config
from distdl.config.search import Search
from distdl.tune.desk import WAIT, Desk, Work
from distdl.tune.record import ENDS, Record, Trial
from distdl.tune.samplers import Sampler
from distdl.tune.space import moved
from distdl.tune.trial import Told

QUARTER = 4


class Population(Desk):
    """Members that are trained in rounds of `every` steps."""

    def __init__(
        self, record: Record, search: Search, config: Config, given: Mapping[str, Any], sampler: Sampler, every: int
    ) -> None:
        super().__init__(record, search, config, given, sampler)
        self._every = every
        self._seed = record.seed
        self._waiting: deque[Trial] = deque()
        self._running: set[int] = set()
        self._until = every
        self._begin()

    def more(self) -> dict[str, Any]:
        return {"checkpoint.every_steps": self._every, "evaluate.every_steps": self._every}

    def next(self) -> Work | None:
        with self._lock:
            if self.stopping:
                return None
            if not self._waiting and self._running:
                return WAIT
            if not self._waiting and not self._turn():
                return None
            trial = self._waiting.popleft()
            self._running.add(trial.number)
            return Work(self._started(trial), self._until if self._until < self.record.steps else None)

    def hears(self, number: int, told: Told) -> None:
        with self._lock:
            super().hears(number, told)
            if told.state != "running":
                self._running.discard(number)

    def _begin(self) -> None:
        """Makes the members, or finds how far those of the record are."""
        for number in range(len(self.record.trials) + 1, self.search.count() + 1):
            trial = Trial(number, self.name(number), self._sampler(number, self.record.trials), "paused")
            self.record.trials.append(trial)
            self._made(trial)
        alive = self._alive()
        done = min((trial.history[-1][0] if trial.history else 0 for trial in alive), default=0)
        self._until = self._end_of_round(done)
        self._waiting.extend(trial for trial in alive if self._step(trial) < self._until)

    def _alive(self) -> list[Trial]:
        return [trial for trial in self.record.trials if trial.state not in ENDS]

    def _step(self, trial: Trial) -> int:
        return trial.history[-1][0] if trial.history else 0

    def _end_of_round(self, step: int) -> int:
        """The step at which the round ends that begins at this one."""
        return min((step // self._every + 1) * self._every, self.record.steps)

    def _turn(self) -> bool:
        """Between two rounds: the worst become copies of the best. False: there is no other round."""
        alive = self._alive()
        if not alive or self._until >= self.record.steps:
            return False
        sign = -1 if self.record.better == "higher" else 1
        ranked = sorted(alive, key=lambda t: (sign * t.objective if t.objective is not None else math.inf, t.number))
        part = min(math.ceil(len(ranked) / QUARTER), len(ranked) // 2)
        random = np.random.default_rng([self._seed, self._until])
        for worse in ranked[len(ranked) - part :] if part else []:
            better = ranked[int(random.integers(part))]
            self._copy(better, worse, random)
        self._until = self._end_of_round(self._until)
        self._waiting.extend(sorted(alive, key=lambda trial: trial.number))
        return True

    def _copy(self, better: Trial, worse: Trial, random: np.random.Generator) -> None:
        """Gives one member the checkpoint of another, and values near the other's."""
        there = self.record.folder / worse.name / "checkpoints"
        found = checkpoints(self.record.folder / better.name / "checkpoints")
        if not found:
            return
        step, source = found[-1]
        draft = there / f".new-{source.name}"
        shutil.rmtree(draft, ignore_errors=True)
        there.mkdir(exist_ok=True)
        shutil.copytree(source, draft)
        for _, old in checkpoints(there):
            shutil.rmtree(old)
        draft.replace(there / source.name)
        worse.values = {key: moved(better.values[key], space, random) for key, space in self.search.space.items()}
        worse.reason = f"goes on from {better.name} at step {step:,}"
        worse.objective = better.objective
        self.write(worse)
        self._changed(worse)
