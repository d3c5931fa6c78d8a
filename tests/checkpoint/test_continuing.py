"""What continues a run and what does not: patience that was too short, and files of the run folder that were torn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Result

Command = Callable[..., Result]

CONFIG = """
name: a
model: {family: mlp, inputs: [8], column: x, hidden: [16], classes: 3}
data:
  path: data/a
  prepare: {source: npz, options: {path: a.npz, columns: [x, label], train: [x_train, y_train], test: [x_test, y_test]}}
train: {global_batch: 20, steps: 60}
evaluate: {every_steps: 2}
optimizer: {name: sgd, lr: 0.1}
parallel: {engine: torch}
track: {enabled: false}
runtime: {kind: local, workers: 1}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a.yaml and its data, which the commands run in."""
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 8)).astype("f4")
    y = (x @ random.normal(size=(8, 3))).argmax(1)
    np.savez(tmp_path / "a.npz", x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])
    (tmp_path / "a.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def summary(here: Path) -> dict:
    return json.loads((here / "runs" / "a" / "summary.json").read_text())


@pytest.mark.slow
def test_a_run_that_stopped_early_goes_on_with_more_patience(command: Command, here: Path) -> None:
    """By the very command that it prints, and then exactly as if it had had that patience from the start."""
    impatient = "early_stopping={patience: 2, min_delta: 0.2}"
    first = command("train", "a.yaml", impatient)
    assert first.code == 0 and "stopped early" in first.stdout, first.stderr
    stopped = summary(here)["steps"]
    again = command("train", "a.yaml", impatient, "train.steps=80")
    assert f"stopped early at step {stopped} of 80, when its patience was at an end" in again.stdout
    assert summary(here)["steps"] == stopped
    printed = re.search(r"distdl (train --resume \S+ early_stopping\.patience=4)", again.stdout)
    assert printed, again.stdout
    assert command(*printed[1].split()).code == 0
    assert summary(here)["steps"] > stopped
    assert command("train", "a.yaml", "early_stopping={patience: 4, min_delta: 0.2}", "name=patient").code == 0
    patient = json.loads((here / "runs" / "patient" / "summary.json").read_text())
    assert (patient["steps"], patient["metrics"]) == (summary(here)["steps"], summary(here)["metrics"])


@pytest.mark.slow
def test_torn_files_of_a_run_folder_are_named_or_made_again(command: Command, here: Path) -> None:
    short = ("train.steps=10", "checkpoint.every_steps=5")
    assert command("train", "a.yaml", *short).code == 0
    run, whole = here / "runs" / "a", summary(here)["metrics"]
    (run / "summary.json").write_text("{")
    (run / "attempts" / "zz.fence").touch()
    (run / ".config.json.1.99999").write_text("{")  # left by a kill
    assert command("train", "a.yaml", *short).code == 0  # trains nothing, and tells its end again
    assert summary(here)["metrics"] == whole and not list(run.glob(".config.json.*"))
    (run / "config.json").write_text('{"name": ')
    resumed = command("train", "--resume", "a", "train.steps=14")  # the plan holds the config, too
    assert resumed.code == 0 and summary(here)["steps"] == 14, resumed.stderr
    (run / "config.json").write_text("[" * 100)
    (run / "plan.json").write_text("")
    lost = command("train", "--resume", "a")
    assert lost.code == 1 and str(run / "config.json") in lost.stderr
    assert "config.yaml" in lost.stderr and "the key=value arguments that it had" in lost.stderr  # `name=` among them
    assert "internal error" not in lost.stderr
    assert command("train", "runs/a/config.yaml", "train.steps=18").code == 0
    assert summary(here)["steps"] == 18


def test_a_run_folder_that_goes_away_is_said(here: Path, command: Command) -> None:
    from distdl.errors import TrainingFailed
    from distdl.run.attempts import claim

    (here / "run").mkdir()
    attempt = claim(here / "run")
    (here / "run" / "attempts").rename(here / "elsewhere")
    with pytest.raises(TrainingFailed, match=r"attempts was removed while the run trained"):
        attempt.check()


@pytest.mark.slow
@pytest.mark.parametrize("again", [100, 0])
def test_a_bit_of_the_data_that_flips_during_the_run_ends_it(
    command: Command, here: Path, monkeypatch: pytest.MonkeyPatch, again: int
) -> None:
    """With nothing compared again the run ends well, with other weights: the control."""
    from distdl.train.hooks.log import Log

    after_step = Log.after_step

    def flip(self: Log, step: int, metrics: object) -> None:
        after_step(self, step, metrics)
        if step == 30:
            with (here / "data" / "a" / "train-00000.arrow").open("r+b") as file:
                content = file.read()
                place = content.index(np.load(here / "a.npz")["x_train"][:2].tobytes()) + 3
                file.seek(place)
                file.write(bytes([content[place] ^ 4]))

    monkeypatch.setattr(Log, "after_step", flip)
    done = command("train", "a.yaml", "train.steps=400", "data.threads=0", f"data.verify_again_mb_per_s={again}")
    assert done.code == (1 if again else 0), done.stdout + done.stderr
    assert ("train-00000.arrow" in done.stderr and "was right until" in done.stderr) == bool(again)


def test_a_held_out_row_that_is_not_a_number_is_named(command: Command, here: Path) -> None:
    """By the check of the data before the run where it reads every value, else by the first evaluation."""
    arrays = dict(np.load(here / "a.npz"))
    arrays["x_test"][17, 3] = np.nan
    np.savez(here / "a.npz", **arrays)
    done = command("train", "a.yaml", "train.steps=4")
    assert "'test'" in done.stdout + done.stderr and "row 17" in done.stdout + done.stderr, done


def test_what_keeps_no_best_has_none(command: Command, here: Path) -> None:
    """The best of what happens to be left is not the best that was seen."""
    short = ("train.steps=12", "checkpoint.every_steps=12", "checkpoint.keep_best=0")
    trained = command("train", "a.yaml", *short)
    assert trained.code == 0 and "--which latest" in trained.stdout and "--which best" not in trained.stdout
    asked = command("evaluate", "a", "--which", "best")
    assert asked.code == 2 and "keeps no best checkpoint (checkpoint.keep_best: 0)" in asked.stderr
    assert command("evaluate", "a", "--which", "latest").code == 0
    started = command("train", "a.yaml", "name=b", "start={weights: a, which: best}")
    assert started.code == 2 and "keeps no best checkpoint" in started.stderr
