"""From a table to answers in its units, with nothing said but the column to predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distdl
from distdl.checkpoint.layout import PREPARATION, checkpoints
from distdl.checkpoint.load import Checkpoint
from distdl.checkpoint.verify import problems
from distdl.data.manifest import read_manifest
from distdl.data.preparation import record_of
from distdl.data.prepare import prepare_dataset

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Of each test its own."""
    return tmp_path


def houses(folder: Path, noise: float = 1.0) -> Path:
    rng = np.random.default_rng(0)
    size, rooms = rng.uniform(20, 400, 600), rng.integers(1, 9, 600)
    town = rng.choice(["Bonn", "Rome", "Oslo"], 600)
    price = 1500 * size + 20_000 * rooms + np.where(town == "Rome", 200_000, 0) + noise * rng.normal(0, 5_000, 600)
    lines = [f"{s},{r},{t},{p}" for s, r, t, p in zip(size, rooms, town, price, strict=True)]
    (folder / "houses.csv").write_text("size,rooms,town,price\n" + "\n".join(lines) + "\n")
    return folder / "houses.csv"


def config(steps: int, lr: float, **more: Any) -> dict[str, Any]:
    return {
        "name": "houses",
        "model": {"family": "mlp", "inputs": [5], "column": "x", "hidden": [32], "target": "value"},
        "data": {"path": "d", "threads": 0},
        "train": {"global_batch": 64, "steps": steps},
        "optimizer": {"name": "adamw", "lr": lr},
        "runtime": {"kind": "local"},
        "track": {"enabled": False},
        **more,
    }


@pytest.mark.slow
def test_prices_are_learned_and_told_in_their_units(place: Path) -> None:
    prepare_dataset("csv", "d", {"path": houses(place), "target": "price"})
    run = distdl.train(config(300, 1e-2))
    metrics = run.metrics
    assert metrics["r2"] > 0.95 and 2_000 < metrics["mae"] < metrics["rmse"] < 40_000
    assert distdl.evaluate(run) == pytest.approx(metrics)
    manifest = read_manifest("d")
    for _, path in checkpoints(run.folder / "checkpoints"):
        checkpoint = Checkpoint(path)
        assert checkpoint.preparation == json.loads(json.dumps(manifest.preparation)) and not problems(path)
        assert PREPARATION in checkpoint.manifest["files"]
        assert json.loads((path / PREPARATION).read_text()) == record_of(manifest)
    damaged = path / PREPARATION
    damaged.write_text(damaged.read_text().replace("price", "prise"))
    assert problems(path) == [f"{PREPARATION} is not what was written (its checksum differs)"]


@pytest.mark.slow
def test_a_run_that_ends_no_better_than_the_mean_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_dataset("csv", "d", {"path": houses(place), "target": "price"})
    run = distdl.train(config(1, 1e-9))
    assert run.metrics["r2"] < 0.1
    said = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    warnings = [event["text"] for event in said if event.get("kind") == "message"]
    assert any("no better than the mean" in text for text in warnings) == (run.metrics["r2"] <= 0)
    assert run.metrics["r2"] <= 0


@pytest.mark.slow
def test_a_data_set_of_an_older_version_leaves_its_classes_in_the_checkpoint(place: Path) -> None:
    prepare_dataset("digits", "d", {})
    file = place / "d" / "manifest.json"
    old = json.loads(file.read_text())
    old.pop("preparation", None)
    old["info"]["classes"] = list("0123456789")
    file.write_text(json.dumps(old))
    model = {"family": "mlp", "inputs": [1, 8, 8], "hidden": [8]}
    run = distdl.train(config(1, 1e-3, model=model))
    ((_, path),) = checkpoints(run.folder / "checkpoints")
    assert Checkpoint(path).preparation["label"]["classes"] == list("0123456789")


@pytest.mark.slow
def test_two_workers_measure_what_one_does(place: Path) -> None:
    """Held-out rows that do not divide by two: sums and counts add up, means of means would not."""
    prepare_dataset("csv", "d", {"path": houses(place), "target": "price", "target_scale": "log", "split_seed": 1})
    assert read_manifest("d").split("test").rows % 2
    run = distdl.train(config(60, 1e-2, runtime={"kind": "local", "workers": 2}))
    assert distdl.evaluate(run) == pytest.approx(run.metrics, rel=1e-5) and run.metrics.keys() > {"rmse", "mae", "r2"}
