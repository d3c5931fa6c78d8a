"""What is done now and then: at an epoch's true end, and the best evaluation is saved whatever the two cadences."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from distdl.checkpoint.layout import checkpoints, step_folder
from distdl.checkpoint.load import Checkpoint
from distdl.checkpoint.prune import best
from distdl.config.check import Checker
from distdl.config.load import config_from_dict
from distdl.plan.plan import Plan
from distdl.run.folder import RunFolder
from distdl.track.spool import SpoolWriter
from distdl.train import worker
from distdl.train.hooks.hook import Run
from distdl.train.hooks.progress import Progress
from distdl.train.survey import survey
from distdl.ways.start import checkpoint_of
from tests.conftest import Result
from tests.ranks import run_ranks
from tests.resumed import events
from tests.small import layout, small_config, trained

SEEN = dict(zip([7, 14, 21, 28, 35, 42, 49, 56, 60], [0.76, 0.86, 0.93, 0.92, 0.92, 0.94, 0.94, 0.94, 0.93]))
"""Step -> held-out accuracy, as it was seen in a run."""


def planned(values: dict[str, Any]) -> Plan:
    return survey(config_from_dict(values))


def begun(path: Path, plan: Plan) -> RunFolder:
    folder = RunFolder(path)
    path.mkdir()
    folder.write("plan.json", plan.to_dict())
    folder.write("config.json", plan.config)
    return folder


@pytest.mark.slow
def test_a_worker_parses_the_config_of_its_plan_once(
    digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = small_config("mlp", digits, digits, train__steps=4)
    plan, parsed, check = planned(values), [], Checker.check

    def counted(self: Any, values: Any) -> Any:
        parsed.append(values["name"])
        return check(self, values)

    monkeypatch.setattr(Checker, "check", counted)
    assert plan.settings.train.steps == 4 and parsed == []  # whoever made it had the config
    told = json.loads(json.dumps(plan.to_dict()))
    worker.run(Plan.from_dict(told), begun(tmp_path / "run", plan), 0)
    assert checkpoints(tmp_path / "run" / "checkpoints") and parsed == ["mlp"]


def test_an_evaluation_takes_the_batch_that_fitted_while_training(
    digits: str, tmp_path: Path, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(small_config("mlp", digits, digits, train__micro_batch=4))
    folder, seen = begun(tmp_path / "run", plan), []
    folder.write("plan.json", plan.to_dict() | {"eval_batch": 7})
    monkeypatch.setattr(worker, "evaluate_checkpoint", lambda plan, *_: seen.append(plan.eval_batch) or (1, {}))
    assert command("evaluate", folder.path).code == 0 and plan.eval_batch == 4
    assert seen == [7]


def bits(a: Checkpoint, b: Checkpoint) -> list[str]:
    """Names of the tensors that differ."""
    assert a.tensors.keys() == b.tensors.keys()
    return [name for name in a.tensors if not torch.equal(a.read(name), b.read(name))]


@pytest.mark.slow
def test_the_best_evaluation_is_saved_whatever_the_cadences(
    digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluated every 7 steps and saved every 10: the best of all is kept, found as such, and continues to the bit."""
    values = small_config("mlp", digits, digits, train__steps=60)
    values |= {"evaluate": {"every_steps": 7}, "checkpoint": {"every_steps": 10, "keep_last": 1}}
    plan = planned(values)
    folder, again = begun(tmp_path / "whole", plan), tmp_path / "again"
    accuracies = iter(SEEN.values())
    monkeypatch.setattr("distdl.train.hooks.evaluate.evaluate", lambda *_: {"accuracy": next(accuracies), "loss": 1.0})
    worker.run(plan, folder, 0)
    written = [event["step"] for event in events(folder.path, "checkpoint")]
    assert written == [7, 10, 14, 20, 21, 30, 40, 42, 50, 60]  # 0.94 is saved once: of equals the earlier one is best
    assert [step for step, _ in checkpoints(folder.checkpoints)] == [42, 60]
    assert checkpoint_of(folder, "best").name == step_folder(42)  # what start.which and way.which ask
    assert worker.evaluate_checkpoint(plan, folder, "best")[0] == 42

    shutil.copytree(folder.path, again)
    shutil.rmtree(again / "checkpoints" / step_folder(60))
    accuracies = iter([0.94, 0.94, 0.93])
    worker.run(plan, RunFolder(again), 0)
    assert [step for step, _ in checkpoints(again / "checkpoints")] == [42, 60]
    ends = [Checkpoint(path / "checkpoints" / step_folder(60)) for path in (folder.path, again)]
    assert bits(*ends) == []


