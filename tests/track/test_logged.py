"""A run's model among those of MLflow points at its newest checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distdl.track import logged
from distdl.track.spool import SpoolWriter
from tests.track.conftest import drain, mlflow_run, spool


def trained(run_dir: Path, step: int, accuracy: float) -> None:
    """As if the run had been evaluated and saved at a step."""
    (run_dir / "checkpoints" / f"step_{step:08}").mkdir(parents=True)
    config = json.loads((run_dir / "config.json").read_text())
    config["data"]["eval_split"] = "test"
    (run_dir / "config.json").write_text(json.dumps(config))
    writer = SpoolWriter(run_dir / "events.jsonl")
    writer.write("evaluation", step=step, split="test", values={"accuracy": accuracy, "loss": 1 / step})
    writer.write("evaluation", step=step, split="other", values={"accuracy": 0.1})
    writer.close()


def models_of(run_dir: Path) -> list[Any]:
    client, run = mlflow_run(run_dir)
    return list(client.search_logged_models([run.info.experiment_id]))


def test_the_model_of_a_run_is_its_newest_checkpoint(run_dir: Path) -> None:
    spool(run_dir, range(5))
    trained(run_dir, 4, 0.75)
    assert drain(run_dir, "FINISHED") == 0
    (model,) = models_of(run_dir)
    client, run = mlflow_run(run_dir)
    assert model.source_run_id == run.info.run_id and model.status == "READY" and model.model_type == "mlp"
    address = f"{run_dir.parent.name}/{run_dir.name}/checkpoints/step_00000004"
    assert model.tags["distdl.checkpoint"] == address == run.data.tags.get("distdl.checkpoint", address)
    assert model.params["family"] == "mlp" and model.tags[logged.EXTERNAL] == "true"
    assert {m.key: (m.value, m.step) for m in model.metrics} == {
        "eval/loss": (0.25, 4),
        "eval/scores/accuracy": (0.75, 4),
    }
    assert [(output.model_id, output.step) for output in run.outputs.model_outputs] == [(model.model_id, 4)]
    assert len(client.get_metric_history(run.info.run_id, "eval/loss")) == 1, "no point stands there twice"


@pytest.mark.slow
def test_a_continuation_renews_it(run_dir: Path) -> None:
    spool(run_dir, range(5))
    trained(run_dir, 4, 0.75)
    assert drain(run_dir, "FINISHED") == 0
    trained(run_dir, 8, 0.875)
    assert drain(run_dir, "FINISHED") == 0
    assert drain(run_dir, "FINISHED") == 0, "and once more where nothing is new"
    (model,) = models_of(run_dir)
    assert model.tags["distdl.step"] == "8" and model.tags["distdl.checkpoint"].endswith("step_00000008")
    told = {(m.key, m.step): m.value for m in model.metrics}
    assert told["eval/scores/accuracy", 8] == 0.875


def test_a_run_without_a_checkpoint_has_none_and_a_store_that_refuses_costs_only_the_entry(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool(run_dir, range(3))
    assert drain(run_dir, "FAILED") == 0 and models_of(run_dir) == []
    monkeypatch.setattr(logged, "log_model", lambda *_: 1 / 0)
    assert drain(run_dir, "FINISHED") == 0
    assert mlflow_run(run_dir)[1].info.status == "FINISHED" and models_of(run_dir) == []
