"""`distdl predict`: new rows from files as people have them, answers in the words and units of the file learned from."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

import distdl
from distdl.config.load import load_values
from distdl.data.prepare import prepare_dataset
from distdl.errors import InputError
from distdl.model.first_words import first_words
from tests.conftest import Result

Command = Callable[..., Result]
pytestmark = pytest.mark.usefixtures("here")
TOWNS = ("Bonn", "Rome", "Oslo")


def houses(rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Size, town and price, and whether that is dear."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(rows):
        size, town = round(float(rng.uniform(20, 400)), 1), str(rng.choice(TOWNS))
        price = round(1500 * size + 200_000 * (town == "Rome"), 2)
        found.append({"size": size, "town": town, "price": price, "class": "dear" if price > 400_000 else "cheap"})
    return found


def written(path: Path, rows: list[dict[str, Any]], *names: str) -> Path:
    """Some columns of rows as CSV."""
    lines = [",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def trained(name: str, model: dict[str, Any], data: Path, steps: int = 150, **more: Any) -> distdl.Run:
    return distdl.train(
        {
            "name": name,
            "model": model,
            "data": {"path": str(data), "threads": 0},
            "train": {"global_batch": 64, "steps": steps},
            "optimizer": {"name": "adamw", "lr": 1e-2},
            "parallel": {"engine": "torch"},
            "runtime": {"kind": "local", "workers": 1},
            "track": {"enabled": False},
            **more,
        }
    )


KINDS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "classes": ({"classes": 2}, {"label": "class", "drop": "price"}),
    "values": ({"target": "value"}, {"target": "price", "drop": "class"}),
}


def of_houses(
    place: Path,
    model: dict[str, Any],
    rows: int,
    steps: int,
    more: dict[str, dict[str, Any]],
    pieces: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, distdl.Run]:
    """Of one table the runs that `more` names: `classes` tells classes, `values` a number. `more`: what else is in the
    config of each; `pieces`: that its numbers are cut into."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        written(place / "train.csv", houses(rows), "size", "town", "price", "class")
        mlp = {"family": "mlp", "column": "x", **model}
        found = {}
        for name, sections in more.items():
            answer, options = KINDS[name]
            told = {"path": "train.csv", "pieces": pieces.get(name, 0), **options}
            inputs = {"inputs": list(prepare_dataset("csv", name, told).columns["x"].shape)}
            found[name] = trained(name, mlp | inputs | answer, place / name, steps, **sections)
        return found


@pytest.fixture(scope="module")
def runs(place: Path) -> dict[str, distdl.Run]:
    return of_houses(place, {"hidden": [16]}, 400, 150, {"classes": {}, "values": {}})


@pytest.mark.slow
def test_classes_are_told_by_their_names_whatever_file_the_rows_are_in(
    runs: dict[str, distdl.Run], place: Path, command: Command
) -> None:
    new = houses(300, seed=1)
    written(place / "new.csv", new, "size", "town")
    (place / "new.jsonl").write_text("".join(json.dumps({"town": r["town"], "size": r["size"]}) + "\n" for r in new))
    table = pa.table({"town": [r["town"] for r in new], "size": [r["size"] for r in new]})
    pq.write_table(table, "new.parquet")
    pyarrow.feather.write_feather(table, "new.feather", compression="uncompressed")
    said = {}
    for ending in ("csv", "jsonl", "parquet", "feather"):
        done = command("predict", "classes", f"new.{ending}", "-o", f"of-{ending}.csv", "--batch", 64, "--quiet")
        assert done.code == 0 and "300 rows are answered" in done.stderr, done.stderr
        said[ending] = Path(f"of-{ending}.csv").read_text()
    assert len(set(said.values())) == 1
    rows = list(csv.DictReader(io.StringIO(said["csv"])))
    assert list(rows[0]) == ["row", "class", "probability"] and [int(row["row"]) for row in rows] == list(range(300))
    assert np.mean([row["class"] == r["class"] for row, r in zip(rows, new, strict=True)]) > 0.95
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)


