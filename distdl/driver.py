"""The driver's side of a run: config → data → plan → folder → workers → summary. The command line and Python take this way.

Nothing here knows of arguments or of a terminal: what is told goes to `say`, what is shown while the run goes on to `show`.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from distdl import trust
from distdl.config.schema import Config
from distdl.errors import DataCorrupt, DistdlError, InputError, TrainingFailed, sigterm_raises
from distdl.plan.plan import Plan
from distdl.run.attempts import TakenOver
from distdl.run.folder import RunFolder, existing_run, find_run, open_run, refuse_other, saved_config
from distdl.run.gate import Gate

if TYPE_CHECKING:
    from distdl.checkpoint.load import Checkpoint
    from distdl.learner import Learner
    from distdl.track.ahead import Early
    from distdl.track.client import Tracker

Say = Callable[[str], None]


def at_once(text: str) -> None:
    """Prints a line, and does not wait for a full buffer: what follows it takes a while."""
    print(text, flush=True)


class Watcher(Protocol):
    """Shows the progress of a run within its `with`."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> None: ...

    def waits_for(self, what: str) -> None:
        """Says what the run waits for now, before its first step."""

    def tell_tracking(self) -> None:
        """Says where the MLflow run is, as soon as there is one."""


Show = Callable[..., Watcher]
"""(run folder, steps, title, tracked=whether MLflow tracks it) -> what shows its progress."""


class Unwatched:
    """Shows nothing."""

    def __init__(self, folder: Path, steps: int, title: str, *, tracked: bool = False) -> None:
        pass

    def __enter__(self) -> Unwatched:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def waits_for(self, what: str) -> None:
        pass

    def tell_tracking(self) -> None:
        pass


class Interrupted(KeyboardInterrupt):
    """The run was ended on request; the text says what the same call does next."""


@dataclass(frozen=True)
class Outcome:
    """What came out of a run that was not cut off."""

    folder: RunFolder
    config: Config
    plan: Plan
    summary: dict[str, Any]
    tracking: str = ""
    """What became of its MLflow run, in words; '' where nothing was left to train."""
    trained: bool = True
    """False where the run had reached its end before."""


def train(
    config: Config,
    *,
    folder: RunFolder | None = None,
    source: Path | None = None,
    named: Sequence[str] = (),
    fresh: bool = False,
    take_over: bool = False,
    show: Show,
    say: Say = at_once,
    alone: bool = True,
) -> Outcome:
    """Trains a config to its end, or continues its run: that of `folder`, else the one of its name, unless `fresh`.

    `source` is the YAML file, and `named` the key=value arguments, which may name a tracking server. A run that is not
    `alone` is one of a search: its gate (`run/gate.py`) stands, and another process sends what MLflow is to know. Raises a
    DistdlError, or Interrupted after Ctrl-C or SIGTERM.
    """
    asked = time.time()
    check_server(config, folder.path if folder else source, named)  # before anything is written
    prepare_if_missing(config, say)

    from distdl.track import ahead

    with ahead.waiting(config.track.enabled and alone) as early:  # MLflow is imported while this process plans
        from distdl.train.survey import survey
        from distdl.ways.start import located

        before = folder or (None if fresh else existing_run(config))
        plan = survey(located(config, before))  # of places that are found; nothing changes it from here on
        remember_family(config)
        folder = folder or open_run(config, str(source) if source else None, fresh=fresh)
        if summary := _nothing_left(folder, plan):
            return Outcome(folder, plan.settings, plan, summary, trained=False)
        with folder.private(), folder.locked(take_over=take_over):
            folder.begin()
            if alone:
                Gate(folder.path).remove()  # of a search that the run was a trial of
            folder.keep(config)
            if source and source.is_file():
                folder.copy("config.yaml", str(source))
            for note in [*notes(plan, folder), *room_left(plan, folder.checkpoints)]:
                say(f"note: {note}")
            folder.write("launch.json", {"started": asked})
            folder.write("plan.json", plan.to_dict())
            tracker = _tracker(plan, folder, source.parent if source else None, uploads=alone)
            return _tracked(plan, folder, tracker, early, show, say)


