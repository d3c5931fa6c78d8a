"""A validation split to stop and to choose by, and a test split for the last word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distdl.config.load import config_from_dict
from distdl.data.prepare import prepare_dataset
from distdl.driver import evaluated
from distdl.errors import InputError
from distdl.run.folder import RunFolder
from distdl.train import worker
from distdl.train.survey import data_facts, survey
from tests.conftest import Result
from tests.resumed import events
from tests.small import BASE

MODEL = {"family": "mlp", "inputs": [8], "column": "x", "hidden": [], "classes": 3}


def config(folder: Path, **data: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 8)).astype("f4")
    np.savez(folder / "a.npz", x=x, label=(x @ draw.normal(size=(8, 3))).argmax(1))
    parts = {"path": f"{folder}/a.npz", "columns": "x,label", "train": "x,label", "stratify": "true"}
    prepare_dataset("npz", folder / "set", {**parts, "test_fraction": 0.3, "validation_fraction": 0.2})
    data = {"path": f"{folder}/set", "threads": 0, "eval_split": "validation", "test_split": "test", **data}
    return {"name": "a", **BASE, "model": MODEL, "data": data, "train": {"global_batch": 30, "steps": 12}}


def trained(folder: Path, values: dict[str, Any]) -> RunFolder:
    plan, run = survey(config_from_dict(values)), RunFolder(folder / "run")
    run.path.mkdir(exist_ok=True)
    run.write("plan.json", plan.to_dict())
    run.write("config.json", plan.config)
    worker.run(plan, run, 0)
    return run


@pytest.mark.slow
def test_the_test_split_is_evaluated_once_when_the_run_has_ended(
    tmp_path: Path, command: Callable[..., Result]
) -> None:
    values = config(tmp_path)
    run = trained(tmp_path, {**values, "evaluate": {"every_steps": 4}})
    told = [(event["step"], event["split"]) for event in events(run.path, "evaluation")]
    assert told == [(4, "validation"), (8, "validation"), (12, "validation"), (12, "test")]
    summary = json.loads((run.path / "summary.json").read_text())
    chosen_by = evaluated(run, "latest")[2]
    held_out = evaluated(run, "latest", "test")[2]
    assert held_out["accuracy"] != chosen_by["accuracy"]
    assert summary["metrics"] == {**chosen_by, **{f"test_{name}": value for name, value in held_out.items()}}
    said = json.loads(command("evaluate", run.path, "--split", "test", "--json").stdout)
    assert said["split"] == "test" and said["metrics"] == held_out
    assert command("evaluate", run.path, "--split", "tset").code == 2


@pytest.mark.slow
def test_a_run_without_one_says_nothing_of_it(tmp_path: Path) -> None:
    run = trained(tmp_path, config(tmp_path, test_split=None))
    assert {event["split"] for event in events(run.path, "evaluation")} == {"validation"}
    assert not [name for name in json.loads((run.path / "summary.json").read_text())["metrics"] if "test" in name]


def test_a_test_split_that_the_run_is_chosen_by_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.test_split = 'test' is the split that the run learns or is chosen by"):
        config_from_dict(config(tmp_path, eval_split="test"))
    absent = config(tmp_path / "b", test_split="tset")
    with pytest.raises(InputError, match="the data set has no split 'tset'"):
        data_facts(config_from_dict(absent))  # as for workers elsewhere, without a look at the values
