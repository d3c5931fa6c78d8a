"""`distdl data convert`: what was prepared, back in the units and words of its file; tables from one format to another."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distdl.data.change import table_out
from distdl.data.change.convert import convert
from distdl.data.manifest import Column, read_manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.data.table.decode import numbers_back
from distdl.data.table.scale import to_scale
from distdl.data.write import DatasetWriter
from distdl.errors import DistdlError, InputError
from tests.conftest import Result

Command = Callable[..., Result]
FORMATS = ("csv", "jsonl", "parquet", "arrow")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of any of the formats."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    table = pq.read_table(path) if path.suffix == ".parquet" else pa.ipc.open_file(str(path)).read_all()
    return table.to_pylist()


HEADER = ("age", "income", "city", "member", "seen", "born", "kind")


def people(path: Path, count: int = 60) -> list[dict[str, str]]:
    """A table of numbers of several sizes, a category, a yes and no, a time, a date, some cells empty, and a class."""
    draw = np.random.default_rng(3)
    rows = []
    for i in range(count):
        income = "" if i % 11 == 0 else f"{draw.integers(100, 10**6) / 100:.2f}"
        city = "" if i % 13 == 0 else ["Bonn", "Rome, IT", 'the "Hague"'][i % 3]
        day, hour = draw.integers(1, 28), draw.integers(0, 24)
        seen = f"2024-{1 + i % 12:02d}-{day:02d} {hour:02d}:{i % 60:02d}:{(7 * i) % 60:02d}"
        born = f"{1950 + i % 50}-{1 + i % 12:02d}-{day:02d}"
        values = (str(18 + i % 60), income, city, ["no", "yes"][i % 2], seen, born, ["ham", "spam"][i % 3 == 0])
        rows.append(dict(zip(HEADER, values, strict=True)))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, HEADER)
        writer.writeheader()
        writer.writerows(rows)
    return rows


def as_text(value: Any) -> str:
    """A value as the raw file has it."""
    if value is None or value == "":
        return ""
    if isinstance(value, str):
        try:
            return f"{float(value):.6g}"
        except ValueError:
            return value.replace("T", " ")
    return f"{value:.6g}" if isinstance(value, float | int) else str(value).replace("T", " ")


# -- data sets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("options", [{}, {"scale": "minmax"}, {"scale": "log"}, {"scale": "none"}], ids=str)
def test_a_table_comes_back_as_its_file_was(tmp_path: Path, form: str, options: dict[str, str]) -> None:
    raw = people(tmp_path / "raw.csv")
    told = {"path": str(tmp_path / "raw.csv"), "label": "kind", "test_fraction": "0.25", **options}
    prepare_dataset("csv", tmp_path / "set", told)
    rows, notes = convert(str(tmp_path / "set"), str(tmp_path / f"back.{form}"), {})
    assert rows == {f"back.{form}": 60} and notes == []
    back = read(tmp_path / f"back.{form}")
    assert list(back[0]) == [*HEADER, "split"]
    parts = {name: [row for row in back if row["split"] == name] for name in ("train", "test")}
    manifest = read_manifest(tmp_path / "set")
    assert {name: len(part) for name, part in parts.items()} == {n: s.rows for n, s in manifest.splits.items()}
    found = sorted(tuple(as_text(row[name]) for name in HEADER) for row in back)
    assert found == sorted(tuple(as_text(row[name]) for name in HEADER) for row in raw)


def test_what_came_back_is_prepared_to_the_same_rows(tmp_path: Path) -> None:
    """The column `split` says again which rows are held out, so that the fit is the same, too."""
    people(tmp_path / "raw.csv")
    told = {"path": str(tmp_path / "raw.csv"), "label": "kind", "test_fraction": "0.25"}
    first = prepare_dataset("csv", tmp_path / "set", told)
    convert(str(tmp_path / "set"), str(tmp_path / "back.csv"), {})
    again = {"path": str(tmp_path / "back.csv"), "label": "kind", "split_column": "split"}
    assert prepare_dataset("csv", tmp_path / "again", again).fingerprint == first.fingerprint


def test_a_number_to_predict_comes_back_in_its_units(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,price\n" + "".join(f"{i},{1000 + i * 12.5}\n" for i in range(40)))
    prepare_dataset("csv", tmp_path / "set", {"path": str(tmp_path / "t.csv"), "target": "price"})
    convert(str(tmp_path / "set"), str(tmp_path / "out"), {"format": "jsonl", "split": "train"})
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train.jsonl"]
    rows = read(tmp_path / "out" / "train.jsonl")
    assert all(row["price"] == 1000 + row["a"] * 12.5 for row in rows) and len(rows) > 25
    assert any(row["a"] == 0 for row in rows), "of what lies far from it on the scale, too"
    convert(str(tmp_path / "set"), str(tmp_path / "stored.jsonl"), {"back": "no", "split": "train"})
    stored, got = read(tmp_path / "stored.jsonl"), Dataset(tmp_path / "set", "train").gather(range(len(rows)))
    assert [row["y"] for row in stored] == pytest.approx(got["y"].tolist()) and list(stored[0]) == ["x", "y"]


@pytest.mark.parametrize("method", ["standard", "minmax", "log", "none"])
def test_numbers_come_back_as_the_shortest_that_are_stored_alike(method: str) -> None:
    draw = np.random.default_rng(0)
    raw = np.concatenate([np.round(draw.normal(0, 10.0**e, 200), 2) for e in range(-1, 6)] + [[0.0, -0.0, 1e-30, 3e30]])
    scale = {"method": method, "shift": 12.25, "divide": 3.7} if method != "none" else {"method": method}
    scale = {"shift": 0.0, "divide": 1.0, **scale}
    stored = to_scale(raw, scale).astype(np.float32)
    back = numbers_back(stored, scale)
    assert (to_scale(back, scale).astype(np.float32) == stored).all(), "not one bit is lost on the way"
    if method == "none":
        small = np.abs(raw) < 1e4
        assert (back[small] == raw[small]).all()
    assert numbers_back(np.array([np.nan, np.inf], np.float32), scale)[0] != 0


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_arrays_and_bytes_keep_their_types_and_bits(tmp_path: Path, form: str) -> None:
    """So that the source of that format makes the same data set again."""
    draw = np.random.default_rng(1)
    columns = {
        "image": Column("uint8", (2, 3, 4)),
        "n": Column("int16"),
        "w": Column("float64"),
        "raw": Column("bytes"),
    }
    rows: dict[str, Any] = {
        "image": draw.integers(0, 256, (50, 2, 3, 4)).astype(np.uint8),
        "n": draw.integers(-9, 9, 50).astype(np.int16),
        "w": draw.normal(size=50),
        "raw": [bytes(draw.integers(0, 256, i % 7).astype(np.uint8)) for i in range(50)],
    }
    with DatasetWriter(tmp_path / "set", columns, "made", {}, rows_per_batch=16) as writer:
        writer.write("train", rows)
    convert(str(tmp_path / "set"), str(tmp_path / f"t.{form}"), {})
    again = prepare_dataset(form, tmp_path / "again", {"path": str(tmp_path / f"t.{form}"), "test_fraction": "0"})
    assert again.columns == columns
    got = Dataset(tmp_path / "again", "train").gather(range(50))
    assert all((got[name] == rows[name]).all() for name in ("image", "n", "w")) and got["raw"] == rows["raw"]
    with pytest.raises(InputError, match=r"row \d+: the column 'raw' holds bytes that are no text"):
        convert(str(tmp_path / "set"), str(tmp_path / "t.csv"), {})
    convert(str(tmp_path / "set"), str(tmp_path / "t.csv"), {"drop": "raw"})
    flat = read(tmp_path / "t.csv")
    assert list(flat[0]) == [*(f"image[{c}][{y}][{x}]" for c in range(2) for y in range(3) for x in range(4)), "n", "w"]
    assert [int(row["image[1][2][3]"]) for row in flat] == rows["image"][:, 1, 2, 3].tolist()
    assert [float(row["w"]) for row in flat] == rows["w"].tolist()
    convert(str(tmp_path / "set"), str(tmp_path / "t.jsonl"), {"drop": "raw"})
    assert [row["image"] for row in read(tmp_path / "t.jsonl")] == rows["image"].tolist()


def test_classes_come_back_by_name_and_nothing_where_there_is_none(tmp_path: Path) -> None:
    columns = {"image": Column("uint8", (4,)), "label": Column("int64"), "mask": Column("int64", (2,))}
    record = {"kind": "class", "version": 1, "classes": ["ant", "bee"]}
    with DatasetWriter(
        tmp_path / "set", columns, "made", {}, about={"preparation": {"label": record, "mask": record}}
    ) as writer:
        writer.write(
            "train",
            {"image": np.zeros((3, 4), np.uint8), "label": np.array([1, -100, 0]), "mask": np.ones((3, 2), np.int64)},
        )
    _, notes = convert(str(tmp_path / "set"), str(tmp_path / "t.parquet"), {})
    assert [row["label"] for row in read(tmp_path / "t.parquet")] == ["bee", None, "ant"]
    assert notes == ["'mask' (class) is written as it is stored"]


def test_what_does_not_come_back_is_said(tmp_path: Path, command: Command) -> None:
    cities = [f"city{i % 9}" for i in range(90)]
    lines = [f"k{i},{city},{i % 7},{i % 2}" for i, city in enumerate(cities)]
    (tmp_path / "t.csv").write_text("key,city,size,kind\n" + "\n".join(lines) + "\n")
    told = {"path": str(tmp_path / "t.csv"), "label": "kind", "max_categories": "4"}
    prepare_dataset("csv", tmp_path / "set", told)
    code, out, error = command("data", "convert", tmp_path / "set", tmp_path / "t.jsonl", "--quiet")
    assert code == 0, error
    assert "note: words of 'city' beyond the 4 that it was prepared with come back empty" in out
    assert "note: left out when it was prepared, so not here: key" in out
    rows = read(tmp_path / "t.jsonl")
    assert sum(row["city"] is None for row in rows) == 50 and list(rows[0]) == ["city", "size", "kind", "split"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["set", "out"], "does not say what is to be written"),
        (["set", "out", "format=xls"], "allowed: csv, jsonl, parquet, arrow"),
        (["set", "out.csv", "format=parquet"], "ends with .csv"),
        (["set", "out.csv", "split=tets"], "did you mean 'test'"),
        (["set", "out.csv", "drop=agee"], "did you mean 'age'"),
        (["set", "out.csv", "delimiter=;"], "is a data set"),
        (["raw.csv", "out.parquet", "split=test"], "split= and back= are of a data set"),
        (["raw.csv", "out.parquet", "drop=agee"], "did you mean 'age'"),
        (["raw.csv", "raw.csv"], "already exists"),
        (["none.csv", "out.parquet"], "there is no file"),
        (["set", "s3://bucket/out.csv"], "is a URI"),
        (["set", "out.csv", "bakc=no"], "did you mean 'back'"),
    ],
)
def test_mistakes(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    people(tmp_path / "raw.csv", 30)
    prepare_dataset("csv", tmp_path / "set", {"path": "raw.csv", "label": "kind"})
    code, _, error = command("data", "convert", *arguments, "--quiet")
    assert code == 2 and message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw.csv", "set"]


def test_only_tables_are_overwritten(tmp_path: Path, command: Command) -> None:
    people(tmp_path / "raw.csv", 30)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.doc").write_text("x")
    arguments = ("data", "convert", tmp_path / "raw.csv", tmp_path / "out", "format=csv", "--quiet")
    assert command(*arguments).code == 2
    code, _, error = command(*arguments, "--overwrite")
    assert code == 2 and "mine.doc" in error and (tmp_path / "out" / "mine.doc").exists()
    (tmp_path / "out" / "mine.doc").rename(tmp_path / "out" / "old.csv")
    told = json.loads(command(*arguments, "--overwrite", "--json").stdout)
    assert told["rows"] == {"table.csv": 30} and [path.name for path in (tmp_path / "out").iterdir()] == ["table.csv"]


# -- tables ------------------------------------------------------------------------------------------------------------


def test_words_become_the_types_that_all_of_them_fit(tmp_path: Path) -> None:
    """And none that would not come back as it was: 007, +1, 1_000, inf stay words."""
    text = (
        "whole,real,day,time,code,plus,gap,word,odd,id,long\n"
        "1,1.5,2026-01-31,2026-01-31 10:00:00,007,+1,,a,inf,12345678901234567890,0.1\n"
        "-20,2,2026-02-01,2026-02-01T11:30:05,012,2,?,,1,1,0.12345678901234567891\n"
        "300, 1e3 ,2026-02-02,2026-02-02 00:00:00,1,3,7,b,2,2,0.000012345678901234567\n"
    )
    (tmp_path / "t.csv").write_text(text)
    _, notes = convert(str(tmp_path / "t.csv"), str(tmp_path / "t.parquet"), {})
    table = pq.read_table(tmp_path / "t.parquet")
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {
        "whole": "int64",
        "real": "double",
        "day": "date32[day]",
        "time": "timestamp[ms]",
        "code": "string",
        "plus": "string",
        "gap": "int64",
        "word": "string",
        "odd": "string",
        "id": "string",
        "long": "string",
    }
    assert table["whole"].to_pylist() == [1, -20, 300] and table["real"].to_pylist() == [1.5, 2.0, 1000.0]
    assert table["code"].to_pylist() == ["007", "012", "1"] and table["gap"].to_pylist() == [None, None, 7]
    assert table["word"].to_pylist() == ["a", "", "b"] and str(table["day"][2]) == "2026-02-02"
    assert notes == [f"{tmp_path}/t.csv: '?' in the column 'gap' of numbers or dates is empty now"]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("back", FORMATS)
def test_a_table_survives_the_way_there_and_back(tmp_path: Path, form: str, back: str) -> None:
    raw = people(tmp_path / "a.csv")
    convert(str(tmp_path / "a.csv"), str(tmp_path / f"b.{form}"), {})
    convert(str(tmp_path / f"b.{form}"), str(tmp_path / f"c.{back}"), {})
    found = [[as_text(row[name]) for name in HEADER] for row in read(tmp_path / f"c.{back}")]
    assert found == [[as_text(row[name]) for name in HEADER] for row in raw]


def test_class_numbers_of_a_file_are_written_by_name(tmp_path: Path) -> None:
    features = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["neg", "pos"]}}}}
    table = pa.table({"v": [1.0, 2.0, 3.0], "label": pa.array([1, 0, -1], pa.int64())})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "t.parquet")
    convert(str(tmp_path / "t.parquet"), str(tmp_path / "t.csv"), {})
    assert [row["label"] for row in read(tmp_path / "t.csv")] == ["pos", "neg", ""]


def test_a_file_of_one_column_loses_no_empty_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"v": ["a", "", "b"]}), tmp_path / "t.parquet")
    convert(str(tmp_path / "t.parquet"), str(tmp_path / "t.csv"), {})
    assert (tmp_path / "t.csv").read_text().splitlines() == ["v", '"a"', '""', '"b"']
    pq.write_table(pa.table({"v": [1, None, 3]}), tmp_path / "n.parquet")
    convert(str(tmp_path / "n.parquet"), str(tmp_path / "n.csv"), {})
    convert(str(tmp_path / "n.csv"), str(tmp_path / "n.jsonl"), {})
    assert [row["v"] for row in read(tmp_path / "n.jsonl")] == [1, None, 3]


def test_a_target_that_cannot_be_replaced_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new one is written, and then the disk fails as it takes the old one's place."""
    people(tmp_path / "t.csv", 30)
    convert(str(tmp_path / "t.csv"), str(tmp_path / "out"), {"format": "csv"})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(table_out, "publish", fail)
    with pytest.raises(DistdlError, match="nothing was published"):
        convert(str(tmp_path / "t.csv"), str(tmp_path / "out"), {"format": "jsonl"}, True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["table.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "t.csv"]


def test_what_is_no_table_is_told_by_its_source(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(InputError, match="is read as npz, which is no table"):
        convert(str(tmp_path / "a.npz"), str(tmp_path / "a.csv"), {})


def test_a_kill_leaves_no_half_a_file(tmp_path: Path) -> None:
    """What fails in the middle leaves neither a target nor a draft."""
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(InputError, match=r"t.csv:3"):
        convert(str(tmp_path / "t.csv"), str(tmp_path / "t.parquet"), {})
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