def _tracker(plan: Plan, folder: RunFolder, source_dir: Path | None, uploads: bool) -> Tracker:
    from distdl.track.client import Tracker

    track = plan.settings.track
    return Tracker(
        folder.path,
        track.uri,
        track.experiment,
        folder.path.name,
        enabled=track.enabled,
        source_dir=source_dir,
        attempt=folder.attempt,
        uploads=uploads,
    )


def _tracked(plan: Plan, folder: RunFolder, tracker: Tracker, early: Early, show: Show, say: Say) -> Outcome:
    """Starts the workers, and gives the MLflow run an honest end, whatever theirs is."""
    from distdl.runtime.blame import goes_on
    from distdl.runtime.launch import launch

    config, track = plan.settings, plan.settings.track
    workers = f"{plan.world} {config.runtime.kind} worker{'s' if plan.world > 1 else ''}"
    title = f"{folder.path.name}: {plan.model.family}, {plan.model.parameters:,} parameters, {workers}, {plan.layout}"
    watcher = show(folder.path, plan.steps, title, tracked=track.enabled)
    with sigterm_raises(KeyboardInterrupt):  # while there are no workers that could write a checkpoint
        tracker.start(early)
        try:
            with watcher:
                summary = launch(plan, folder, watcher.waits_for)
        except TakenOver:
            raise  # the MLflow run, the events and the end are the newer attempt's
        except KeyboardInterrupt as stop:
            statement = tracker.finish("KILLED", "interrupted")
            watcher.tell_tracking()
            raise Interrupted(f"interrupted; {goes_on(folder)}\n{statement}") from stop
        except DistdlError as error:
            statement = tracker.finish("FAILED", str(error))
            watcher.tell_tracking()
            say(statement)
            raise
        except BaseException as error:
            tracker.finish("FAILED", f"{type(error).__name__}: {error}")
            raise
        if not summary["finished"]:
            steps = summary["steps"]
            statement = tracker.finish("KILLED", f"stopped on request after step {steps}")
            watcher.tell_tracking()
            what = f"stopped after step {steps:,}; the same command continues from its checkpoint"
            raise Interrupted(f"{what}\n{statement}")
        statement = tracker.finish("FINISHED", summary=summary)
        watcher.tell_tracking()
    return Outcome(folder, config, plan, summary, statement)


def _nothing_left(folder: RunFolder, plan: Plan) -> dict[str, Any] | None:
    """The summary of a run that is at its end, or None: it goes on where there are steps left, and patience."""
    summary = folder.read_derived("summary.json")
    if not summary or not summary.get("finished"):
        return None
    if summary["steps"] >= plan.steps:
        return summary
    waited = summary.get("evaluations_without_improvement", math.inf)
    stopping = plan.settings.early_stopping
    return summary if summary.get("stopped_early") and stopping and waited >= stopping.patience else None


def resumed(run: str, overrides: Sequence[str] = ()) -> tuple[Config, RunFolder]:
    """The config that a run (a name or a folder) was started with, with what is overridden now, and its folder. Raises
    InputError where there is no such run, or it would be another one."""
    folder = find_run(run, "runs")
    config = saved_config(folder, overrides)
    if config.name != (before := (folder.config_values() or {}).get("name")):
        fix = "leave the name out; a config with another name starts a run of its own"
        what = f"name={config.name}: the run in {folder.path} is {before!r}, and a run keeps its name"
        raise InputError(what, fix=fix)
    refuse_other(folder, config)
    return config, folder


def planned(config: Config, folder: RunFolder | None = None, unseen: bool = False) -> Plan:
    """What a config would run on this machine; `folder`: of the run that it continues; `unseen`: as far as can be told
    without its data set. Raises InputError."""
    from distdl.train.survey import survey, survey_unseen
    from distdl.ways.start import located

    return (survey_unseen if unseen else survey)(located(config, folder))