@pytest.mark.slow
@pytest.mark.parametrize("keep_best", [0, 2])
def test_it_costs_nothing_where_no_best_is_kept(
    keep_best: int, digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = small_config("mlp", digits, digits, train__steps=12)
    values |= {"evaluate": {"every_steps": 2}, "checkpoint": {"every_steps": 0, "keep_best": keep_best}}
    plan = planned(values)
    folder = begun(tmp_path / "run", plan)
    losses = iter([float("nan"), 0.5, 0.9, 0.7, 0.8, 0.1])
    monkeypatch.setattr("distdl.train.hooks.evaluate.evaluate", lambda *_: {plan.model.primary: next(losses)})
    worker.run(plan, folder, 0)
    written = [event["step"] for event in events(folder.path, "checkpoint")]
    assert written == (
        [12] if keep_best == 0 else [4, 6, 8, 10, 12]
    )  # never what is not a number; each of the two best
    assert best(folder.checkpoints, plan.model.better)[0].name == step_folder(6 if keep_best else 12)


@pytest.mark.slow
def test_every_rank_saves_the_best(digits: str, text: str, tmp_path: Path) -> None:
    """Where ranks hold parts of the model, saving is the work of all: they agree on when, and continue to the bit."""
    cases = {"zero2": small_config("mlp", digits, text), "zero1+pipeline2": small_config("gpt", digits, text)}
    runs = {}
    for name, values in cases.items():
        values |= {"evaluate": {"every_steps": 3}, "checkpoint": {"every_steps": 5, "keep_last": 1, "keep_best": 9}}
        values["train"] |= {"steps": 12, "micro_batch": 4}
        runs[name] = {"values": layout(values, name, 2), "folder": str(tmp_path / name)}
    assert run_ranks(trained, 2, runs) == [dict.fromkeys(runs, "")] * 2
    for name in cases:
        written = [event["step"] for event in events(tmp_path / name, "checkpoint")]
        improved = [step for step in (3, 6, 9, 12) if step in written]
        assert written == sorted({*improved, 5, 10, 12}) and len(improved) >= 3, name
        assert [step for step, _ in checkpoints(tmp_path / name / "checkpoints")] == sorted({*improved, 12}), name
        shutil.copytree(tmp_path / name, tmp_path / f"{name}-again")
        shutil.rmtree(tmp_path / f"{name}-again" / "checkpoints" / step_folder(12))
    again = {f"{name}-again": {**run, "folder": f"{run['folder']}-again"} for name, run in runs.items()}
    assert run_ranks(trained, 2, again) == [dict.fromkeys(again, "")] * 2
    for name in cases:
        ends = [Checkpoint(tmp_path / folder / "checkpoints" / step_folder(12)) for folder in (name, f"{name}-again")]
        assert bits(*ends) == [], name


def test_the_rate_is_that_of_training(digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 samples a second with an evaluation and a checkpoint of a minute in between are 40 samples a second."""
    clock = [0.0]
    monkeypatch.setattr("distdl.train.hooks.progress.time.perf_counter", lambda: clock[0])
    plan = planned(small_config("mlp", digits, digits, train__steps=10))
    run_: Any = Run(plan, 0, None, None, None, SpoolWriter(tmp_path / "events.jsonl"))  # type: ignore[arg-type]
    progress = Progress(run_)
    for step in range(1, 4):
        clock[0] += plan.global_batch / 40
        if step == 2:
            clock[0] += 60
            run_.seconds["evaluation"] += 45
            run_.seconds["checkpoint"] += 15
        progress.after_step(step, {})
    run_.spool.close()
    rates = [event["samples_per_s"] for event in events(tmp_path, "progress")]
    assert rates == [None, pytest.approx(40), pytest.approx(40)]


@pytest.mark.slow
def test_train_says_what_plan_says(
    digits: str, tmp_path: Path, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan's notes, and that a finished schedule which is made longer begins again higher up."""
    monkeypatch.chdir(tmp_path)
    values = small_config("mlp", digits, digits, train__steps=4, track__enabled=False)
    values["schedule"] = {"name": "cosine", "warmup_steps": 4}
    (tmp_path / "mlp.yaml").write_text(yaml.safe_dump(values))
    warm = "note: the warm-up of 4 steps lasts the whole run of 4 steps"
    assert warm in command("plan", "mlp.yaml").stdout
    assert warm in command("train", "mlp.yaml").stdout
    command("train", "mlp.yaml", "schedule.warmup_steps=0", "name=short")
    told = "the cosine schedule of 4 steps becomes one of 8: the learning rate was 0 at step 4, the last that was taken"
    assert told in command("plan", "runs/short", "train.steps=8").stdout
    longer = command("train", "--resume", "short", "train.steps=8").stdout
    assert told in longer and "and is 0.00389 at step 5" in longer
    assert "becomes one of" not in command("plan", "runs/short").stdout
