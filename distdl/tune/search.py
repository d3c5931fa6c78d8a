"""A search from its config to its best: checked, started or continued, trained, told of.

YAML + search: ──► check ──► folder ──► desk ──► Ray Tune ──► runs ──► best.yaml, trials.csv, search.png, MLflow
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from distdl import driver
from distdl.config.load import Loaded
from distdl.config.schema import Config
from distdl.config.search import Search
from distdl.config.yaml_file import flatten
from distdl.errors import InputError, TrainingFailed
from distdl.plan.plan import Plan
from distdl.run.folder import MAY_CHANGE
from distdl.tune.check import checked, fits_plan, path_of
from distdl.tune.desk import Desk
from distdl.tune.population import Population
from distdl.tune.record import Record, Trial, counted, read_record
from distdl.tune.samplers import sampler
from distdl.tune.trial import STOP
from distdl.tune.values import given, put, write_yaml

MAY_DIFFER = ("trials", "at_once", "cpus_per_trial", "gpus_per_trial")
"""Keys of the section that a search which goes on may change: they decide how long and where, not which trials."""
TUNE = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
"""Environment in which Ray Tune works in our folder, writes no logs of its own and prints nothing."""
BEST, PICTURE = "best.yaml", "search.png"


class Show(Protocol):
    """Shows the trials within its `with`."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> None: ...

    def waits_for(self, what: str) -> None:
        """Says what the search waits for, before its first trial."""

    def tell(self, trial: Trial) -> None:
        """A trial has changed."""


Shown = Callable[[Record, int], Show]
"""(record, trials in all) -> what shows the search."""


@dataclass(frozen=True)
class Found:
    """What came out of a search."""

    record: Record
    best: Trial
    tracking: str
    """What became of its MLflow run, in words."""


def tune(
    loaded: Loaded,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    fresh: bool = False,
    show: Shown,
    say: driver.Say = driver.at_once,
) -> Found:
    """Searches a config, or goes on with its search. Raises InputError for what is wrong with the input, TrainingFailed
    where all trials fail, and Interrupted after Ctrl-C or SIGTERM."""
    config, values = loaded.config, given(loaded.path, overrides, loaded.config)
    search = checked(loaded, values)
    driver.check_server(config, Path(loaded.path), overrides)
    driver.prepare_if_missing(config, say)
    plan = driver.planned(_alone(config))
    fits_plan(search, plan, loaded)
    driver.remember_family(config)
    record = _record(loaded, search, plan, resume, fresh)
    with _locked(record.folder), _ctrl_c(record.folder) as asked:
        shutil.copyfile(loaded.path, record.folder / "config.yaml")
        desk = _desk(record, search, config, values, plan)
        record.save()
        return _trained(desk, plan, Path(loaded.path).parent, show(record, search.count()), say, asked)


def _alone(config: Config) -> Config:
    """The config of a trial, as far as its plan is concerned."""
    runtime = config.runtime
    local = {"kind": "local", "workers": runtime.workers, "timeout_s": runtime.timeout_s, "grace_s": runtime.grace_s}
    return Config.model_validate({**config.model_dump(mode="python"), "search": None, "runtime": local})


def _record(loaded: Loaded, search: Search, plan: Plan, resume: bool, fresh: bool) -> Record:
    """The record of a new search, in its new folder, or of the one that goes on. Raises InputError."""
    config = loaded.config
    folder = path_of(config)
    section = search.model_dump(mode="json")
    better = {"min": "lower", "max": "higher"}.get(search.mode or "", plan.model.better)
    if search.metric and search.metric != plan.model.primary and search.mode is None:
        better = "lower" if any(word in search.metric for word in ("loss", "error", "mae", "rmse", "mse")) else "higher"
    record = Record(
        folder=folder,
        search=section,
        config={**config.portable(), "search": None},
        seed=config.seed if search.seed is None else search.seed,
        metric=search.metric or plan.model.primary,
        better=better,
        steps=plan.steps,
    )
    before = read_record(folder)
    if resume:
        if before is None:
            raise InputError(f"there is no search {folder} to go on with", where="--resume", fix="leave --resume out")
        _refuse_other(before, record)
        record.trials = before.trials
        return record
    if folder.exists() and not fresh:
        done = f", {len(before.trials)} trials of it" if before else ""
        fix = "--resume goes on with it; --fresh puts it aside and begins anew; name=OTHER begins another beside it"
        raise InputError(f"the search {folder} is there already{done}", fix=fix)
    if folder.exists():
        aside = next(p for n in range(2, 10_000) if not (p := folder.with_name(f"{folder.name}-{n}")).exists())
        folder.rename(aside)
    folder.mkdir(parents=True, mode=0o700)
    return record


