"""`distdl runs`: what lies in the runs folder, told in the terminal."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distdl.cli.curves import drawn
from distdl.config.load import load_values
from distdl.track.spool import SpoolWriter
from tests.track.conftest import drain, mlflow_run, runs_dir, store_template  # noqa: F401 - fixtures

Command = Callable[..., Any]


def run_of(runs: Path, name: str, accuracy: float, *, lr: float = 0.1, end: str = "FINISHED", began: int = 0) -> Path:
    """The folder of a run of 40 steps."""
    folder = runs / name
    folder.mkdir(parents=True)
    named = {
        "name": name,
        "model": {"family": "mlp", "inputs": [4]},
        "data": {"path": "d"},
        "train": {"steps": 40, "global_batch": 4},
        "optimizer": {"name": "adamw", "lr": lr},
    }
    plan = {
        "steps": 40,
        "model": {"family": "mlp", "primary": "accuracy", "better": "higher"},
        "data": {"fingerprint": "ab" * 32},
    }
    summary = {"finished": True, "steps": 40, "metrics": {"accuracy": accuracy, "loss": 1 - accuracy}}
    (folder / "config.json").write_text(json.dumps(load_values(named).model_dump(mode="json")))
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "launch.json").write_text(json.dumps({"started": 1e9 + began}))
    writer = SpoolWriter(folder / "events.jsonl")
    for step in (10, 20, 30, 40):
        writer.write("metrics", step=step, values={"loss": 4.0 / step, "lr": 0.1})
    for step in (20, 40):
        writer.write(
            "evaluation", step=step, split="test", values={"loss": 5.0 / step, "accuracy": accuracy * step / 40}
        )
    if end:
        (folder / "summary.json").write_text(json.dumps(summary))
        writer.write("end", status=end, error=None, summary=summary)
    writer.close()
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    run_of(tmp_path / "runs", "old", 0.9, began=1)
    run_of(tmp_path / "runs", "new", 0.8, lr=0.2, began=2)
    run_of(tmp_path / "runs", "cut", 0.3, end="", began=0)
    return tmp_path / "runs"


def test_list_tells_the_newest_first_and_what_became_of_each(runs: Path, command: Command) -> None:
    code, out, _ = command("runs", "list", "--runs", runs)
    lines = out.splitlines()
    assert code == 0 and [line.split()[0] for line in lines] == ["NAME", "new", "old", "cut"]
    assert "finished" in lines[1] and "accuracy 0.8" in lines[1] and "mlp" in lines[1]
    assert "lost" in lines[3] and "accuracy 0.3" in lines[3], "its last evaluation, though it has no summary"
    with (runs / "cut" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = {row["name"]: row for row in json.loads(command("runs", "list", "--runs", runs, "--json").stdout)}
    assert found["cut"]["state"] == "running" and found["old"]["metrics"] == {
        "accuracy": 0.9,
        "loss": pytest.approx(0.1),
    }
    code, _, error = command("runs", "list", "--runs", runs / "none")
    assert code == 2 and "there is no folder" in error


def test_show_draws_the_loss_and_what_decides(runs: Path, command: Command) -> None:
    code, out, _ = command("runs", "show", "old", "--runs", runs)
    assert code == 0 and "loss, training" in out and "loss, test" in out and "accuracy" in out
    assert out.count("┌") == 2, "a rate that never changes is no curve"
    assert command("runs", "show", "old", "--runs", runs, "--metric", "accuracy").stdout.count("┌") == 1
    code, _, error = command("runs", "show", "old", "--runs", runs, "--metric", "acuracy")
    assert code == 2 and "did you mean 'accuracy'?" in error
    series = json.loads(command("runs", "show", "old", "--runs", runs, "--json").stdout)["series"]
    assert series["loss"]["training"]["10"] == 0.4 and series["loss"]["test"]["40"] == 0.125


def test_compare_tells_what_differs(runs: Path, command: Command) -> None:
    code, out, _ = command("runs", "compare", "old", "new", "--runs", runs)
    assert code == 0 and "optimizer.lr" in out and "optimizer.betas" not in out and out.count("┌") == 1
    found = json.loads(command("runs", "compare", "old", "new", "--runs", runs, "--json").stdout)
    assert found["config"] == {"optimizer.lr": [0.1, 0.2]} and found["metrics"]["accuracy"] == [0.9, 0.8]
    code, _, error = command("runs", "compare", "old", "--runs", runs)
    assert code == 2 and "two runs or more" in error


def test_best_goes_the_way_of_the_metric(runs: Path, command: Command) -> None:
    [found] = json.loads(command("runs", "best", "--runs", runs, "--json").stdout)
    assert found == {"run": "old", "metric": "accuracy", "value": 0.9, "of": 3, "data": "ab" * 32}
    [found] = json.loads(command("runs", "best", "--runs", runs, "--metric", "loss", "--json").stdout)
    assert found["run"] == "old" and found["value"] == pytest.approx(0.1), "the lowest loss"

    assert "has told x yet" in command("runs", "best", "--runs", runs, "--metric", "x").stdout


def test_notes_and_deletion_reach_the_store_beside_the_runs(runs_dir: Path, command: Command) -> None:  # noqa: F811
    folder = run_of(runs_dir, "mine", 0.5)
    assert drain(folder) == 0
    assert command("runs", "note", "mine", "a try", "--runs", runs_dir).stdout == "a try\n"
    client, found = mlflow_run(folder)
    assert (
        found.data.tags["mlflow.note.content"].startswith("a try\n")
        and "| accuracy | 0.5 |" in found.data.tags["mlflow.note.content"]
    )
    assert "a try" in command("runs", "list", "--runs", runs_dir).stdout
    code, _, error = command("runs", "delete", "mine", "--runs", runs_dir)
    assert code == 2 and "--yes" in error and folder.is_dir(), "nobody can be asked"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, error = command("runs", "delete", "mine", "--yes", "--runs", runs_dir)
        assert code == 2 and "being trained" in error and folder.is_dir()
    assert command("runs", "delete", "mine", "--yes", "--runs", runs_dir).code == 0
    assert not folder.exists() and client.get_run(found.info.run_id).info.lifecycle_stage == "deleted"


def test_a_terminal_of_ascii_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    chart = drawn({"a": {1: 1.0, 2: 0.5}, "b": {1: 0.2, 2: 0.9}}, "loss")
    assert "┌" in chart and "\x1b" not in chart
    monkeypatch.setattr("distdl.cli.curves.sys.stdout", open("/dev/null", "w", encoding="ascii"))  # noqa: SIM115
    assert drawn({"a": {1: 1.0, 2: 0.5}}, "loss").isascii()