def test_a_value_is_told_in_the_units_of_the_file(runs: dict[str, distdl.Run], place: Path, command: Command) -> None:
    new = houses(200, seed=2)
    written(place / "units.csv", new, "size", "town", "price")
    assert command("predict", "values", "units.csv", "-o", "units.parquet", "--keep", "price,town", "--quiet").code == 0
    table = pq.read_table("units.parquet")
    assert table.column_names == ["row", "price", "town", "predicted price"]
    true = np.array([r["price"] for r in new])
    assert table["town"].to_pylist() == [r["town"] for r in new]
    assert np.abs(np.array(table["predicted price"]) - true).mean() < 0.1 * true.std()
    assert np.allclose([r["price"] for r in runs["values"].predict(new)], table["predicted price"])


@pytest.mark.slow
def test_probabilities_of_all_classes_the_likeliest_ones_and_embeddings(
    runs: dict[str, distdl.Run], place: Path, command: Command
) -> None:
    written(place / "few.csv", houses(5, seed=3), "size", "town")
    done = command(
        "predict", "classes", "few.csv", "--format", "jsonl", "--probabilities", "--top-k", 2, "--embeddings"
    )
    assert done.code == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 5 and len(rows[0]["embedding"]) == 16
    for row in rows:
        assert {row["class"], row["class 2"]} == {"cheap", "dear"} and row["probability"] >= row["probability 2"]
        assert row[f"class={row['class']}"] == row["probability"]
        assert row["class=cheap"] + row["class=dear"] == pytest.approx(1, abs=1e-5)
    done = command("predict", "classes", "few.csv", "--embeddings")
    assert done.stdout.splitlines()[0].endswith("embedding[14],embedding[15]")


def test_bad_rows_keep_their_place_and_are_named_and_the_rest_is_answered(
    runs: dict[str, distdl.Run], place: Path, command: Command
) -> None:
    new = houses(300, seed=4)
    new[0]["size"] = new[177]["size"] = "big"
    new[5]["town"] = "Paris"
    written(place / "bad.csv", new, "size", "town")
    done = command("predict", "classes", "bad.csv", "-o", "bad-out.csv", "--quiet")
    assert done.code == 1
    assert "set aside: bad.csv:2: the column 'size' has the value 'big'" in done.stderr and "bad.csv:179" in done.stderr
    assert "298 of 300 rows are answered in bad-out.csv; 2 could not be read and are empty rows" in done.stderr
    assert "note: 1 values of 'town' in bad.csv that were not among those learned from" in done.stderr
    rows = list(csv.DictReader(io.StringIO(Path("bad-out.csv").read_text())))
    assert len(rows) == 300 and [i for i, row in enumerate(rows) if not row["class"]] == [0, 177]
    told = [json.loads(line) for line in Path("bad-out.csv.bad.jsonl").read_text().splitlines()]
    assert [bad["where"] for bad in told] == ["bad.csv:2", "bad.csv:179"]
    good = written(place / "good.csv", [row for i, row in enumerate(new) if i not in (0, 177)], "size", "town")
    command("predict", "classes", good, "-o", "good-out.csv", "--quiet")
    alone = list(csv.DictReader(io.StringIO(Path("good-out.csv").read_text())))
    assert [row["class"] for i, row in enumerate(rows) if i not in (0, 177)] == [row["class"] for row in alone]
    written(place / "all.csv", [{"size": "big", "town": "Rome"}] * 3, "size", "town")
    done = command("predict", "classes", "all.csv")
    assert done.code == 1 and done.stdout == "row\n0\n1\n2\n"


def test_a_damaged_line_is_named_and_left_out(runs: dict[str, distdl.Run], place: Path, command: Command) -> None:
    lines = written(place / "torn.csv", houses(6, seed=8), "size", "town").read_text().splitlines()
    whole = command("predict", "classes", "torn.csv").stdout.splitlines()
    (place / "torn.csv").write_text("\n".join([*lines[:3], "12,Rome,3", *lines[3:]]) + "\n")
    done = command("predict", "classes", "torn.csv")
    assert done.code == 1 and "set aside: torn.csv:4: " in done.stderr
    assert "6 of 7 rows are answered; 1 lines are damaged and left out" in done.stderr
    assert done.stdout.splitlines() == whole
    (place / "torn.csv").write_text("\n".join([*lines[:3], "12,Rome,3", *lines[3:5], "big,Rome", *lines[5:]]) + "\n")
    assert "set aside: torn.csv:7: the column 'size'" in command("predict", "classes", "torn.csv").stderr