def _refuse_other(before: Record, now: Record) -> None:
    """Raises InputError where the search in the folder is of other values, or of another config."""
    old, new = ({**r.search, **dict.fromkeys(MAY_DIFFER)} for r in (before, now))
    found = [
        f"search.{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in new if old.get(key) != new.get(key)
    ]
    were, are = (dict(flatten(r.config)) for r in (before, now))
    searched = set(now.search["space"])
    for path in sorted(were.keys() | are.keys()):
        key = ".".join(path)
        if path[0] not in MAY_CHANGE and key not in searched and were.get(path) != are.get(path):
            found.append(f"{key}: {were.get(path)!r} there, {are.get(path)!r} now")
    for key in ("seed", "metric", "better", "steps"):
        if getattr(before, key) != getattr(now, key) and not any(key in text for text in found):
            found.append(f"{key}: {getattr(before, key)!r} there, {getattr(now, key)!r} now")
    if found:
        what = f"the search in {now.folder} was started otherwise: {'; '.join(found[:8])}"
        raise InputError(what, where="--resume", fix="--fresh begins anew; name=OTHER begins another search beside it")


def _desk(record: Record, search: Search, config: Config, values: dict[str, Any], plan: Plan) -> Desk:
    draw = sampler(search, record.seed, record.better)
    if search.scheduler == "pbt":
        return Population(record, search, config, values, draw, search.perturb_every_steps or _evaluates(plan))
    return Desk(record, search, config, values, draw)


def _evaluates(plan: Plan) -> int:
    """Steps between two evaluations of a trial."""
    return int(plan.evaluate_every_steps or plan.steps_per_epoch)


def _trained(desk: Desk, plan: Plan, source: Path, shown: Show, say: driver.Say, asked: Callable[[], bool]) -> Found:
    from distdl.track.search import SearchTracker

    record, search, config = desk.record, desk.search, desk.config
    gpus = _gpus(search, plan)
    at_once, cpus = _at_once(search, gpus, getattr(config.runtime, "address", None))
    if at_once * search.cpus_per_trial > cpus:
        say(f"note: {at_once} trials of {search.cpus_per_trial:g} CPUs at once are more than this machine's {cpus}")
    if config.runtime.workers > 1:
        say(f"note: each trial starts {config.runtime.workers} processes of its own; runtime.workers=1 starts none")
    tracker = SearchTracker(record.folder, config.track, record.folder.name, Path(config.runs), source)
    tracker.start()
    status, words = "FAILED", "the search ended by an error"
    try:
        with shown:
            desk.tell = shown.tell
            _on_ray(desk, plan, shown, at_once, gpus, asked)
        if asked():
            status, words = "KILLED", "interrupted"
        else:
            status, words = _verdict(record)
    except KeyboardInterrupt:
        status, words = "KILLED", "interrupted"
    finally:
        _write_what_came_out(desk)
        told = tracker.finish(status, "" if status == "FINISHED" else words)
    if status == "KILLED":
        raise driver.Interrupted(f"interrupted; {_how_to_go_on(record)}\n{told}")
    best = record.best()
    if status == "FAILED" or best is None:
        say(told)
        raise TrainingFailed(words)
    return Found(record, best, told)


