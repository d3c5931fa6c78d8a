"""Run folders with what a real run leaves in them, and a store whose tables exist (making them takes seconds)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distdl.track.run import STORE_NAME, default_tracking_uri
from distdl.track.spool import SpoolWriter


@pytest.fixture(autouse=True)
def quiet_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in [key for key in os.environ if key.startswith("MLFLOW_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "true")


@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("template")
    MlflowClient(default_tracking_uri(folder)).search_experiments(max_results=1)
    return folder / STORE_NAME


@pytest.fixture
def runs_dir(tmp_path: Path, store_template: Path) -> Path:
    """A runs folder, with a space in its name, whose store is ready."""
    folder = tmp_path / "my runs"
    folder.mkdir()
    shutil.copy(store_template, folder / STORE_NAME)
    return folder


@pytest.fixture
def run_dir(runs_dir: Path) -> Path:
    return make_run(runs_dir, "first")


def make_run(runs: Path, name: str) -> Path:
    folder = runs / name
    folder.mkdir(parents=True)
    config = {
        "model": {"family": "mlp", "sizes": [4, 2]},
        "data": {"api_key": "hunter2", "path": "s3://me:pw@host/x", "train_split": "train"},
        "text": "x" * 7000,
        "many": {f"key{i}": i for i in range(150)},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "config.yaml").write_text("model:\n  family: mlp\ndata:\n  api_key: hunter2\n")
    (folder / "plan.json").write_text(
        json.dumps({"mesh": {"data": 2}, "data": {"fingerprint": "ff00", "path": "s3://x"}})
    )
    return folder


def spool(folder: Path, steps: range, loss: Callable[[int], float] = float) -> None:
    """What rank 0 writes while it trains."""
    writer = SpoolWriter(folder / "events.jsonl")
    writer.write("phase", name="training", text="")
    for step in steps:
        writer.write("metrics", step=step, values={"loss": loss(step), "lr": 0.1})
    writer.close()


def drain(folder: Path, status: str | None = None, error: str | None = None) -> int:
    """Sends everything to the store of the runs folder, in this process: saves the seconds of starting another."""
    from distdl.track.run import load, update
    from distdl.track.uploader import Uploader

    if status:
        writer = SpoolWriter(folder / "events.jsonl")
        writer.write("end", status=status, error=error, summary={})
        writer.close()
    if load(folder) is None:
        update(
            folder,
            tracking_uri=default_tracking_uri(folder.parent),
            experiment="e",
            run_name="r",
        )
    return Uploader(folder, 0, 0, True, 30.0).follow()


def mlflow_run(folder: Path) -> tuple[Any, Any]:
    """(client, run) of the MLflow run of this run folder."""
    from mlflow import MlflowClient

    from distdl.track.run import load

    info = load(folder)
    assert info is not None and info.mlflow_run_id
    client = MlflowClient(info.tracking_uri)
    return client, client.get_run(info.mlflow_run_id)


def steps_of(folder: Path, key: str) -> list[int]:
    client, run = mlflow_run(folder)
    return [metric.step for metric in client.get_metric_history(run.info.run_id, key)]