def test_standard_input_is_a_file_like_any_other(
    runs: dict[str, distdl.Run], place: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = houses(4, seed=5)
    text = written(place / "in.csv", new, "size", "town").read_bytes()
    lines = "".join(json.dumps({"size": r["size"], "town": r["town"]}) + "\n" for r in new).encode()
    found = []
    for content in (text, lines):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))  # type: ignore[arg-type]
        found.append(command("predict", "classes", "-"))
    assert found[0].code == 0 and found[0].stdout == found[1].stdout == command("predict", "classes", "in.csv").stdout
    both = command("predict", "classes", "in.csv", "in.csv").stdout.splitlines()
    assert len(both) == 9 and both[0].startswith("row,file,class")
    bad = text.replace(b"\n", b"\nbig,Rome\n", 1)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(bad))))  # type: ignore[arg-type]
    done = command("predict", "classes", "-", "--embeddings")
    assert done.code == 1 and "set aside: stdin:2: the column 'size'" in done.stderr and "/tmp" not in done.stderr
    whole = command("predict", "classes", "in.csv", "--embeddings").stdout.splitlines()
    told = [line.partition(",")[2] for line in done.stdout.splitlines()]
    assert set(told[1]) == {","} and [told[0], *told[2:]] == [line.partition(",")[2] for line in whole], (
        "a row that could not be read takes no digit of the others"
    )


def test_a_run_ends_with_what_its_model_can_be_asked(place: Path, command: Command, digits: str) -> None:
    written(place / "few.csv", houses(60), "size", "town", "class")
    assert command("init", "few.csv", "--quiet").code == 0
    done = command("train", "few.yaml", "track.enabled=false", "train.epochs=1", "data.threads=0", "--plain")
    assert done.code == 0, done.stderr
    (line,) = [line.split("  ") for line in done.stdout.splitlines() if "distdl predict" in line]
    assert line[1] == "distdl predict runs/few FILE" and line[-1].strip() == "answer new rows"
    assert command(*line[1].replace("FILE", "few.csv").split()[1:]).stdout.count("\n") == 61
    said = {}
    for model in (
        {"family": "gan", "architecture": "dense", "inputs": [1, 8, 8]},
        {"family": "autoencoder", "inputs": [1, 8, 8]},
        {"family": "gpt", "vocabulary": 256, "context": 8, "layers": 1, "heads": 1, "width": 8},
        {"family": "esn", "units": 4, "steps": 8, "washout": 2, "generate": 2},
    ):
        data = {"path": digits if "inputs" in model else "elsewhere"}
        train = {"train": {"global_batch": 1, "steps": 1}, "optimizer": {"name": "adamw", "lr": 1e-3}}
        config = load_values({"name": "a", "model": model, "data": data, **train})
        said[model["family"]] = [command for command, _ in first_words(config, "runs/a")]
    assert said == {
        "gan": ["distdl sample runs/a"],
        "autoencoder": [f"distdl predict runs/a {digits} --pictures FOLDER"],
        "gpt": ["distdl predict runs/a FILE", "distdl sample runs/a --text TEXT"],
        "esn": ["distdl predict runs/a elsewhere", "distdl sample runs/a --data elsewhere"],
    }


def test_rows_in_python(runs: dict[str, distdl.Run]) -> None:
    new = houses(6, seed=6)
    rows = [{"size": r["size"], "town": r["town"]} for r in new]
    said = runs["classes"].predict(rows)
    assert said[0].keys() == {"class", "probability"}
    columns = {name: [row[name] for row in rows] for name in ("size", "town")}
    assert runs["classes"].predict(columns) == said
    with pytest.raises(InputError, match="the column 'size' has the value 'big'"):
        runs["classes"].predict([{"size": "big", "town": "Rome"}])
    with pytest.raises(InputError, match="has no column 'town'"):
        runs["classes"].predict([{"size": 1.0}])
    with pytest.raises(InputError, match="make no table"):
        runs["classes"].predict([3])


