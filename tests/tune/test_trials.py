"""The trials of a search, each an ordinary run: made, held at a gate, stopped, continued, and told of. Without Ray."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from distdl import driver
from distdl.checkpoint.layout import checkpoints
from distdl.config.load import load_config
from distdl.config.search import Search
from distdl.run.gate import GO_ON, STOP, WAIT, Gate
from distdl.tune.desk import WAIT as NOTHING
from distdl.tune.desk import Desk
from distdl.tune.population import Population
from distdl.tune.record import Record, Trial, read_record
from distdl.tune.samplers import sampler
from distdl.tune.trial import Run, Told
from distdl.tune.values import given

YAML = """\
name: s
model: {{family: mlp, inputs: [1, 8, 8], hidden: [16]}}
data: {{path: {data}}}
train: {{global_batch: 32, steps: 40}}
optimizer: {{name: sgd, lr: 1e-2}}
parallel: {{engine: torch}}
evaluate: {{every_steps: 10}}
checkpoint: {{every_steps: 10}}
runtime: {{kind: local}}
track: {{enabled: false}}
search:
  space: {{optimizer.lr: {{log_uniform: [1e-3, 1e-1]}}}}
  algorithm: random
  trials: 4
"""


def desk(folder: Path, data: str, *overrides: str, kind: Any = Desk, **more: Any) -> Desk:
    (folder / "c.yaml").write_text(YAML.format(data=data))
    loaded = load_config(str(folder / "c.yaml"), overrides)
    search = loaded.config.search
    assert search
    place = folder / "s-search"
    place.mkdir(exist_ok=True)
    record = read_record(place) or Record(place, search.model_dump(mode="json"), {}, 0, "accuracy", "higher", 40)
    values = given(str(folder / "c.yaml"), overrides, loaded.config)
    return kind(record, search, loaded.config, values, sampler(search, 0, "higher"), **more)


def until(run: Run, step: int) -> Told:
    """What it says at this step, or at its end: on the way it may tell of evaluations that it does not wait at."""
    while (told := run.next()).state == "running" and told.step < step:
        pass
    return told


def test_a_gate_says_go_on_wait_or_stop(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    assert not gate.there
    gate.open_until(20)
    assert gate.there and [gate.asks(step) for step in (10, 19, 20, 30)] == [GO_ON, GO_ON, WAIT, WAIT]
    gate.open_until(None)
    assert gate.asks(10**9) == GO_ON
    gate.stop()
    assert gate.asks(1) == STOP


@pytest.mark.slow
def test_a_trial_waits_at_its_rung_and_ends_there_with_a_checkpoint(tmp_path: Path, digits: str) -> None:
    """Not some steps later: what a trial is worth at its rung must not depend on who was faster."""
    work = desk(tmp_path, digits).next()
    assert work
    folder = tmp_path / "s-search" / work.trial.name
    run = Run(tmp_path / "s-search", work.trial.name, "accuracy", until=20)
    run.start()
    told = until(run, 20)
    assert (told.step, told.state) == (20, "running") and 0 < (told.value or 0) <= 1
    time.sleep(0.3)
    assert checkpoints(folder / "checkpoints")[-1][0] < 20, "it has gone on, or has ended, though nobody said so"
    run.end()
    assert run.next().state == "stopped"
    assert checkpoints(folder / "checkpoints")[-1][0] == 20
    assert json.loads((folder / "summary.json").read_text())["steps"] == 20
    config, again = driver.resumed(str(folder))
    done = driver.train(config, folder=again, show=driver.Unwatched, say=lambda text: None)
    assert done.summary["steps"] == 40, "a trial that somebody goes on with is held by nobody"


@pytest.mark.slow
def test_a_trial_that_is_asked_to_stop_while_it_waits_ends_there(tmp_path: Path, digits: str) -> None:
    """With that step, not where its next look for a request would fall."""
    work = desk(tmp_path, digits).next()
    assert work
    run = Run(tmp_path / "s-search", work.trial.name, "accuracy", until=20)
    run.start()
    until(run, 20)
    time.sleep(0.1)
    run._folder.attempt.request_stop()
    run._thread.join(60)
    assert checkpoints(tmp_path / "s-search" / work.trial.name / "checkpoints")[-1][0] == 20


@pytest.mark.slow
def test_a_trial_that_goes_on_is_the_run_that_it_would_have_been(tmp_path: Path, digits: str) -> None:
    """Held at a rung, ended, and continued from its checkpoint: the same number as in one go, in the same process."""
    found = {}
    for name, rungs in (("held", [10, 30]), ("whole", [])):
        (tmp_path / name).mkdir()
        work = desk(tmp_path / name, digits).next()
        assert work
        run = Run(tmp_path / name / "s-search", work.trial.name, "accuracy", until=rungs[0] if rungs else None)
        run.start()
        if rungs:
            assert until(run, 10).step == 10
            run.go_on(30)
            assert until(run, 30).step == 30
            run.end()
            run = Run(tmp_path / name / "s-search", work.trial.name, "accuracy", until=None)
            run.start()
        told = until(run, 41)
        assert (told.step, told.state) == (40, "finished")
        found[name] = json.loads((tmp_path / name / "s-search" / work.trial.name / "summary.json").read_text())[
            "metrics"
        ]
    assert found["held"] == found["whole"]


@pytest.mark.slow
def test_a_trial_that_fails_says_why(tmp_path: Path, digits: str) -> None:
    work = desk(tmp_path, digits, "search.space.optimizer.lr={choice: [1.0e30]}").next()
    assert work
    run = Run(tmp_path / "s-search", work.trial.name, "accuracy", None)
    run.start()
    told = until(run, 41)
    assert told.state == "failed" and "finite" in told.reason


@pytest.mark.slow
def test_a_metric_that_nobody_tells_is_named(tmp_path: Path, digits: str) -> None:
    work = desk(tmp_path, digits).next()
    assert work
    run = Run(tmp_path / "s-search", work.trial.name, "acuracy", None)
    run.start()
    told = until(run, 41)
    assert told.state == "failed" and "it told no 'acuracy'; its metrics are accuracy, loss" in told.reason


def test_the_record_survives_and_half_a_trial_goes_on(tmp_path: Path, digits: str) -> None:
    first = desk(tmp_path, digits)
    for number in (1, 2):
        work = first.next()
        assert work and work.trial.number == number
        first.hears(number, Told(10, 0.5, "running"))
    first.hears(1, Told(40, 0.9, "finished"))
    again = desk(tmp_path, digits)
    assert [(t.state, t.history) for t in again.record.trials] == [
        ("finished", [(10, 0.5), (40, 0.9)]),
        ("running", [(10, 0.5)]),
    ]
    names = []
    while work := again.next():
        names.append(work.trial.name)
    assert names == ["s-002", "s-003", "s-004"]
    assert [t.values for t in again.record.trials][:2] == [t.values for t in first.record.trials]
    best = again.record.best()
    assert best and best.number == 1
    runs = sorted(path.parent.name for path in (tmp_path / "s-search").glob("*/config.json"))
    assert runs == ["s-001", "s-002", "s-003", "s-004"]


def test_the_best_is_one_that_reached_its_end(tmp_path: Path) -> None:
    record = Record(tmp_path, {}, {}, 0, "loss", "lower", 40)
    record.trials = [
        Trial(1, "a", {}, "stopped", 10, 0.1),
        Trial(2, "b", {}, "finished", 40, 0.3),
        Trial(3, "c", {}, "finished", 40, 0.2),
        Trial(4, "d", {}, "failed", 5, 0.0),
        Trial(5, "e", {}, "finished", 40, None),
    ]
    assert record.best() is record.trials[2]
    record.better = "higher"
    assert record.best() is record.trials[1]
    trial = Trial(1, "a", {})
    trial.told(10, math.nan)
    assert trial.objective is None and trial.step == 10


def test_a_trial_whose_values_do_not_fit_fails_and_the_search_goes_on(tmp_path: Path, digits: str) -> None:
    found = desk(tmp_path, digits)
    values = iter([{"optimizer.lr": -1.0}, {"optimizer.lr": 0.1}])
    found._sampler = lambda number, trials: next(values)
    work = found.next()
    assert work and work.trial.number == 2
    assert found.record.trials[0].state == "failed" and "optimizer.lr" in found.record.trials[0].reason


# -- a population --------------------------------------------------------------------------------------------------------


def rounds(found: Desk, score: dict[int, float]) -> list[list[tuple[int, int | None]]]:
    """What a population asks for, round by round, where each member tells its score; its checkpoints are empty folders."""
    seen: list[list[tuple[int, int | None]]] = []
    while True:
        batch = []
        while (work := found.next()) not in (None, NOTHING):
            assert work
            batch.append((work.trial.number, work.until))
        if not batch:
            return seen
        seen.append(batch)
        for number, until in batch:
            step = until or 40
            folder = found.record.folder / f"s-{number:03d}" / "checkpoints" / f"step_{step:08d}"
            folder.mkdir(parents=True)
            (folder / "of").write_text(str(number))
            found.hears(number, Told(step, score[number], "paused" if until else "finished"))


def test_the_worst_of_a_population_goes_on_from_the_best(tmp_path: Path, digits: str) -> None:
    found = desk(tmp_path, digits, "search.scheduler=pbt", kind=Population, every=20)
    before = {t.number: dict(t.values) for t in found.record.trials}
    asked = rounds(found, {1: 0.5, 2: 0.9, 3: 0.1, 4: 0.6})
    assert asked == [[(n, 20) for n in (1, 2, 3, 4)], [(n, None) for n in (1, 2, 3, 4)]]
    trials = found.record.trials
    assert trials[2].reason == "goes on from s-002 at step 20"
    assert (tmp_path / "s-search/s-003/checkpoints/step_00000020/of").read_text() == "2"
    assert {n for n in before if before[n] != trials[n - 1].values} == {3}
    assert trials[2].values["optimizer.lr"] != before[2]["optimizer.lr"]
    config = load_config(str(tmp_path / "s-search/s-003/config.yaml")).config
    assert config.optimizer.lr == trials[2].values["optimizer.lr"] and config.checkpoint.every_steps == 20


def test_a_population_is_what_its_seed_says_and_goes_on_where_it_was(tmp_path: Path, digits: str) -> None:
    score = {1: 0.5, 2: 0.9, 3: 0.1, 4: 0.6}
    (tmp_path / "a").mkdir()
    whole = desk(tmp_path / "a", digits, "search.scheduler=pbt", kind=Population, every=20)
    rounds(whole, score)
    (tmp_path / "b").mkdir()
    cut = desk(tmp_path / "b", digits, "search.scheduler=pbt", kind=Population, every=20)
    for _ in range(4):
        work = cut.next()
        assert work
        if work.trial.number < 4:  # the process is killed while the fourth runs
            folder = cut.record.folder / work.trial.name / "checkpoints" / "step_00000020"
            folder.mkdir(parents=True)
            (folder / "of").write_text(str(work.trial.number))
            cut.hears(work.trial.number, Told(20, score[work.trial.number], "paused"))
    again = desk(tmp_path / "b", digits, "search.scheduler=pbt", kind=Population, every=20)
    assert rounds(again, score) == [[(4, 20)], [(n, None) for n in (1, 2, 3, 4)]]
    assert [t.values for t in again.record.trials] == [t.values for t in whole.record.trials]


def test_a_member_that_fails_does_not_hold_the_others(tmp_path: Path, digits: str) -> None:
    found = desk(tmp_path, digits, "search.scheduler=pbt", kind=Population, every=20)
    for number in (1, 2, 3, 4):
        assert found.next() not in (None, NOTHING)
        found.hears(number, Told(20, 0.1 * number, "failed" if number == 4 else "paused", "why"))
    seen = [work.trial.number for _ in range(3) if (work := found.next())]
    assert seen == [1, 2, 3]


def test_a_search_with_one_member_is_no_population() -> None:
    assert Search(space={"a": {"choice": [1]}}, trials=1).count() == 1  # type: ignore[dict-item]


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_the_picture_of_a_search_is_drawn(tmp_path: Path, better: str) -> None:
    from distdl.tune.picture import draw

    space = {
        "optimizer.lr": {"log_uniform": [1e-4, 1e-1]},
        "model.hidden": {"choice": [[32], [64, 64]]},
        "n": {"integer": [1, 9]},
    }
    record = Record(tmp_path, {"space": space}, {}, 0, "accuracy", better, 40)
    assert not draw(record, tmp_path / "search.png")
    states = ("finished", "stopped", "failed", "interrupted")
    for number, state in enumerate(states, 1):
        values = {"optimizer.lr": 10.0**-number, "model.hidden": [32], "n": number}
        record.trials.append(Trial(number, f"t-{number}", values, state, 10, 0.1 * number, [(10, 0.1 * number)]))
    assert draw(record, tmp_path / "search.png")
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")


def test_every_evaluation_is_told_and_that_of_the_test_split_is_none(tmp_path: Path, digits: str) -> None:
    """Else it would be chosen by what is kept for the last word."""
    from distdl.track.spool import SpoolWriter

    work = desk(tmp_path, digits).next()
    assert work
    run = Run(tmp_path / "s-search", work.trial.name, "accuracy", None)
    run._split = "validation"
    writer = SpoolWriter(tmp_path / "s-search" / work.trial.name / "events.jsonl")
    for step, split, value in ((10, "validation", 0.3), (20, "validation", 0.4), (20, "test", 0.9)):
        writer.write("evaluation", step=step, split=split, values={"accuracy": value})
    writer.close()
    assert run._look() and run._latest == (20, 0.4) and run._seen == [(10, 0.3), (20, 0.4)]


def test_asha_remembers_what_trials_were_worth_before_the_search_was_cut_off(tmp_path: Path) -> None:
    """One that goes on is judged by its own past, and not counted twice."""
    from distdl.tune.by_ray import METRIC, STEP, recall, rungs, scheduler

    search = Search(space={"a": {"choice": [1]}}, scheduler="asha", reduction=2)  # type: ignore[dict-item]
    record = Record(tmp_path, {}, {}, 0, "accuracy", "higher", 80)
    for number, value in enumerate((0.9, 0.8, 0.7), 1):
        record.trials.append(Trial(number, f"t-{number}", {}, "stopped", 10, value, [(10, value)]))
    half = Trial(4, "t-4", {}, "running", 10, 0.1, [(10, 0.1)])
    record.trials.append(half)
    assert rungs(search, 10, 80) == [10, 20, 40]
    asha = scheduler(search, record, 10)
    told = dict(asha._brackets[0]._rungs)
    assert told[10] == {"t-1": 0.9, "t-2": 0.8, "t-3": 0.7}
    recall(asha, "tune's own", half)
    assert set(told[10]) == {"t-1", "t-2", "t-3", "tune's own"}

    class New:
        trial_id = "new"

    asha.on_trial_add(None, New())
    assert asha.on_trial_result(None, New(), {STEP: 10, METRIC: 0.2}) == "STOP"
