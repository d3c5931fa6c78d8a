"""The record of a preparation: applied to the file that it was fitted on, it gives the stored bits; undone, the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distdl.data.formats.csv import CsvTable, Options
from distdl.data.manifest import read_manifest
from distdl.data.preparation import apply, columns_of, record_of, recorded, undo
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError

N = 300


def written(path: Path) -> Path:
    """A table of every kind, with gaps."""
    rng = np.random.default_rng(4)
    lines = ["age,wage,city,born,ok,note,kind,price"]
    for i in range(N):
        age = "" if i % 11 == 0 else int(rng.integers(18, 90))
        city = ("Bonn", "Rome", "", "Oslo")[int(rng.integers(4))]
        born = "" if i % 13 == 0 else f"{1950 + i % 50}-{1 + i % 12:02}-{1 + i % 27:02}"
        cells = [age, 1e6 * rng.random(), city, born, ("no", "yes")[i % 2], f"text {i} and more of it", "abc"[i % 3]]
        lines.append(",".join(map(str, [*cells, 200_000 + 1000 * i])))
    path.write_text("\n".join(lines) + "\n")
    return path


def opened(path: Path) -> CsvTable:
    return CsvTable(str(path), Options(path=str(path)))


def rows_of(parts: Any) -> dict[str, np.ndarray]:
    chunks = list(parts)
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


@pytest.mark.parametrize(
    "more",
    [{}, {"scale": "robust", "categories": "index"}, {"scale": "log", "missing": "median"}, {"pieces": "6"}],
)
@pytest.mark.parametrize("answer", [{"label": "kind"}, {"target": "price"}, {"target": "price", "target_scale": "log"}])
def test_applied_to_its_own_file_it_gives_the_stored_bits(tmp_path: Path, answer: dict, more: dict) -> None:
    path = written(tmp_path / "t.csv")
    prepare_dataset("csv", tmp_path / "d", {"path": path, "test_fraction": 0, **answer, **more})
    record = json.loads(json.dumps(record_of(read_manifest(tmp_path / "d"))))
    data = Dataset(tmp_path / "d", "train")
    stored = data.gather(np.arange(data.rows))
    found = rows_of(apply(columns_of(record, "here"), opened(path)))
    assert found.keys() == {"x", "label" if "label" in answer else "y"}
    assert all(np.array_equal(found[name], stored[name]) for name in found)
    assert rows_of(apply(record["columns"], opened(path), answers=False)).keys() == {"x"}


def test_undone_it_gives_the_values_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv")
    cells = [line.split(",") for line in path.read_text().splitlines()[1:]]
    prepare_dataset("csv", tmp_path / "d", {"path": path, "test_fraction": 0, "target": "price"})
    manifest = read_manifest(tmp_path / "d")
    stored = Dataset(tmp_path / "d", "train").gather(np.arange(N))
    np.testing.assert_allclose(
        undo(manifest.preparation["y"], stored["y"]), [float(row[7]) for row in cells], rtol=1e-6
    )
    rows = undo(manifest.preparation["x"], stored["x"])
    for row, of_file in zip(rows, cells, strict=True):
        assert row["city"] == (of_file[2] or None) and row["ok"] == of_file[4] and row["kind"] == of_file[6]
        assert (row["age"] is None) == (of_file[0] == "") and (
            row["age"] is None or round(row["age"]) == int(of_file[0])
        )
        assert abs(row["wage"] - float(of_file[1])) < 0.2
    prepare_dataset("csv", tmp_path / "e", {"path": path, "test_fraction": 0, "label": "kind"})
    label = read_manifest(tmp_path / "e").preparation["label"]
    assert undo(label, [2, 0, -100]) == ["c", "a", None]


def test_new_files_that_do_not_fit_are_refused_by_row_and_value(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv")
    prepare_dataset("csv", tmp_path / "d", {"path": path, "target": "price"})
    columns = read_manifest(tmp_path / "d").preparation
    lines = path.read_text().splitlines()
    for bad, message in (
        (lines[5].replace(lines[5].split(",")[1], "much"), r"n\.csv:3: the column 'wage' has the value 'much'"),
        (lines[5].replace("text", "a,text"), "."),
        (lines[5].replace(",yes,", ",perhaps,").replace(",no,", ",perhaps,"), r"n\.csv:3: the column 'ok' .*'perhaps'"),
    ):
        (tmp_path / "n.csv").write_text("\n".join([lines[0], lines[1], bad]) + "\n")
        with pytest.raises(InputError, match=message):
            rows_of(apply(columns, opened(tmp_path / "n.csv")))
    (tmp_path / "n.csv").write_text("age,city\n1,Bonn\n")
    with pytest.raises(InputError, match="has no column 'wage', of which the model was told"):
        rows_of(apply(columns, opened(tmp_path / "n.csv")))
    (tmp_path / "n.csv").write_text(
        "\n".join([lines[0], lines[1].replace("Rome", "Paris").replace("Bonn", "Paris")]) + "\n"
    )
    assert len(rows_of(apply(columns, opened(tmp_path / "n.csv")))["x"]) == 1  # an unknown word is one for itself


def test_a_newer_record_is_refused_and_an_older_data_set_has_one(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv")
    prepare_dataset("csv", tmp_path / "d", {"path": path, "label": "kind"})
    record = recorded(str(tmp_path / "d"))
    with pytest.raises(InputError, match="version 2, and this distdl reads up to 1"):
        columns_of({**record, "version": 2}, "here")
    newer = {**record["columns"]["label"], "version": 9}
    with pytest.raises(InputError, match="record 'class' has version 9"):
        columns_of({**record, "columns": {"label": newer}}, "here")
    with pytest.raises(InputError, match="record 'class' has version 9"):
        undo(newer, [0])
    with pytest.raises(InputError, match="no record of a preparation"):
        columns_of([], "here")
    old = json.loads((tmp_path / "d" / "manifest.json").read_text())
    del old["preparation"]
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(old))
    assert recorded(str(tmp_path / "d"))["columns"] == {
        "label": {"kind": "class", "version": 1, "classes": ["a", "b", "c"]}
    }
    assert recorded(str(tmp_path / "none"))["columns"] == {}