def _on_ray(desk: Desk, plan: Plan, shown: Show, at_once: int, gpus: float, asked: Callable[[], bool]) -> None:
    from distdl.runtime.ray import joined

    search = desk.search
    variables = {"OMP_NUM_THREADS": str(max(1, int(search.cpus_per_trial))), "OMP_WAIT_POLICY": "PASSIVE"}
    variables |= {"DS_ACCELERATOR": "cpu"} if plan.device == "cpu" else {}
    variables |= TUNE
    os.environ.update(TUNE)
    shown.waits_for("Ray to start")

    def stop() -> bool:
        desk.stopping = asked()
        return desk.stopping

    needed = int(-(-at_once * search.cpus_per_trial // 1))
    with joined(getattr(desk.config.runtime, "address", None), variables, needed):
        from distdl.tune.by_ray import train_all

        shown.waits_for("the workers to start")
        first = search.first_rung_steps or _evaluates(plan)
        train_all(search, desk.record, desk, first=first, at_once=at_once, gpus=gpus, asked_to_stop=stop)


def _gpus(search: Search, plan: Plan) -> float:
    if search.gpus_per_trial is None:
        return float(plan.device == "cuda") * plan.world
    return search.gpus_per_trial


def _at_once(search: Search, gpus: float, address: str | None) -> tuple[int, int]:
    """(trials at the same time, CPUs of this machine; as many of a cluster as are asked for: Ray knows its room)."""
    if address:
        at_once = search.at_once or search.count()
        return at_once, int(-(-at_once * search.cpus_per_trial // 1))
    cpus = len(os.sched_getaffinity(0))
    if search.at_once:
        return search.at_once, cpus
    room = int(cpus / search.cpus_per_trial)
    if gpus:
        import torch

        room = min(room, int(torch.cuda.device_count() / gpus))
    return max(1, min(room, search.count())), cpus


def _verdict(record: Record) -> tuple[str, str]:
    """(status of the search in MLflow, why it failed)."""
    if record.best() is not None and any(trial.state != "failed" for trial in record.trials):
        return "FINISHED", ""
    reasons: dict[str, int] = {}
    for trial in record.trials:
        first = trial.reason.partition("\n")[0]
        reasons[first] = reasons.get(first, 0) + 1
    why = "\n".join(
        f"    {count} of them: {reason}" for reason, count in sorted(reasons.items(), key=lambda r: -r[1])[:5]
    )
    return "FAILED", f"all {len(record.trials)} trials of the search failed\n{why}"


def _write_what_came_out(desk: Desk) -> None:
    """best.yaml, trials.csv and the picture. What cannot be drawn or written is left out: the trials are there."""
    record = desk.record
    with suppress(OSError):
        record.save()
        record.write_table()
        if best := record.best():
            write_best(desk, best)
    from distdl.tune.picture import draw

    with suppress(OSError):
        draw(record, record.folder / PICTURE)


def write_best(desk: Desk, best: Trial) -> Path:
    """Writes the config of the best trial as YAML that `distdl train` takes. May raise OSError."""
    record = desk.record
    values = put(desk.given, {**best.values, "name": f"{desk.config.name}-best"})
    file = record.folder / BEST
    ended = counted(record.trials)
    about = [
        f"The best of {len(record.trials)} trials of {record.folder.name} ({best.name}): {record.metric} "
        f"{best.objective:.6g} at step {best.step:,}.",
        f"Trials: {', '.join(f'{count} {state}' for state, count in sorted(ended.items()))}.",
    ]
    if desk.search.scheduler == "pbt":
        about.append("These are the values that it ended with: a population changes them on the way.")
    write_yaml(file, values, about)
    return file


def _how_to_go_on(record: Record) -> str:
    done = sum(trial.state in ("finished", "stopped", "failed") for trial in record.trials)
    return f"{done} trials have ended; the same command with --resume goes on"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps every other process from this search meanwhile. Raises InputError where one is at it."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"the search {folder} is going on in another process", fix="wait for it") from None
        yield


@contextmanager
def _ctrl_c(folder: Path) -> Iterator[Callable[[], bool]]:
    """Ctrl-C, SIGTERM and SIGHUP end all trials with a checkpoint; a second one is a KeyboardInterrupt. Gives whether there
    was one."""
    stop = folder / STOP
    stop.unlink(missing_ok=True)

    def heard(number: int, _: Any) -> None:
        if stop.exists():
            raise KeyboardInterrupt
        stop.touch()
        again = "; Ctrl-C again leaves at once" if number == signal.SIGINT else ""
        os.write(2, f"\nthe trials finish their step and write a checkpoint{again}\n".encode())

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if main else ()
    before = {number: signal.signal(number, heard) for number in numbers}
    try:
        yield stop.exists
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.unlink(missing_ok=True)
