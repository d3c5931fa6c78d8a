"""Optuna's tree-structured Parzen estimator. The only file that imports optuna.

It is asked anew for each trial and told all earlier ones, with a seed of the trial's number: a search that goes on after a
crash asks what it would have asked, and nothing of Optuna's need be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distdl.config.search import Space
from distdl.errors import InputError
from distdl.tune.record import Trial
from distdl.tune.space import Spaces, readable

AT_RANDOM = 5
"""Trials at least that are drawn at random before there is something to learn from; of large searches a fifth."""


class Parzen:
    """Proposes where the best of the earlier trials are dense and the others are not."""

    def __init__(self, spaces: Spaces, seed: int, better: str, trials: int) -> None:
        try:
            import optuna
        except ImportError:
            raise InputError(
                "search.algorithm is tpe, and optuna is not installed",
                fix="pip install 'distdl[tune]', or search.algorithm=random",
            ) from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._spaces, self._seed = optuna, spaces, seed
        self._direction: Any = "maximize" if better == "higher" else "minimize"
        self._at_random = max(AT_RANDOM, trials // 5)
        self._distributions = {key: self._distribution(space) for key, space in spaces.items()}

    def __call__(self, number: int, trials: Sequence[Trial]) -> dict[str, Any]:
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        sampler = self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=self._at_random)
        study = self._optuna.create_study(direction=self._direction, sampler=sampler)
        study.add_trials([told for trial in trials if trial.number < number and (told := self._told(trial))])
        asked = study.ask(self._distributions).params
        return {key: self._value(asked[key], space) for key, space in self._spaces.items()}

    def _told(self, trial: Trial) -> Any:
        """A trial in Optuna's words; None for one that it can learn nothing from."""
        states = self._optuna.trial.TrialState
        params = {key: self._param(trial.values[key], space) for key, space in self._spaces.items()}
        facts: dict[str, Any] = {"params": params, "distributions": self._distributions}
        if trial.state == "finished" and trial.objective is not None:
            return self._optuna.trial.create_trial(state=states.COMPLETE, value=trial.objective, **facts)
        if trial.state == "stopped" and trial.history:
            seen = dict(trial.history)
            return self._optuna.trial.create_trial(state=states.PRUNED, intermediate_values=seen, **facts)
        if trial.state == "running":  # what is tried this moment is not tried twice
            return self._optuna.trial.create_trial(state=states.RUNNING, **facts)
        return None

    def _distribution(self, space: Space) -> Any:
        kinds = self._optuna.distributions
        if space.listed is not None:  # by their places: Optuna knows no lists
            return kinds.CategoricalDistribution(range(len(space.listed)))
        low, high = getattr(space, space.kind)
        number = kinds.IntDistribution if "integer" in space.kind else kinds.FloatDistribution
        return number(low, high, log=space.kind.startswith("log_"))

    def _param(self, value: Any, space: Space) -> Any:
        return space.listed.index(value) if space.listed is not None else value

    def _value(self, param: Any, space: Space) -> Any:
        if space.listed is not None:
            return space.listed[param]
        return int(param) if "integer" in space.kind else readable(param, space)