def test_what_cannot_be_asked_is_said(runs: dict[str, distdl.Run], place: Path, command: Command) -> None:
    written(place / "lacks.csv", houses(3), "size", "price")
    cases = [
        (("lacks.csv",), "lacks.csv has no column 'town', of which the model was told"),
        (("nowhere.csv",), "there is no file or folder nowhere.csv"),
        ((), "predict answers files, or texts given by --text"),
        (("train.csv", "--top-k", 0), "--top-k is 0"),
        (("train.csv", "--batch", 0), "--batch is 0"),
        (("train.csv", "--keep", "prise"), "no column 'prise', which is to be kept"),
        (("train.csv", "-o", "x.xml"), "answers are not written as 'xml'"),
        (("train.csv", "--format", "parquet"), "Parquet is not written to the terminal"),
        (("train.csv", "-o", "train.csv"), "train.csv is there already"),
        (("--text", "Once"), "and no text"),
    ]
    for args, text in cases:
        done = command("predict", "classes", *args)
        assert done.code == 2 and text in done.stderr, (args, done.stderr)
    assert "fix: did you mean 'price'?" in command("predict", "classes", "train.csv", "--keep", "prise").stderr
    assert not list(place.glob(".*.part"))


def test_a_file_without_names_is_read_as_the_one_learned_from(place: Path, command: Command) -> None:
    lines = [f"{r['size']};{r['town']};{r['class']}" for r in houses(120, seed=7)]
    (place / "bare.txt").write_text("\n".join(lines) + "\n")
    prepare_dataset("csv", "bare", {"path": "bare.txt", "names": "size,town,class", "label": "class"})
    model = {"family": "mlp", "column": "x", "inputs": [4], "hidden": [4], "classes": 2}
    trained("bare", model, place / "bare", steps=2)
    assert command("predict", "bare", "bare.txt", "-o", "bare-out.csv", "--quiet").code == 0
    assert len(Path("bare-out.csv").read_text().splitlines()) == 121


def test_any_family_answers_about_a_data_set_that_is_prepared(place: Path, digits: str, command: Command) -> None:
    trained("digits", {"family": "cnn", "image": [1, 8, 8], "stages": [[4, 3, 2]], "dense": []}, Path(digits), steps=20)
    done = command("predict", "digits", digits, "--split", "test", "--embeddings", "-o", "digits.jsonl", "--quiet")
    assert done.code == 0, done.stderr
    rows = [json.loads(line) for line in Path("digits.jsonl").read_text().splitlines()]
    assert len(rows) == 359 and len(rows[0]["embedding"]) == 4 * 4 * 4
    from distdl.data.read import Dataset

    label = Dataset(digits, "test").gather(np.arange(359))["label"]
    accuracy = np.mean([int(row["class"]) == true for row, true in zip(rows, label, strict=True)])
    assert accuracy == pytest.approx(distdl.evaluate("digits")["accuracy"])


def test_a_data_set_that_was_prepared_by_itself_is_refused(
    runs: dict[str, distdl.Run], place: Path, command: Command
) -> None:
    """Its numbers are of other scales, its words and classes may have other numbers: the answers would be of nothing."""
    written(place / "others.csv", houses(200, seed=9), *houses(1)[0])
    prepare_dataset("csv", "others", {"path": "others.csv", "label": "class", "drop": "price", "test_fraction": 0.5})
    for verb in (("predict", "classes", "others"), ("evaluate", "classes", "--data", "others")):
        done = command(*verb)
        assert done.code == 2 and "others was prepared otherwise than the one that was learned from" in done.stderr
        assert "of the column 'x' is" in done.stderr and "give the raw file" in done.stderr
    assert command("evaluate", "classes", "--data", "classes").code == 0  # the one that was learned from
    shutil.copytree("classes", "copied")
    assert command("predict", "classes", "copied").code == 0
