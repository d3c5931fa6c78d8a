"""The MLflow model of `distdl export`: raw rows in, names and units out, registered where its run is tracked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import distdl
from distdl.checkpoint.stream import open_safetensors
from distdl.errors import InputError
from distdl.export.mlflow import requirements
from distdl.model.model import Model
from distdl.run.folder import RunFolder
from tests.cli.test_predict import houses, of_houses
from tests.conftest import Result

Command = Callable[..., Result]
pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.slow]  # the store of MLflow is made by sixty migrations


@pytest.fixture(scope="module")
def runs(place: Path) -> dict[str, distdl.Run]:
    return of_houses(place, {"hidden": [8], "dropout": 0.5}, 300, 30, {"classes": {"track": {"enabled": True}}})


def test_a_table_answers_in_its_words(command: Command, runs: dict[str, distdl.Run], place: Path) -> None:
    import mlflow.pyfunc

    said = command("export", "classes", "--to", "mlflow", "--checkpoint", "best")
    assert said.code == 0, said.stderr
    assert "checked: largest difference 0.0e+00 on real rows" in said.stdout
    assert "registered as version 1 of classes" in said.stdout
    model = mlflow.pyfunc.load_model(str(place / "exports" / "classes-mlflow"))
    rows = houses(20, seed=3)
    asked = pd.DataFrame([{"size": row["size"], "town": row["town"]} for row in rows])
    want = runs["classes"].predict(asked.to_dict("records"), which="best")
    told = model.predict(asked)
    assert told["class"].tolist() == [row["class"] for row in want] and set(told["class"]) <= {"cheap", "dear"}
    np.testing.assert_allclose(told["probability"], [row["probability"] for row in want], atol=1e-6)
    whole = asked.assign(size=asked["size"].round().astype("int64"))  # not float32 either: a signature would refuse it
    assert len(model.predict(whole)) == 20
    every = model.predict(asked, params={"probabilities": True})
    assert {"class=cheap", "class=dear"} <= set(every.columns)


def test_the_registry_has_it(command: Command, runs: dict[str, distdl.Run], place: Path) -> None:
    import mlflow.pyfunc
    from mlflow import MlflowClient

    from distdl.track.run import load

    if not (place / "exports" / "classes-mlflow").exists():
        assert command("export", "classes", "--to", "mlflow", "--checkpoint", "best").code == 0
    assert command("export", "classes", "--to", "mlflow", "-o", "second").code == 0
    info = load(runs["classes"].folder)
    assert info is not None
    client = MlflowClient(tracking_uri=info.tracking_uri, registry_uri=info.tracking_uri)
    versions = client.search_model_versions("name='classes'")
    assert {v.run_id for v in versions} == {info.mlflow_run_id} and len(versions) >= 2
    best = client.get_model_version_by_alias("classes", "best")
    assert runs["classes"].best is not None
    assert int(best.tags["distdl.step"]) == int(runs["classes"].best.name.removeprefix("step_"))
    mlflow.set_tracking_uri(info.tracking_uri)
    mlflow.set_registry_uri(info.tracking_uri)
    asked = pd.DataFrame([{"size": 350.0, "town": "Rome"}, {"size": 21.0, "town": "Oslo"}])
    for alias in ("latest", "best"):
        told = mlflow.pyfunc.load_model(f"models:/classes@{alias}").predict(asked)
        want = runs["classes"].predict(asked.to_dict("records"), which=alias)
        np.testing.assert_allclose(told["probability"], [row["probability"] for row in want], atol=1e-6)


def test_what_it_holds(command: Command, runs: dict[str, distdl.Run], place: Path) -> None:
    assert command("export", "classes", "--to", "mlflow", "-o", "held").code == 0
    folder = place / "held"
    manifest = json.loads((folder / "export.json").read_text())
    assert {"MLmodel", "requirements.txt", "preparation.json"} <= manifest["files"].keys()
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".pth", ".pt")]
    needs = (folder / "requirements.txt").read_text().split()
    assert any(line.startswith("torch==") for line in needs) and needs == sorted(set(needs), key=needs.index)
    example = json.loads((folder / "input_example.json").read_text())
    assert example["columns"] == ["size", "town"] and len(example["data"]) == 3
    assert "optimizer" not in (folder / "artifacts/run/checkpoints/step_00000000/manifest.json").read_text()
    assert all("==" in line for line in requirements("mlp"))


def test_half_precision_is_half_the_bytes(command: Command, runs: dict[str, distdl.Run], place: Path) -> None:
    import mlflow.pyfunc

    said = command("export", "classes", "--to", "mlflow", "--precision", "fp16", "-o", "half")
    assert said.code == 0, said.stderr
    assert 0 < json.loads((place / "half" / "export.json").read_text())["check"]["largest"] < 1e-2
    (kept,) = (place / "half/artifacts/run/checkpoints").rglob("*.safetensors")
    tensors = open_safetensors(kept)[0]
    assert {tensor.dtype for tensor in tensors.values() if tensor.dtype.is_floating_point} == {torch.float16}
    rows = pd.DataFrame([{"size": row["size"], "town": row["town"]} for row in houses(20, seed=3)])
    told = mlflow.pyfunc.load_model(str(place / "half")).predict(rows)
    want = [row["probability"] for row in runs["classes"].predict(rows.to_dict("records"))]
    np.testing.assert_allclose(told["probability"], want, atol=1e-2)


def test_a_row_that_cannot_be_read_is_refused_in_words(
    command: Command, runs: dict[str, distdl.Run], place: Path
) -> None:
    from distdl.export.mlflow import answered

    model = Model(RunFolder(runs["classes"].folder))
    with pytest.raises(InputError, match="has no column 'town'"):
        answered(model, pd.DataFrame([{"size": 3.0}]), {})
    with pytest.raises(InputError, match="'x' has rows of the shape"):
        answered(model, {"x": [[1.0, 2.0]]}, {})
