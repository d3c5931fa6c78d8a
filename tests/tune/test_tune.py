"""`distdl tune` as a user meets it: on Ray, with MLflow, cut off and continued. Tiny data."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from distdl.track.run import default_tracking_uri, load
from distdl.track.spool import SpoolReader
from distdl.tune.record import Record, read_record
from tests.conftest import REPOSITORY, Result, distdl, variables

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.timeout(900)]

YAML = """\
name: s
model: {{family: mlp, inputs: [1, 8, 8], hidden: [16]}}
data: {{path: {data}}}
train: {{global_batch: 32, steps: {steps}}}
optimizer: {{name: sgd, lr: 1e-2}}
evaluate: {{every_steps: 10}}
checkpoint: {{every_steps: 10}}
runtime: {{kind: local}}
search:
{search}
"""
DOC = (REPOSITORY / "docs" / "command_line.md").read_text(encoding="utf-8")
LR = "  space: {optimizer.lr: {log_uniform: [1e-3, 1e-1]}}\n  algorithm: random\n"


def config(folder: Path, data: str, search: str, steps: int = 40) -> None:
    (folder / "c.yaml").write_text(YAML.format(data=data, steps=steps, search=search))


def record(folder: Path) -> Record:
    found = read_record(folder / "runs" / "s-search")
    assert found
    return found


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, digits: str) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("search")
    config(folder, digits, LR + "  scheduler: asha\n  reduction: 2\n  trials: 5\n  at_once: 1\n")
    return folder, distdl("tune", "c.yaml", "--plain", cwd=folder, timeout_s=600)


def test_a_search_trains_its_trials_and_says_which_is_best(searched: tuple[Path, Result]) -> None:
    folder, result = searched
    assert result.code == 0, result.stdout + result.stderr
    found = record(folder)
    best = found.best()
    assert best and f"best: {best.name}, accuracy" in result.stdout
    states = [trial.state for trial in found.trials]
    assert len(states) == 5 and set(states) <= {"finished", "stopped"} and "finished" in states
    for trial in found.trials:
        run = found.folder / trial.name
        summary = json.loads((run / "summary.json").read_text())
        assert summary["steps"] == trial.step and (trial.step == 40) == (trial.state == "finished")
        assert summary["metrics"]["accuracy"] == pytest.approx(trial.objective, abs=1e-12)
        assert json.loads((run / "config.json").read_text())["optimizer"]["lr"] == trial.values["optimizer.lr"]
        if trial.state == "stopped":
            assert trial.step in (10, 20) and "behind others" in trial.reason
    with (found.folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == [trial.name for trial in found.trials]
    assert (found.folder / "search.png").read_bytes().startswith(b"\x89PNG")


def test_one_process_trains_one_trial_after_another(searched: tuple[Path, Result]) -> None:
    found = record(searched[0])
    pids = set()
    for trial in found.trials:
        attempts = found.folder / trial.name / "attempts"
        pids.add(json.loads((attempts / "000001.json").read_text())["pid"])
    assert len(pids) == 1


def test_its_trials_are_runs_like_all_others(searched: tuple[Path, Result]) -> None:
    folder, _ = searched
    result = distdl("runs", "list", "--runs", "runs/s-search", "--json", cwd=folder)
    listed = {row["name"]: row["state"] for row in json.loads(result.stdout)}
    assert listed == {trial.name: trial.state for trial in record(folder).trials}
    assert distdl("runs", "compare", "runs/s-search/s-001", "runs/s-search/s-002", cwd=folder).code == 0


def test_the_best_config_trains_to_the_number_of_the_trial(searched: tuple[Path, Result]) -> None:
    folder, _ = searched
    best = record(folder).best()
    assert best
    result = distdl("train", "runs/s-search/best.yaml", "track.enabled=false", "--json", cwd=folder)
    assert result.code == 0, result.stderr
    assert json.loads(result.stdout)["metrics"]["accuracy"] == pytest.approx(best.objective, abs=1e-6)


def test_mlflow_has_the_search_and_its_trials_below_it(searched: tuple[Path, Result]) -> None:
    from mlflow import MlflowClient

    folder, _ = searched
    found = record(folder)
    info = load(found.folder)
    assert info and info.tracking_uri == default_tracking_uri(folder / "runs")
    client = MlflowClient(tracking_uri=info.tracking_uri)
    runs = client.search_runs([str(info.experiment_id)])
    children = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == info.mlflow_run_id}
    assert set(children) == {trial.name for trial in found.trials}
    for trial in found.trials:
        run = children[trial.name]
        assert run.info.status == ("FINISHED" if trial.state == "finished" else "KILLED")
        points = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "eval/scores/accuracy")}
        assert points == dict(trial.history)
    parent = client.get_run(info.mlflow_run_id)
    assert parent.info.status == "FINISHED" and parent.data.params["search.algorithm"] == "random"
    assert parent.data.metrics["best/accuracy"] == max(t.objective or 0.0 for t in found.trials)
    files = {file.path for file in client.list_artifacts(info.mlflow_run_id)}
    assert {"best.yaml", "search.png", "trials.csv", "search.json"} <= files


def test_the_same_command_is_refused_and_resume_makes_it_longer(searched: tuple[Path, Result]) -> None:
    folder, _ = searched
    before = record(folder)
    again = distdl("tune", "c.yaml", cwd=folder)
    assert again.code == 2 and "is there already, 5 trials of it" in again.stderr and "--resume" in again.stderr
    other = distdl("tune", "c.yaml", "--resume", "search.seed=9", cwd=folder)
    assert other.code == 2 and "search.seed: None there, 9 now" in other.stderr
    longer = distdl("tune", "c.yaml", "--resume", "--trials", "6", "--plain", cwd=folder, timeout_s=600)
    assert longer.code == 0, longer.stdout + longer.stderr
    after = record(folder)
    assert [t.values for t in after.trials[:5]] == [t.values for t in before.trials] and len(after.trials) == 6
    fences = {path.parent.parent.name for path in after.folder.glob("*/attempts/000002.fence")}
    assert fences == set(), "a trial that had ended was trained again"


def started(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "distdl", "tune", "c.yaml", "--plain", *more]
    return subprocess.Popen(command, cwd=folder, env=variables(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_until(process: subprocess.Popen[bytes], folder: Path, what: Any) -> None:
    end = time.monotonic() + 400
    while time.monotonic() < end and process.poll() is None:
        found = read_record(folder / "runs" / "s-search") if (folder / "runs" / "s-search").is_dir() else None
        if found and what(found):
            return
        time.sleep(0.1)
    process.kill()
    raise AssertionError(process.communicate()[0].decode())


@pytest.mark.alone
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_search_that_is_cut_off_goes_on(tmp_path: Path, digits: str, how: signal.Signals) -> None:
    steps = 5000  # the second trial has seconds to go when it is cut off
    options = ("evaluate.every_steps=250", "checkpoint.every_steps=50", "track.enabled=false")
    config(tmp_path, digits, LR + "  trials: 2\n  at_once: 1\n", steps)
    process = started(tmp_path, *options)
    wait_until(
        process, tmp_path, lambda found: found.trials and found.trials[-1].step >= 250 and len(found.trials) == 2
    )
    belonging = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, how)
    if how == signal.SIGKILL:  # as a machine that goes: a worker that Ray has not ended yet could train on to the end
        for other in belonging:
            with suppress(psutil.NoSuchProcess):
                other.kill()
    process.communicate(timeout=120)
    assert process.returncode == (130 if how == signal.SIGINT else -9)
    cut = record(tmp_path)
    assert [trial.state for trial in cut.trials] == ["finished", "interrupted" if how == signal.SIGINT else "running"]
    result = distdl("tune", "c.yaml", "--plain", "--resume", *options, cwd=tmp_path, timeout_s=600)
    assert result.code == 0, result.stdout + result.stderr
    found = record(tmp_path)
    assert [trial.state for trial in found.trials] == ["finished", "finished"]
    assert [trial.values for trial in found.trials] == [trial.values for trial in cut.trials]
    assert found.trials[0].history == cut.trials[0].history
    second = json.loads((found.folder / "s-002" / "summary.json").read_text())
    assert second["steps"] == steps and second["steps_this_time"] < steps, "it did not go on from its checkpoint"
    assert not list((found.folder / "s-001" / "attempts").glob("000002.*"))


def test_trials_that_fail_are_named_and_a_search_where_all_do_ends_with_1(tmp_path: Path, digits: str) -> None:
    some = "  space: {optimizer.lr: {grid: [1.0e+30, 0.01]}}\n  algorithm: grid\n"
    config(tmp_path, digits, some)
    result = distdl("tune", "c.yaml", "--plain", "track.enabled=false", cwd=tmp_path, timeout_s=600)
    assert result.code == 0, result.stdout + result.stderr
    found = record(tmp_path)
    assert [trial.state for trial in found.trials] == ["failed", "finished"] and "finite" in found.trials[0].reason
    assert "s-001 failed" in result.stdout
    config(tmp_path, digits, some.replace(", 0.01", ""))
    result = distdl("tune", "c.yaml", "--plain", "--fresh", "track.enabled=false", cwd=tmp_path, timeout_s=600)
    assert result.code == 1 and "all 1 trials of the search failed" in result.stderr and "finite" in result.stderr
    assert (tmp_path / "runs" / "s-search-2" / "search.json").is_file()


def test_a_population_is_trained_in_rounds(tmp_path: Path, digits: str) -> None:
    config(tmp_path, digits, LR + "  scheduler: pbt\n  perturb_every_steps: 20\n  trials: 4\n", steps=60)
    result = distdl("tune", "c.yaml", "--plain", "--json", "track.enabled=false", cwd=tmp_path, timeout_s=800)
    assert result.code == 0, result.stdout + result.stderr
    found, told = record(tmp_path), json.loads(result.stdout)
    row = next(line for line in DOC.splitlines() if line.startswith("| `distdl tune` |"))
    assert set(told) == set(re.findall(r"`(\w+)`", row.split("|")[3])) and "s-001 finished" in result.stderr
    assert [(trial.state, trial.step) for trial in found.trials] == [("finished", 60)] * 4
    copies = [trial for trial in found.trials if "goes on from" in trial.reason]
    assert copies
    for trial in found.trials:  # each round ended with its step, and began there
        starts = [
            event["step"]
            for event in SpoolReader(found.folder / trial.name / "events.jsonl").poll()
            if event["kind"] == "world"
        ]
        assert starts == [0, 20, 40]
    for trial in copies:
        assert re.search(r"goes on from s-00\d at step (20|40)$", trial.reason)
        now = json.loads((found.folder / trial.name / "config.json").read_text())
        assert now["optimizer"]["lr"] == trial.values["optimizer.lr"]
