"""`distdl data at` names the samples of a step, and `--replay-step` does the step again with the numbers that it had."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distdl.data.order import Order
from distdl.data.read import Dataset
from distdl.plan.plan import Plan
from distdl.run.folder import RunFolder
from distdl.train.replay import samples
from tests.conftest import Result

YAML = """\
name: s
model: {{family: mlp, inputs: [1, 8, 8], hidden: [16], dropout: 0.2}}
data: {{path: {data}}}
train: {{global_batch: 24, micro_batch: 6, steps: 30}}
optimizer: {{name: adamw, lr: 1e-2}}
schedule: {{name: cosine}}
checkpoint: {{every_steps: 10}}
track: {{enabled: false, every_steps: 5}}
runtime: {{kind: local, workers: 1}}
"""
ROWS = 1438


@pytest.fixture
def run(digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Result]) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(YAML.format(data=digits))
    done = command("train", "c.yaml", "--plain")
    assert done.code == 0, done.stderr
    return RunFolder(tmp_path / "runs" / "s")


def test_the_samples_of_a_step_are_those_of_the_order(run: RunFolder, digits: str) -> None:
    """On any layout, from the start as from a checkpoint, over the end of an epoch, too."""
    values: dict[str, Any] = run.read("plan.json") or {}
    plan = Plan.from_dict(values, run.path)
    order = Order(ROWS, plan.settings.seed, Dataset(digits, "train").fingerprint)
    for step in (1, 4, 25, 30):  # checkpoints are at 20 and 30
        (share,) = samples(plan, run, step)
        assert share.workers == [0] and [len(rows) for rows in share.rows] == [6, 6, 6, 6]
        positions = np.concatenate(share.positions)
        assert positions.tolist() == list(range(24 * (step - 1), 24 * step))
        assert np.concatenate(share.rows).tolist() == order.stream_indices(24 * (step - 1), 24).tolist()


def test_a_step_again_has_its_numbers(run: RunFolder, command: Callable[..., Result]) -> None:
    for step, begin in ((25, 20), (20, 0), (30, 20)):  # that of step 10 is not kept
        done = command("train", "--resume", "s", "--replay-step", step, "--json")
        assert done.code == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["from"] == begin and told["over"] == 5 and set(told["logged"]) >= {"loss", "lr", "grad_norm"}
        for name, value in told["mean"].items():
            assert value == pytest.approx(told["logged"][name], rel=1e-5), name
    before = sorted(run.path.rglob("*"))
    shown = command("train", "--resume", "s", "--replay-step", 23)
    assert "step 23 again, from the checkpoint of step 20" in shown.stdout and "not logged" in shown.stdout
    assert sorted(run.path.rglob("*")) == before, "it wrote into the run"


def test_what_it_says_and_refuses(run: RunFolder, command: Callable[..., Result]) -> None:
    shown = command("data", "at", "s", "--step", 25)
    assert shown.code == 0 and "step 25: 24 of the 1,438 rows of train" in shown.stdout
    assert "576 to 581" in shown.stdout and shown.stdout.count("\n") == 6
    assert command("data", "at", "s", "--step", 25, "--json").stdout.count("576") >= 1
    for arguments, words in (
        (("data", "at", "s", "--step", 31), "step 31 of a run of 30 steps"),
        (("data", "at", "s", "--step", 0), "1 or more"),
        (("train", "--resume", "s", "--replay-step", 99), "step 99 of a run of 30 steps"),
        (("train", "c.yaml", "--replay-step", 3), "--replay-step needs a run"),
    ):
        refused = command(*arguments)
        assert refused.code == 2 and words in refused.stderr, refused.stderr