def notes(plan: Plan, folder: RunFolder | None = None) -> list[str]:
    """What a user should know before starting; with the folder of a run that goes on, how its schedule does, too."""
    from distdl.checkpoint.layout import checkpoints
    from distdl.engine.schedules import stretched

    try:
        before = folder.read("plan.json") if folder else None
    except DataCorrupt:  # torn, and about to be written anew
        return list(plan.notes)
    found = checkpoints(folder.checkpoints) if folder and before else []
    if not before or not found:
        return list(plan.notes)
    note = stretched(plan.settings, found[-1][0], before["steps"], plan.steps)
    was, now = before["config"]["train"].get("precision", "fp32"), plan.settings.train.precision
    other = f"the run was trained in {was} until now, and goes on in {now}; train.precision={was} keeps it"
    return [*plan.notes, *([note] if note else []), *([other] if was != now else [])]


def room_left(plan: Plan, place: Path) -> list[str]:
    """What a user should know of the disk that checkpoints go to. Raises TrainingFailed where not one has room."""
    from distdl.plan.memory import checkpoint_bytes

    config, each = plan.settings.checkpoint, checkpoint_bytes(plan.settings, plan.model)
    try:
        free = shutil.disk_usage(place if place.is_dir() else place.parent).free
    except OSError:
        return []
    kept = config.keep_last + config.keep_best + 1  # one is written before another is removed
    told = f"{free / 1e9:,.1f} GB are free at {place.parent}, and a checkpoint takes {each / 1e9:,.1f} GB"
    if free < each:
        raise TrainingFailed(f"{told}\n    fix: free space there, or runs=FOLDER on a larger disk")
    if free < kept * each:
        return [f"{told}, of which {kept} may lie there at a time: checkpoint.keep_last and keep_best are how many"]
    return []


def for_one_process(folder: RunFolder, *more: str) -> Config:
    """The config of a run for this process alone, which only looks at what it learned; `more`: key=value arguments. Raises
    InputError."""
    overrides = ["runtime={kind: local, workers: 1}", "parallel={engine: torch}"]
    precision = saved_config(folder).train.precision
    if precision == "auto" and (plan := folder.read_derived("plan.json")):  # what it was where it was trained
        precision = plan["config"]["train"].get("precision", "auto")
    # What training needs of a GPU, a forward pass does not.
    overrides.append(f"train.precision={'bf16' if precision in ('fp16', 'fp8') else precision}")
    return saved_config(folder, [*overrides, *more])


def evaluated(folder: RunFolder, which: str, split: str = "") -> tuple[Config, int, dict[str, float]]:
    """(config, step, held-out metrics) of a run's latest or best checkpoint, or of a folder; `split`: another than the
    run's own. Raises a DistdlError."""
    from distdl.train.survey import survey
    from distdl.train.worker import evaluate_checkpoint
    from distdl.ways.start import located

    trained = folder.read("plan.json")
    changes = [f"evaluate.batch={trained['eval_batch']}"] if trained else []  # what fitted while training fits now
    changes += [f"data.eval_split={split}", "data.test_split=null"] if split else []
    plan = survey(located(for_one_process(folder, *changes), learns=False))
    return plan.settings, *evaluate_checkpoint(plan, folder, which)


def trained_model(folder: RunFolder, which: str) -> Learner:
    """The model of a run's latest or best checkpoint, or of a folder, on the CPU. Raises a DistdlError."""
    return trained(folder, which)[1]


def trained(folder: RunFolder, which: str) -> tuple[Config, Learner, Checkpoint]:
    """(config, model on the CPU, the checkpoint that it came from). Raises a DistdlError."""
    from distdl.layout.process import alone
    from distdl.train.worker import build_learner, chosen_checkpoint
    from distdl.ways.start import located

    config = located(for_one_process(folder), learns=False)
    checkpoint = chosen_checkpoint(folder, which)
    with alone:  # fresh weights are drawn before the checkpoint's are read
        learner: Learner = build_learner(config, checkpoint, averaged=True)
    return config, learner, checkpoint


