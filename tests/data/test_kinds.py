"""Every kind of column, from every source of tables: what it is taken for, what it becomes, and what goes back from it."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from distdl.data.manifest import Manifest, read_manifest
from distdl.data.preparation import apply, undo
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.data.table.arrow_table import open_arrow
from distdl.data.table.csv_table import CsvTable
from distdl.data.table.json_table import JsonTable
from distdl.data.table.parquet_table import open_parquet
from distdl.errors import InputError

ROWS = 60
SOURCES = {"csv": CsvTable, "parquet": open_parquet, "jsonl": JsonTable, "arrow": open_arrow}


def columns(folder: Path) -> dict[str, list[Any]]:
    """A column of each kind. The pictures lie beside the table."""
    draw = np.random.default_rng(0)
    (folder / "photos").mkdir(exist_ok=True)
    for i in range(ROWS):
        Image.new("RGB", (5 + i % 2, 4), (4 * i, 9, 200)).save(folder / "photos" / f"{i}.png")
    day = datetime.date(2024, 1, 1)
    return {
        "key": [f"row-{i:04}" for i in range(ROWS)],
        "size": draw.normal(50, 9, ROWS).round(3).tolist(),
        "colour": [("red", "green", "blue")[i % 3] for i in range(ROWS)],
        "note": [f"A long remark, the {i}th of its kind, that nobody will ever write again." for i in range(ROWS)],
        "day": [(day + datetime.timedelta(days=11 * i)).isoformat() for i in range(ROWS)],
        "sold": [("no", "yes")[i // 2 % 2] for i in range(ROWS)],
        "photo": [f"photos/{i}.png" for i in range(ROWS)],
        "embedding": draw.normal(size=(ROWS, 4)).round(4).tolist(),
        "patient": [f"p{i // 6}" for i in range(ROWS)],
        "kind": [("cat", "dog")[i % 2] for i in range(ROWS)],
        "price": draw.normal(1e5, 2e4, ROWS).round(2).tolist(),
    }


def write(source: str, folder: Path) -> Path:
    found, path = columns(folder), folder / f"t.{source}"
    if source == "csv":
        rows = zip(*({**found, "embedding": [f'"{value}"' for value in found["embedding"]]}).values(), strict=True)
        lines = [",".join(str(v) if str(v).startswith('"') else f'"{v}"' for v in row) for row in rows]
        path.write_text(",".join(found) + "\n" + "\n".join(lines) + "\n")
    elif source == "jsonl":
        rows = zip(*found.values(), strict=True)
        path.write_text("".join(json.dumps(dict(zip(found, row, strict=True))) + "\n" for row in rows))
    else:
        table = pa.table({**found, "day": [datetime.date.fromisoformat(day) for day in found["day"]]})
        if source == "parquet":
            pq.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
    return path


def whole(path: Path, split: str = "train") -> dict[str, Any]:
    data = Dataset(path, split)
    return data.gather(np.arange(data.rows))


def kinds_of(manifest: Manifest) -> dict[str, str]:
    return {row["column"]: row["kind"] for row in manifest.info["kinds"]}


@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_is_told_and_becomes_what_it_should(tmp_path: Path, source: str) -> None:
    path, given = write(source, tmp_path), columns(tmp_path)
    options = {"path": path, "label": "kind", "split_group": "patient", "test_fraction": 0.2, "size": "4x6"}
    manifest = prepare_dataset(source, tmp_path / "d", {**options, "drop": "price"})
    assert kinds_of(manifest) == {
        "key": "id", "size": "number", "colour": "category", "note": "text", "day": "date", "sold": "boolean",
        "photo": "image path", "embedding": "vector", "kind": "target",
    }  # fmt: skip
    becomes = {row["column"]: row["becomes"] for row in manifest.info["kinds"]}
    assert becomes["photo"] == "image: pixels, 3 x 4 x 6" and becomes["note"] == becomes["key"] == "left out"
    assert manifest.info["split"]["by"] == "group" and "patient" not in kinds_of(manifest), (
        "it is nothing to learn from"
    )
    names = manifest.info["features"]
    assert {"size", "colour=red", "sold", "embedding[0]", "embedding[3]"} <= set(names)
    assert any(name.startswith("day.") for name in names)
    rows = whole(tmp_path / "d")
    train = [i for i in range(ROWS) if rows["image"][:, 0, 0, 0].tolist().count(4 * i)]
    assert len(train) == manifest.splits["train"].rows == 48 and {i // 6 for i in train} & {i // 6 for i in range(ROWS)}
    x = dict(zip(names, rows["x"].T, strict=True))
    assert np.allclose(x["size"].mean(), 0, atol=1e-5) and np.allclose(x["size"].std(), 1, atol=1e-3)
    assert x["sold"].tolist() == [i // 2 % 2 for i in train]
    assert x["colour=red"].tolist() == [float(i % 3 == 0) for i in train]
    scale = next(f for f in manifest.preparation["x"]["features"] if f["name"] == "embedding")
    back = x["embedding[2]"] * np.ravel(scale["divide"])[2 % np.size(scale["divide"])]
    back += np.ravel(scale["shift"])[2 % np.size(scale["shift"])]
    assert np.allclose(back, [given["embedding"][i][2] for i in train], atol=1e-4)
    assert [manifest.info["classes"][n] for n in rows["label"]] == [given["kind"][i] for i in train]
    assert undo(manifest.preparation["label"], rows["label"][:2]) == [given["kind"][i] for i in train[:2]]


@pytest.mark.parametrize("source", SOURCES)
def test_a_new_file_becomes_the_rows_that_were_trained_on(tmp_path: Path, source: str) -> None:
    path = write(source, tmp_path)
    options = {"path": path, "target": "price", "test_fraction": 0, "size": "4x4", "channels": 1, "drop": "kind"}
    prepare_dataset(source, tmp_path / "d", options)
    rows = whole(tmp_path / "d")
    again = list(apply(read_manifest(tmp_path / "d").preparation, SOURCES[source](str(path))))
    assert {name: np.concatenate([part[name] for part in again]).shape for name in again[0]} == {
        name: rows[name].shape for name in ("x", "image", "y")
    }
    assert all(np.array_equal(np.concatenate([part[name] for part in again]), rows[name]) for name in again[0])


@pytest.mark.parametrize("source", SOURCES)
def test_a_kind_can_be_said(tmp_path: Path, source: str) -> None:
    path = write(source, tmp_path)
    kinds = "colour:text,size:number,note:category,photo:text,embedding:vector,key:category,sold:category"
    options = {"path": path, "label": "kind", "kinds": kinds, "max_categories": "3", "split_group": "patient"}
    found = kinds_of(prepare_dataset(source, tmp_path / "d", options))
    assert {name: found[name] for name in ("colour", "note", "photo", "sold", "embedding")} == {
        "colour": "text", "note": "category", "photo": "text", "sold": "category", "embedding": "vector",
    }  # fmt: skip


def test_pictures_alone_are_a_data_set_of_pictures(tmp_path: Path) -> None:
    path = write("csv", tmp_path)
    options = {
        "path": path,
        "label": "kind",
        "features": "",
        "size": "4x4",
        "drop": "price,size,colour,day,sold,embedding,patient",
    }
    manifest = prepare_dataset("csv", tmp_path / "d", options)
    assert list(manifest.columns) == ["image", "label"]


def test_what_pictures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    Image.new("RGB", (4, 4)).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "torn.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:40])

    def refused(*paths: str, size: str = "4x4") -> str:
        lines = [f"{name},{i},{'ab'[i % 2]}" for i, name in enumerate(["a.png"] * 8 + list(paths))]
        (tmp_path / "in" / "t.csv").write_text("photo,n,y\n" + "\n".join(lines) + "\n")
        with pytest.raises(InputError) as caught:
            prepare_dataset("csv", tmp_path / "d", {"path": tmp_path / "in" / "t.csv", "label": "y", "size": size})
        return str(caught.value)

    assert "t.csv:10" in (told := refused("none.png")) and "there is no picture" in told
    assert "t.csv:10" in (told := refused("../b.png")) and "is outside of" in told
    assert "t.csv:11" in (told := refused("a.png", "torn.png")) and "torn.png" in told
    assert "t.csv:10" in (told := refused("", "a.png")) and "names no picture" in told
    (tmp_path / "in" / "t.csv").write_text("n,y\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(9)))
    for label in ({"label": "y"}, {}):
        with pytest.raises(InputError, match=r"no column has some|neither label="):
            prepare_dataset("csv", tmp_path / "d", {"path": tmp_path / "in" / "t.csv", "size": "4x4", **label})


def test_files_of_pictures_in_a_table_with_names_of_classes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    photos = columns(tmp_path)["photo"]
    files = [(tmp_path / photo).read_bytes() for photo in photos]
    pq.write_table(pa.table({"photo": files, "kind": ["cat", "dog"] * 30}), tmp_path / "t.parquet")
    options = {"path": tmp_path / "t.parquet", "label": "kind", "size": "4x5", "test_fraction": 0}
    manifest = prepare_dataset("parquet", tmp_path / "d", options)
    rows = whole(tmp_path / "d")
    assert list(manifest.columns) == ["image", "label"] and rows["image"].shape == (60, 3, 4, 5)
    assert rows["image"][:, 0, 0, 0].tolist() == [4 * i for i in range(ROWS)] and rows["label"].tolist() == [0, 1] * 30


@pytest.mark.parametrize("form", ["[{}, {}, {}]", "[{} {} {}]", "[ {}  {},{} ]"])
def test_lists_in_words_are_vectors(tmp_path: Path, form: str) -> None:
    lines = [f'"{form.format(i, i / 2, -1e-3 * i)}",{"ab"[i % 2]}' for i in range(30)]
    (tmp_path / "t.csv").write_text("v,y\n" + "\n".join(lines) + "\n")
    manifest = prepare_dataset("csv", tmp_path / "d", {"path": tmp_path / "t.csv", "label": "y", "test_fraction": 0})
    assert manifest.info["features"] == ["v[0]", "v[1]", "v[2]"]
    lines[7] = f'"[1, 2]",{lines[7][-1]}'
    (tmp_path / "t.csv").write_text("v,y\n" + "\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"t\.csv:9|no columns left"):
        prepare_dataset("csv", tmp_path / "e", {"path": tmp_path / "t.csv", "label": "y", "kinds": "v:vector"})
