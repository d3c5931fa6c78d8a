"""The trials of a search on Ray Tune: it places them, gives each its part of the machine, and decides which go on.

Tune has a trial as an object of an actor that it uses again for the next one, so that torch, DeepSpeed and Ray are started
once for each that runs at the same time. Nothing that Tune writes is read again: it pickles, and a search goes on from its
own record.

    Suggest ──► Tune ──► actor: Member ──► Run (trial.py) ──► run folder
                  ▲ rung, step, metric ◄──┘
"""

from __future__ import annotations

import gc
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher

from distdl.config.search import Search
from distdl.runtime.thread import aside
from distdl.tune.desk import WAIT, Desk
from distdl.tune.record import ENDS, Record, Trial
from distdl.tune.trial import Run, Told

METRIC, STEP = "objective", "step"
CRASHED = "its process died: a signal, or too little memory"


def rungs(search: Search, first: int, steps: int) -> list[int]:
    """The steps at whose evaluations trials are compared, as Tune's bracket has them."""
    found, step = [], first
    while search.scheduler == "asha" and step < steps:
        found.append(step)
        step *= search.reduction
    return found


class Member(tune.Trainable):
    """An actor of Tune: one run after another in the same process."""

    def setup(self, config: dict[str, Any]) -> None:
        os.chdir(config["cwd"])
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        if not config["gpus"]:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._run: Run | None = None
        self._rungs: list[int] = []
        self._at = 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        config = self.config
        if self._run is None:
            self._rungs = [config["pause_at"]] if config["pause_at"] else list(config["rungs"])
            self._run = Run(Path(config["folder"]), config["name"], config["metric"], self._rung(config["begin"]))
            self._run.start()
        else:
            self._run.go_on(self._rung(self._at))
        told = self._run.next()
        self._at = told.step
        if told.state == "running" and told.step >= (config["pause_at"] or math.inf):
            self._run.end()
            told = told._replace(state="paused")
        if over := told.state != "running":
            self._run = None
            _free()
        # A trial that failed is an end like any other to Tune, which would start another process.
        words = {"state": told.state, "reason": told.reason, "value": told.value, "seen": list(told.seen)}
        result = {STEP: told.step, "done": over, **words}
        if told.value is not None and told.state in ("running", "paused", "finished"):
            result[METRIC] = told.value
        return result

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the run writes its own."""

    def cleanup(self) -> None:
        """Ends a run that Tune has stopped, or that still runs when all is over."""
        if self._run is not None:
            self._run.end()
            self._run = None
            _free()

    def _rung(self, step: int) -> int | None:
        """The first rung behind a step."""
        return next((rung for rung in self._rungs if rung > step), None)


def _free() -> None:
    """Gives back what a run that is over has left on a GPU, which other trials may share."""
    import torch

    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


class Suggest(Searcher):
    """Gives Tune the trials of the desk."""

    def __init__(self, desk: Desk, judge: Any, facts: dict[str, Any], numbers: dict[str, int]) -> None:
        super().__init__()
        self._desk, self._judge, self._facts, self._numbers = desk, judge, facts, numbers

    def suggest(self, trial_id: str) -> Any:
        work = self._desk.next()
        if work is None:
            return Searcher.FINISHED
        if work == WAIT:
            return None
        self._numbers[trial_id] = work.trial.number
        recall(self._judge, trial_id, work.trial)
        return {**self._facts, "name": work.trial.name, "begin": work.trial.step, "pause_at": work.until}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The ear has told the desk."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it, for a way to go on that is not taken

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the record of the search is elsewhere."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing."""


class Ear(tune.Callback):
    """Tells the desk what Tune hears."""

    def __init__(self, desk: Desk, numbers: dict[str, int]) -> None:
        self._desk, self._numbers = desk, numbers
        self._ended: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        seen = tuple((step, value) for step, value in result["seen"])
        told = Told(int(result[STEP]), result["value"], result["state"], result["reason"], seen)
        if told.state != "running":
            self._ended.add(trial.trial_id)
        self._desk.hears(self._numbers[trial.trial_id], told)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.trial_id not in self._ended:  # Tune has stopped it
            last = trial.last_result
            what = f"behind others at step {last[STEP]:,}"
            self._desk.hears(self._numbers[trial.trial_id], Told(int(last[STEP]), None, "stopped", what))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_error()
        lines = str(error).strip().splitlines() or [""]
        died = error is None or "Died" in type(error).__name__ or "Crashed" in type(error).__name__
        self._desk.hears(self._numbers[trial.trial_id], Told(0, None, "failed", CRASHED if died else lines[-1]))


def scheduler(search: Search, record: Record, first: int) -> Any:
    """Tune's scheduler, told of what the trials of the record were worth."""
    if search.scheduler == "none":
        return FIFOScheduler()
    asha = ASHAScheduler(
        time_attr=STEP,
        metric=METRIC,
        mode="max" if record.better == "higher" else "min",
        max_t=record.steps,
        grace_period=first,
        reduction_factor=search.reduction,
    )
    for trial in record.trials:
        if trial.state in ENDS:  # those that go on come with the names that Tune gives them
            recall(asha, trial.name, trial)
    return asha


def recall(judge: Any, name: str, trial: Trial) -> None:
    """Tells Tune's scheduler what a trial was worth at the rungs that it has passed."""
    if not isinstance(judge, ASHAScheduler) or not trial.history:
        return
    before = SimpleNamespace(trial_id=name)
    judge.on_trial_add(None, before)
    for step, value in trial.history:
        judge.on_trial_result(None, before, {STEP: step, METRIC: value})


def train_all(
    search: Search,
    record: Record,
    desk: Desk,
    *,
    first: int,
    at_once: int,
    gpus: float,
    asked_to_stop: Callable[[], bool],
) -> None:
    """Trains what the desk gives, `at_once` at the same time, until there is no more or it was asked to stop."""
    facts = {
        "folder": str(record.folder.absolute()),
        "metric": record.metric,
        "rungs": rungs(search, first, record.steps),
        "cwd": os.getcwd(),
        "gpus": gpus,
    }
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what goes wrong with a trial, the search tells
    numbers: dict[str, int] = {}
    judge = scheduler(search, record, first)
    trainable = tune.with_resources(Member, {"cpu": search.cpus_per_trial, **({"gpu": gpus} if gpus else {})})
    with tempfile.TemporaryDirectory(prefix="distdl-tune-", ignore_cleanup_errors=True) as storage:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=ConcurrencyLimiter(Suggest(desk, judge, facts, numbers), max_concurrent=at_once),
                scheduler=judge,
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=storage,
                callbacks=[Ear(desk, numbers)],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )

        def fit() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tuner.fit()

        try:
            aside(fit, asked_to_stop)
        except Exception:
            if not asked_to_stop():
                raise
