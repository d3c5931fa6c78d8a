"""`distdl export`: a file of another format answers as the run does, says what its answers mean, or is not there."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_format
import pytest
import torch

import distdl
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError
from distdl.export import check, graph, onnx, safetensors, torch_export
from distdl.export.export import Wish, export
from distdl.export.preparation import Front
from distdl.model.model import Model
from distdl.run.folder import RunFolder
from tests.cli.test_predict import houses, of_houses, written
from tests.conftest import Result
from tests.export.common import asked, traced

Command = Callable[..., Result]
pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def runs(place: Path) -> dict[str, distdl.Run]:
    more: dict[str, Any] = {"classes": {"checkpoint": {"every_steps": 10}}, "values": {}}
    return of_houses(place, {"hidden": [8], "dropout": 0.5}, 300, 30, more, {"values": 6})


@pytest.fixture
def model(runs: dict[str, distdl.Run]) -> Model:
    return Model(RunFolder(runs["classes"].folder))


@pytest.mark.slow
def test_onnx_of_a_table(command: Command, runs: dict[str, distdl.Run], place: Path) -> None:
    import onnx as onnx_format
    import onnxruntime

    said = command("export", "classes", "--to", "onnx")
    assert said.code == 0, said.stderr
    assert "checked: largest difference" in said.stdout and "1, 2, 3, 12 at a time" in said.stdout
    folder = place / "exports" / "classes-onnx"
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("size", "tensor(double)", ["batch"]),
        ("town", "tensor(int64)", ["batch"]),
    ]
    assert {o.name: o.shape for o in session.get_outputs()} == {"class": ["batch"], "probabilities": ["batch", 2]}
    meta = {p.key: json.loads(p.value) for p in onnx_format.load(str(folder / "model.onnx")).metadata_props}
    classes, levels = meta["distdl"]["answers"]["class"]["classes"], meta["distdl"]["columns"]["town"]["levels"]
    assert classes == ["cheap", "dear"] and set(levels) == {"Bonn", "Rome", "Oslo"}
    assert meta["preparation"]["columns"]["x"]["kind"] == "features"
    for n in (1, 6, 50):
        rows = [{"size": row["size"], "town": row["town"]} for row in houses(n, seed=n)]
        want = runs["classes"].predict(rows, probabilities=True)
        asked_ = {
            "size": np.array([row["size"] for row in rows]),
            "town": np.array([levels.index(row["town"]) for row in rows]),
        }
        number, chances = session.run(["class", "probabilities"], asked_)
        assert [classes[i] for i in number] == [row["class"] for row in want]
        np.testing.assert_allclose(chances[:, 1], [row["class=dear"] for row in want], atol=1e-5)


@pytest.mark.parametrize("pieces", [0, 12])
def test_a_table_of_gaps_words_and_truths_is_prepared_within_the_graph(place: Path, pieces: int) -> None:
    """By the record of a table with empty cells, words that are rare or unknown, truths, and numbers of many sizes."""
    lines = ["income,rooms,town,garden,class"]
    for i in range(120):
        town = ("Bonn", "Rome", "Oslo", "", "Kyiv")[i % 5] if i % 17 else f"rare {i}"
        garden, rooms = ("yes", "no", "")[i % 3], "" if i % 7 == 0 else str(i % 6)
        lines.append(f"{10 ** (i % 7)},{rooms},{town},{garden},{'ab'[i % 2]}")
    (place / "gaps.csv").write_text("\n".join(lines) + "\n")
    manifest = prepare_dataset("csv", "gaps", {"path": "gaps.csv", "label": "class", "pieces": pieces}, True)
    record, x = manifest.preparation["x"], Dataset("gaps", "train").gather(np.arange(90), ["x"])["x"]
    kinds = {feature["name"]: feature["kind"] for feature in record["features"]}
    assert kinds == {"income": "number", "rooms": "number", "town": "category", "garden": "boolean"}
    assert any(feature.get("indicator") for feature in record["features"])
    front = Front(record)
    columns = front.back(x)
    assert bool(columns["rooms"].isnan().any()) and int(columns["town"].min()) == -1 == int(columns["garden"].min())
    told = front(*columns.values())
    torch.testing.assert_close(told, torch.from_numpy(x), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_the_manifest_says_how_it_was_checked(command: Command, runs: dict[str, distdl.Run], place: Path) -> None:
    said = command("export", "classes", "--to", "torch-export", "-o", "told", "--json")
    assert said.code == 0, said.stderr
    manifest = json.loads((place / "told" / "export.json").read_text())
    assert manifest == json.loads(said.stdout)
    assert manifest["step"] == 30 and manifest["family"] == "mlp" and manifest["precision"] == "fp32"
    assert manifest["inputs"] == {"size": ["batch"], "town": ["batch"]} and manifest["outputs"]["class"] == ["batch"]
    assert manifest["check"]["largest"] <= 1e-5 == manifest["check"]["tolerance"]
    assert manifest["check"]["batches"] == [12, 1, 2, 3] and "classes (test)" in manifest["check"]["of"]
    assert {"model.pt2", "preparation.json"} <= manifest["files"].keys()


@pytest.mark.slow
def test_a_value_is_told_in_the_units_of_the_file(command: Command, runs: dict[str, distdl.Run], place: Path) -> None:
    for to in ("onnx", "torch-export", "safetensors"):
        assert command("export", "values", "--to", to).code == 0
    model = Model(RunFolder(runs["values"].folder))
    x = {"x": torch.randn(9, 10)}
    want = model.learner.predict(x)["value"].numpy()
    assert abs(want).max() > 1000  # a price
    exports = place / "exports"
    ask = safetensors.ask(safetensors.load(exports / "values-safetensors"))
    np.testing.assert_allclose(ask({"x": x["x"].numpy()})["value"], want, rtol=1e-5)
    rows = houses(9, seed=5)
    levels = json.loads((exports / "values-onnx" / "export.json").read_text())["columns"]["town"]["levels"]
    raw = {"size": np.array([row["size"] for row in rows]), "town": np.array([levels.index(r["town"]) for r in rows])}
    prices = [row["price"] for row in runs["values"].predict([{k: r[k] for k in ("size", "town")} for r in rows])]
    for ask in (
        onnx.asked(exports / "values-onnx", ["value"]),
        torch_export.asked(exports / "values-torch-export", ["size", "town"]),
    ):
        np.testing.assert_allclose(ask(raw)["value"], prices, rtol=1e-5)


def test_it_is_exported_in_evaluation_mode(model: Model) -> None:
    """With dropout at half, a graph of training would answer otherwise each time."""
    learner, rows = model.learner.train(), {"x": torch.randn(7, 4)}
    run = traced(learner, rows).program.module()
    assert torch.equal(run(rows["x"])["probabilities"], run(rows["x"])["probabilities"])


def test_a_checkpoint_of_a_step(command: Command, runs: dict[str, distdl.Run], place: Path) -> None:
    assert command("export", "classes", "--to", "safetensors", "--checkpoint", "20", "-o", "twenty").code == 0
    assert json.loads((place / "twenty" / "export.json").read_text())["step"] == 20
    said = command("export", "classes", "--to", "safetensors", "--checkpoint", "11", "-o", "eleven")
    assert said.code == 2 and "no checkpoint of step 11" in said.stderr and "20, 30" in said.stderr


@pytest.mark.slow
def test_half_precision_is_half_the_bytes(command: Command, runs: dict[str, distdl.Run], place: Path) -> None:
    for to in ("safetensors", "torch-export", "onnx"):
        said = command("export", "classes", "--to", to, "--precision", "fp16", "-o", f"half-{to}")
        assert said.code == 0, said.stderr
        manifest = json.loads((place / f"half-{to}" / "export.json").read_text())
        assert 0 < manifest["check"]["largest"] < 1e-2
    tensors = safetensors.open_safetensors(place / "half-safetensors" / "model.safetensors")[0]
    assert {tensor.dtype for tensor in tensors.values() if tensor.dtype.is_floating_point} == {torch.float16}


def test_a_weight_that_half_precision_cannot_hold_is_refused(model: Model) -> None:
    with torch.no_grad():
        next(iter(model.learner.parameters()))[0] = 70_000.0
    with pytest.raises(InputError, match="has the value 70000, and half precision ends at 65504"):
        graph.halved(model.learner)


def test_what_answers_otherwise_than_the_run_is_not_published(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(by: float, other: bool = False) -> Any:
        real = safetensors.ask

        def ask(learner: Any) -> check.Ask:
            def of(batch: check.Arrays) -> Any:
                found = dict(real(learner)(batch))
                found["probabilities"] = found["probabilities"] + by
                found["class"] = 1 - found["class"] if other else found["class"]
                return found

            return of

        monkeypatch.setattr(safetensors, "ask", ask)
        with pytest.raises(InputError) as refused:
            export(model, Wish("safetensors", tmp_path / "out"))
        monkeypatch.undo()
        monkeypatch.chdir(RunFolder(model.folder.path).path.parent.parent)
        assert list(tmp_path.iterdir()) == []
        return str(refused.value)

    assert "'probabilities' is off by 2.0e-05" in off(2e-5) or "off by" in off(2e-5)
    assert "18 of 18 rows have another class or token" in off(0.0, other=True)
    assert "nan" in off(float("nan")) or "inf" in off(float("nan"))


def test_refusals_in_words(command: Command, runs: dict[str, distdl.Run], place: Path) -> None:
    said = command("export", "classes", "--to", "huggingface", "-o", "theirs")
    assert said.code == 2 and "no model that the family mlp equals" in said.stderr and "gpt, bert" in said.stderr
    (place / "mine").mkdir()
    said = command("export", "classes", "--to", "safetensors", "-o", "mine")
    assert said.code == 2 and "is there already" in said.stderr
    said = command("export", "classes", "--to", "safetensors", "-o", "mine", "--overwrite")
    assert said.code == 2 and "holds no export" in said.stderr and (place / "mine").is_dir()
    assert command("export", "classes", "--to", "safetensors", "-o", "again").code == 0
    assert command("export", "classes", "--to", "safetensors", "-o", "again", "--overwrite").code == 0
    assert command("export", "classes", "--to", "tflite").code == 2
    assert not list(place.glob(".again*")) and not (place / "theirs").exists()


def test_a_package_that_is_missing_is_named_with_its_extra(
    command: Command, runs: dict[str, distdl.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxscript" else real(name, *a))
    said = command("export", "classes", "--to", "onnx", "-o", "nothing")
    assert said.code == 2 and "needs onnxscript" in said.stderr and "pip install 'distdl[export]'" in said.stderr


def test_rows_to_check_on_may_be_named(command: Command, runs: dict[str, distdl.Run], place: Path) -> None:
    written(place / "new.csv", houses(9, seed=1), "size", "town")
    said = command("export", "classes", "--to", "safetensors", "-o", "new", "--data", "new.csv")
    assert said.code == 0, said.stderr
    assert json.loads((place / "new" / "export.json").read_text())["check"]["of"] == "new.csv"
    said = command("export", "classes", "--to", "safetensors", "-o", "none", "--data", "absent.csv")
    assert said.code == 2 and "absent.csv" in said.stderr


def test_what_is_no_graph_is_refused_with_its_place() -> None:
    learner, rows = asked({"family": "cvg", "vocabulary": 20})
    with pytest.raises(InputError, match=r"cvg answers is no graph .* at distdl/families/cvg.py:\d+"):
        traced(learner, rows)


@pytest.mark.slow
def test_an_answer_with_the_name_of_a_column_has_another_in_the_file(tmp_path: Path) -> None:
    import onnxruntime

    learner, rows = asked({"family": "bert", "task": "mask", "vocabulary": 40, "context": 12, "layers": 1}
        | {"heads": 2, "width": 8, "mask": 3, "marks": [1, 2]})  # fmt: skip
    found = traced(learner, rows)
    onnx.write(tmp_path, found, {})
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert {o.name for o in session.get_outputs()} == {"predicted_tokens", "embedding"}
    check.compared(onnx.asked(tmp_path, found.outputs), learner, rows, found.lengths, "fp32")


def test_bits_that_lie_eight_in_a_byte_are_unpacked_within_the_file(tmp_path: Path) -> None:
    """As a data set stores them, which is not how rows that are made up are."""
    learner, rows = asked({"family": "mtdnn", "inputs": 64, "tasks": 3, "hidden": [6]})
    rows = {"x": rows["x"].to(torch.uint8)}
    found = traced(learner, rows)
    onnx.write(tmp_path, found, {})
    difference = check.compared(onnx.asked(tmp_path, found.outputs), learner, rows, found.lengths, "fp32")
    assert difference.rows > 7 and difference.others == 0


def test_a_file_that_onnxruntime_does_not_load_is_refused_in_words(tmp_path: Path) -> None:
    learner, rows = asked({"family": "mlp", "inputs": [4], "column": "x", "hidden": [3], "classes": 2})
    onnx.write(tmp_path, traced(learner, rows), {})
    file = tmp_path / "model.onnx"
    model = onnx_format.load(str(file))
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx_format.save(model, str(file))
    with pytest.raises(InputError, match=r"onnxruntime does not load the exported file: .*NoSuchOperator"):
        onnx.asked(tmp_path, ["class"])