# -- what a config needs of this machine -------------------------------------------------------------------------------


def check_server(config: Config, place: Path | None, overrides: Sequence[str]) -> None:
    """Raises InputError for a tracking URI that cannot be used or holds a password, and for a server that only the files of
    a run name; `place` is the file or folder that the config was read from. A server of the user's own is remembered."""
    if not config.track.enabled or config.track.uri is None:
        return
    from distdl.track.run import check_tracking_uri, refuse_unconfigured

    check_tracking_uri(config.track.uri)
    said = any(text.startswith(("track.uri=", "track=")) for text in overrides)
    run = trust.run_around(place / "config.json" if place.is_dir() else place) if place else None
    if run and not said:
        refuse_unconfigured(config.track.uri, run, fix=f"track.uri={config.track.uri} names it; track.enabled=false")
    trust.remember_server(config.track.uri)


def remember_family(config: Config) -> None:
    """A family or optimizer of the user's own that they train or launch: in a run's folder it needs no yes."""
    family = config.family_name
    if family.own:
        trust.remember(family.source(), place=family.file is None)
    if code := config.optimizer_code:
        trust.remember(code, place=True)


def missing_data(config: Config) -> str:
    """What is missing and how it comes to be, where `data.prepare` would write the data set; '': it is there, or is no
    business of a recipe's."""
    recipe, path = config.data.prepare, config.data.path
    if recipe is None or "://" in path or Path(path).exists():
        return ""
    return (
        f"{path} is not there yet; `distdl train` and `distdl plan --prepare` write it from the source {recipe.source}"
    )


def unfit_data(config: Config) -> str:
    """Checks a config against the data set that it names, without building a model or reading a value. Raises InputError
    with all that does not fit. Returns why nothing could be checked, or ''."""
    from distdl.data.manifest import read_manifest

    if missing := missing_data(config):
        return missing
    path = config.data.path
    if "://" not in path and not Path(path).exists():
        return f"{path} is not there yet"
    try:
        read_manifest(path)
    except InputError as error:
        if "://" in path:  # a store that this machine may not reach; the workers may
            return f"{path} cannot be read from here: {error.problems[0].what}"
        raise
    if config.family_name.own:  # what it reads is told by code, which runs when something is planned or trained
        return f"what {config.family} reads of {path} is checked by `distdl plan`"
    from distdl.train.survey import data_facts

    data_facts(config)
    return ""


def prepare_if_missing(config: Config, say: Say = at_once) -> None:
    """Writes the data set that `data.prepare` describes, if `data.path` does not exist yet."""
    recipe, path = config.data.prepare, config.data.path
    if recipe is None:
        return
    from distdl.data.prepare import parse_options, prepare_dataset
    from distdl.data.progress import on_stderr
    from distdl.data.table.report import told

    kept = (str, list, type(None))  # null is an option's default, not its name
    options = {key: value if isinstance(value, kept) else str(value) for key, value in recipe.options.items()}
    parse_options(recipe.source, options)  # a wrong option is an error even while the data set is there
    if "://" in path or Path(path).exists():
        return
    say(f"preparing {recipe.source} in {path} …")
    try:
        follow = on_stderr() if say is at_once else None
        manifest = prepare_dataset(recipe.source, path, options, follow=follow, workers=recipe.workers)
    except InputError:
        if not (Path(path) / "manifest.json").is_file():
            raise
        say(f"another process has prepared {path} meanwhile")
        return
    for line in told(manifest.info):
        say(line)
    rows = ", ".join(f"{name} {split.rows:,} rows" for name, split in manifest.splits.items())
    say(f"prepared {path}: {rows}")
