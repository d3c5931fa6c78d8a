"""`distdl data split` and `merge`: every row in one place, to the bit; and what does not belong together is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distdl.data.bad_rows import NAMES
from distdl.data.change import convert, duplicates, split, split_table
from distdl.data.change.duplicates import Duplicates, hashed
from distdl.data.change.merge import merge_datasets
from distdl.data.change.split import split_dataset
from distdl.data.manifest import Column, Manifest, read_manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset, stored_rows
from distdl.data.verify import verify_dataset
from distdl.data.write import DatasetWriter
from distdl.errors import DataCorrupt, InputError
from tests.conftest import Result

Command = Callable[..., Result]
COLUMNS = {
    "x": Column("float32", (2, 3)),
    "label": Column("int64"),
    "patient": Column("int32"),
    "day": Column("int64"),
    "part": Column("bytes"),
    "text": Column("bytes"),
}
PARTS = (b"train", b"test", b"val")


def rows(count: int, first: int = 0) -> dict[str, Any]:
    number = np.arange(first, first + count)
    return {
        "x": (number[:, None] + np.arange(6) / 8).astype(np.float32).reshape(-1, 2, 3),
        "label": number % 3,
        "patient": (number // 4).astype(np.int32),
        "day": number * 10,
        "part": [PARTS[i % 3] for i in number.tolist()],
        "text": [b"%d" % i * (i % 5) for i in number.tolist()],
    }


def write(target: Path, splits: dict[str, tuple[int, int]], **about: Any) -> Manifest:
    """Splits of so many rows, from a number on, in small batches and shards."""
    with DatasetWriter(target, COLUMNS, "made", {"n": 1}, rows_per_batch=16, shard_bytes=4000, about=about) as writer:
        for split, (count, first) in splits.items():
            for start in range(0, count, 37):
                writer.write(split, rows(min(37, count - start), first + start))
    assert writer.manifest is not None
    return writer.manifest


def everything(path: Path) -> dict[str, list[tuple[bytes, ...]]]:
    """Split -> its rows in order, each as the bytes of its columns."""
    found = {}
    for name, part in read_manifest(path).splits.items():
        got = Dataset(path, name).gather(np.arange(part.rows))
        columns = [[v if isinstance(v, bytes) else v.tobytes() for v in got[column]] for column in COLUMNS]
        found[name] = list(zip(*columns, strict=True))
    return found


# -- split -------------------------------------------------------------------------------------------------------------

WAYS: list[dict[str, str]] = [
    {"test_fraction": "0.2"},
    {"test_fraction": "0.2", "validation_fraction": "0.1"},
    {"test_fraction": "0.2", "split_seed": "7"},
    {"test_fraction": "0.25", "validation_fraction": "0.25", "stratify": "true"},
    {"test_fraction": "0.2", "validation_fraction": "0.2", "split_group": "patient"},
    {"test_fraction": "0.2", "validation_fraction": "0.2", "split_time": "day"},
    {"split_column": "part"},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_row_is_in_one_split_to_the_bit_and_in_its_order(tmp_path: Path, way: dict[str, str]) -> None:
    old = write(tmp_path / "old", {"train": (300, 0)})
    manifest = split_dataset(str(tmp_path / "old"), str(tmp_path / "new"), way)
    before, after = everything(tmp_path / "old")["train"], everything(tmp_path / "new")
    assert sorted(row for part in after.values() for row in part) == sorted(before)
    for part in after.values():
        places = [before.index(row) for row in part]
        assert places == sorted(places) and part
    assert verify_dataset(tmp_path / "new") == []
    assert manifest.source == "made" and manifest.options == {"n": 1} and manifest.columns == old.columns
    origin = manifest.info["origin"]
    assert origin["made_by"] == "split" and origin["of"][0]["fingerprint"] == old.fingerprint
    assert manifest.info["split"]["of"] == "train"
    again = split_dataset(str(tmp_path / "old"), str(tmp_path / "again"), way)
    assert again.fingerprint == manifest.fingerprint != old.fingerprint


def test_each_way_does_what_it_says(tmp_path: Path) -> None:
    write(tmp_path / "old", {"train": (300, 0)})
    found = {}
    for i, way in enumerate(WAYS):
        split_dataset(str(tmp_path / "old"), str(tmp_path / str(i)), way)
        found[i] = {
            name: Dataset(tmp_path / str(i), name).gather(np.arange(split.rows))
            for name, split in read_manifest(tmp_path / str(i)).splits.items()
        }
    assert {name: len(part["label"]) for name, part in found[3].items()} == {"train": 150, "test": 75, "validation": 75}
    assert all((np.bincount(part["label"]) == len(part["label"]) / 3).all() for part in found[3].values())
    groups = [set(part["patient"].tolist()) for part in found[4].values()]
    assert len(set.union(*groups)) == sum(map(len, groups)) == 75
    days = found[5]
    assert days["train"]["day"].max() < days["validation"]["day"].min() < days["test"]["day"].min()
    assert set(found[6]["validation"]["part"]) == {b"val"} and set(found[6]["test"]["part"]) == {b"test"}
    assert found[0]["test"]["day"].tolist() != found[2]["test"]["day"].tolist()


def test_it_is_the_split_that_the_source_would_have_made(tmp_path: Path) -> None:
    """A row's number decides, so that both have the same fingerprint."""
    np.savez(tmp_path / "a.npz", x_train=np.arange(400.0, dtype=np.float32).reshape(200, 2))
    options = {"path": str(tmp_path / "a.npz"), "columns": "x", "train": "x_train"}
    prepare_dataset("npz", tmp_path / "all", {**options, "test_fraction": "0"})
    ways = {"test_fraction": "0.2", "validation_fraction": "0.1"}
    direct = prepare_dataset("npz", tmp_path / "direct", {**options, **ways})
    assert split_dataset(str(tmp_path / "all"), str(tmp_path / "later"), ways).fingerprint == direct.fingerprint


def test_splits_that_are_not_named_stay_as_they_are(tmp_path: Path) -> None:
    write(tmp_path / "old", {"train": (200, 0), "test": (50, 1000)})
    split_dataset(str(tmp_path / "old"), str(tmp_path / "new"), {"validation_fraction": "0.2"})
    before, after = everything(tmp_path / "old"), everything(tmp_path / "new")
    assert after["test"] == before["test"] and sorted(after["train"] + after["validation"]) == sorted(before["train"])
    split_dataset(str(tmp_path / "old"), str(tmp_path / "half"), {"of": "test", "validation_fraction": "0.5"})
    half = everything(tmp_path / "half")
    assert half["train"] == before["train"] and sorted(half["test"] + half["validation"]) == sorted(before["test"])
    split_dataset(str(tmp_path / "old"), str(tmp_path / "anew"), {"of": "all", "test_fraction": "0.5"})
    anew = everything(tmp_path / "anew")
    assert sorted(anew["train"] + anew["test"]) == sorted(before["train"] + before["test"])
    assert set(anew["test"]) & set(before["train"]) and set(anew["train"]) & set(before["test"])
    split_dataset(str(tmp_path / "old"), str(tmp_path / "one"), {"of": "all", "test_fraction": "0"})
    assert everything(tmp_path / "one") == {"train": before["train"] + before["test"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_fraction": "0.2"}, "has a split 'test' already, and test_fraction=0.2 asks for one"),
        ({}, "nothing is held out of 'train'"),
        ({"split_column": "part"}, "has a split 'test', and split_column=part says it, too"),
        ({"of": "tset", "validation_fraction": "0.1"}, "did you mean 'test'"),
        ({"of": "all", "split_group": "patiente", "test_fraction": "0.1"}, "did you mean 'patient'"),
        ({"of": "all", "split_group": "x", "test_fraction": "0.1"}, r"has the shape \[2, 3\] for a row"),
        ({"validation_fraction": "0.1", "stratify": "true", "label": "day"}, "of 200 classes there is one row only"),
        ({"validation_fraktion": "0.1"}, "distdl data split has no option 'validation_fraktion'"),
        ({"of": "test", "test_fraction": "0.5"}, "has a split 'test' already"),
        ({"validation_fraction": "0.1", "label": "day"}, "stratify=true, which is not asked for"),
        ({"validation_fraction": "0.1", "bad_rows": "set_aside"}, "bad_rows= is of raw files"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(tmp_path: Path, options: dict[str, str], message: str) -> None:
    write(tmp_path / "old", {"train": (200, 0), "test": (50, 1000)})
    with pytest.raises(InputError, match=message):
        split_dataset(str(tmp_path / "old"), str(tmp_path / "new"), options)
    assert not (tmp_path / "new").exists()


def test_what_was_fitted_over_rows_that_are_held_out_now_is_said(tmp_path: Path, command: Command) -> None:
    table(tmp_path / "t.csv", 100)
    prepare_dataset("csv", tmp_path / "a", {"path": str(tmp_path / "t.csv"), "label": "kind", "test_fraction": "0"})
    code, out, error = command("data", "split", tmp_path / "a", tmp_path / "b", "test_fraction=0.2", "--quiet")
    assert code == 0 and "the scales and words of x were found over the training split of" in out, error
    assert "made by distdl data split of" in command("data", "inspect", tmp_path / "b").stdout
    told = json.loads(
        command("data", "split", tmp_path / "a", tmp_path / "c", "test_fraction=0.2", "--quiet", "--json").stdout
    )
    assert told["rows"] == {name: s.rows for name, s in read_manifest(tmp_path / "b").splits.items()}
    assert command("data", "split", tmp_path / "a", tmp_path / "a", "test_fraction=0.2", "--overwrite").code == 2


@pytest.mark.parametrize("pieces", [0, 4])
def test_pieces_are_fitted_too(tmp_path: Path, command: Command, pieces: int) -> None:
    (tmp_path / "t.csv").write_text("v,kind\n" + "".join(f"{i % 31},{i % 2}\n" for i in range(200)))
    told = {"path": str(tmp_path / "t.csv"), "label": "kind", "test_fraction": "0", "scale": "none", "pieces": pieces}
    prepare_dataset("csv", tmp_path / "a", told)
    code, out, error = command("data", "split", tmp_path / "a", tmp_path / "b", "test_fraction=0.2", "--quiet")
    assert code == 0 and ("were found over the training split of" in out) == (pieces > 0), error


def test_a_flipped_bit_is_not_passed_on(tmp_path: Path) -> None:
    write(tmp_path / "old", {"train": (200, 0)})
    shard = sorted((tmp_path / "old").glob("*.arrow"))[1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    for make in (
        lambda: split_dataset(str(tmp_path / "old"), str(tmp_path / "new"), {"test_fraction": "0.1"}),
        lambda: list(stored_rows(str(tmp_path / "old"), read_manifest(tmp_path / "old"), "train")),
    ):
        with pytest.raises(DataCorrupt):
            make()
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_rows_that_were_set_aside_stay_told(tmp_path: Path) -> None:
    """By the data set that they came from: their list lies beside its shards, and not beside the new ones."""
    for name, first in (("a", 0), ("b", 500)):
        (tmp_path / f"{name}.csv").write_text(
            "x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(first, first + 99)) + "9\n"
        )
        told = {
            "path": str(tmp_path / f"{name}.csv"),
            "label": "y",
            "scale": "none",
            "missing": "zero",
            "bad_rows": "set_aside",
        }
        prepare_dataset("csv", tmp_path / name, {**told, "test_fraction": "0"})
    split_dataset(str(tmp_path / "a"), str(tmp_path / "s"), {"test_fraction": "0.2"})
    merge_datasets([str(tmp_path / "s"), str(tmp_path / "b")], str(tmp_path / "m"))
    for name in ("s", "m"):
        assert verify_dataset(tmp_path / name) == [] and "bad_rows" not in read_manifest(tmp_path / name).info
    one, other = read_manifest(tmp_path / "m").info["origin"]["of"]
    assert one["origin"]["of"][0]["bad_rows"]["rows"] == other["bad_rows"]["rows"] == 1


# -- tables ------------------------------------------------------------------------------------------------------------


def table(path: Path, count: int, first: int = 0) -> list[list[str]]:
    """A CSV file of a number, a word with signs that need quotes, an empty cell now and then, and a class."""
    lines = [
        [f"0{i}", f"{i / 7:.6f}", 'a "b", c' if i % 5 == 0 else f"w{i}", "" if i % 3 == 0 else "1", "abc"[i % 3]]
        for i in range(first, first + count)
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "size", "word", "gap", "kind"], *lines])
    return lines


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl", "arrow"])
def test_a_table_is_split_into_files(tmp_path: Path, form: str) -> None:
    """Of its own format, or another: all rows, all columns, every word as it was."""
    lines = table(tmp_path / "t.csv", 300)
    options = {
        "test_fraction": "0.2",
        "validation_fraction": "0.2",
        "stratify": "true",
        "label": "kind",
        "format": form,
    }
    counts, record, _ = split_table.split_table(str(tmp_path / "t.csv"), str(tmp_path / "out"), options)
    assert counts == {f"train.{form}": 180, f"test.{form}": 60, f"validation.{form}": 60} and record["by"] == "label"
    found = []
    for path in (tmp_path / "out").iterdir():
        if form == "csv":
            with path.open(newline="") as file:
                names, *part = csv.reader(file)
        elif form == "jsonl":
            records = [json.loads(line) for line in path.read_text().splitlines()]
            names, part = list(records[0]), [list(one.values()) for one in records]
        else:
            got = pq.read_table(path) if form == "parquet" else pa.ipc.open_file(str(path)).read_all()
            names, part = got.schema.names, [list(one.values()) for one in got.to_pylist()]
        assert names == ["id", "size", "word", "gap", "kind"]
        found += part
    assert sorted(found) == sorted(lines)


def test_a_table_of_types_keeps_them(tmp_path: Path) -> None:
    schema = {"a": pa.array(range(50), pa.int16()), "b": pa.array([[1.5, None]] * 50), "t": pa.array([10**9] * 50)}
    schema["t"] = schema["t"].cast(pa.timestamp("s"))
    pq.write_table(pa.table(schema), tmp_path / "t.parquet")
    split_table.split_table(
        str(tmp_path / "t.parquet"), str(tmp_path / "out"), {"split_time": "a", "test_fraction": "0.1"}
    )
    test = pq.read_table(tmp_path / "out" / "test.parquet")
    assert test["a"].to_pylist() == [45, 46, 47, 48, 49]
    assert test.schema.equals(pq.read_table(tmp_path / "t.parquet").schema)
    with pytest.raises(InputError, match="'b' holds"):
        split_table.split_table(str(tmp_path / "t.parquet"), str(tmp_path / "csv"), {"format": "csv"})
    with pytest.raises(InputError, match="already exists"):
        split_table.split_table(str(tmp_path / "t.parquet"), str(tmp_path / "out"), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "t.parquet"]


def test_how_a_csv_file_is_read_can_be_said(tmp_path: Path, command: Command) -> None:
    (tmp_path / "t.csv").write_text("".join(f"{i};{i % 2},5\n" for i in range(40)), encoding="latin-1")
    arguments = ("data", "split", tmp_path / "t.csv", tmp_path / "out", "names=a,b", "delimiter=;", "decimal=,")
    code, out, error = command(*arguments, "test_fraction=0.25", "--quiet")
    assert code == 0 and "train.csv" in out, error
    assert (tmp_path / "out" / "train.csv").read_text().startswith("a,b\n")
    assert "1.5" in (tmp_path / "out" / "train.csv").read_text()
    code, _, error = command(
        "data", "split", tmp_path / "t.csv", tmp_path / "o2", "test_fraction=0", "header=no", "--quiet"
    )
    assert code == 2 and "nothing is held out" in error
    code, _, error = command("data", "split", tmp_path / "t.csv", tmp_path / "o2", "bad_rows=set_aside", "--quiet")
    assert code == 2 and "bad_rows= is of raw files" in error
    code, _, error = command("data", "split", tmp_path / "none.csv", tmp_path / "o2", "--quiet")
    assert code == 2 and "there is no file or folder" in error


def test_the_help_has_every_option(command: Command) -> None:
    for verb, kinds in (("split", (split.Options, split_table.Options)), ("convert", (convert.Options,))):
        code, out, _ = command("data", verb, "--help")
        assert code == 0 and "--overwrite" in out
        names = {field.name for kind in kinds for field in dataclasses.fields(kind)} - set(NAMES)
        assert len(names) > 3 and all(f"\n  {name}=" in out for name in names) and "bad_rows=" not in out


# -- merge -------------------------------------------------------------------------------------------------------------


def test_merged_rows_follow_each_other(tmp_path: Path) -> None:
    one = write(tmp_path / "a", {"train": (120, 0), "test": (20, 500)})
    two = write(tmp_path / "b", {"train": (75, 1000), "validation": (10, 2000)})
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    manifest = merge_datasets(paths, str(tmp_path / "ab"))
    a, b, ab = (everything(tmp_path / name) for name in ("a", "b", "ab"))
    assert ab == {"train": a["train"] + b["train"], "test": a["test"], "validation": b["validation"]}
    assert verify_dataset(tmp_path / "ab") == [] and manifest.info["notes"] == []
    assert [of["fingerprint"] for of in manifest.info["origin"]["of"]] == [one.fingerprint, two.fingerprint]
    assert merge_datasets(paths, str(tmp_path / "ab"), overwrite=True).fingerprint == manifest.fingerprint


def test_what_split_takes_apart_merge_puts_together(tmp_path: Path) -> None:
    write(tmp_path / "a", {"train": (100, 0)})
    write(tmp_path / "b", {"train": (100, 100)})
    whole = write(tmp_path / "c", {"train": (200, 0)})
    merged = merge_datasets([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "ab"))
    assert merged.fingerprint == whole.fingerprint


def class_record(*names: str) -> dict[str, Any]:
    return {"label": {"kind": "class", "version": 1, "classes": list(names)}}


def scale_record(shift: float) -> dict[str, Any]:
    scale = {"method": "standard", "shift": shift, "divide": 2.0}
    feature = {"name": "age", "kind": "number", "fill": 0.0, "indicator": False, "words": [], "scale": scale}
    return {"x": {"kind": "features", "version": 1, "features": [feature], "columns": ["age"]}}


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (
            {"preparation": class_record("cat", "dog")},
            {"preparation": class_record("cat", "fox")},
            r"the preparation of 'label'.classes differs: \['cat', 'dog'\] in \S+/a, \['cat', 'fox'\] in \S+/b",
        ),
        (
            {"preparation": scale_record(38.5)},
            {"preparation": scale_record(38.75)},
            r"'x'.features\[age\].scale.shift differs: 38.5 in \S+/a, 38.75 in \S+/b",
        ),
        ({"preparation": class_record("cat", "dog")}, {}, r"the preparation of 'label' differs: .* nothing in"),
        ({"info": {"mean": [1.0]}}, {"info": {"mean": [2.0]}}, r"told of 'mean' differs: \[1.0\] in .*, \[2.0\] in"),
        ({"info": {"classes": ["1", "2"]}}, {"info": {"classes": ["2", "1"]}}, r"told of 'classes' differs"),
    ],
)
def test_numbers_that_mean_something_else_are_not_merged(
    tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any], message: str
) -> None:
    write(tmp_path / "a", {"train": (20, 0)}, **ours)
    write(tmp_path / "b", {"train": (20, 100)}, **theirs)
    with pytest.raises(InputError, match=message):
        merge_datasets([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "ab"))
    assert not (tmp_path / "ab").exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": Column("float32", (3,))}, r"the shape of the column 'x' differs: \(2,\) in \S+/a, \(3,\) in \S+/b"),
        ({"x": Column("float64", (2,))}, r"the dtype of the column 'x' differs: 'float32' in \S+/a, 'float64' in"),
        ({"x": Column("float32", (2,)), "z": Column("int64")}, r"/b has a column 'z', and \S+/a has none"),
    ],
)
def test_columns_that_differ_are_not_merged(tmp_path: Path, columns: dict[str, Column], message: str) -> None:
    for name, of in (("a", {"x": Column("float32", (2,))}), ("b", columns)):
        with DatasetWriter(tmp_path / name, of, "made", {}) as writer:
            writer.write("train", {key: np.zeros((4, *c.shape), c.dtype) for key, c in of.items()})
    with pytest.raises(InputError, match=message):
        merge_datasets([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "ab"))


def test_rows_that_are_there_twice_are_told(tmp_path: Path, command: Command) -> None:
    """How many, and two of them; apart from that, those that are held out and learned."""
    write(tmp_path / "a", {"train": (100, 0), "test": (20, 500)})
    write(tmp_path / "b", {"train": (60, 70), "test": (10, 40)})
    code, out, error = command("data", "merge", tmp_path / "a", tmp_path / "b", tmp_path / "ab", "--quiet")
    assert code == 0, error
    a, b = tmp_path / "a", tmp_path / "b"
    assert "note: 40 rows of the 2 data sets are there more than once: row " in out
    assert "note: 10 rows of test are rows of train, too, so they are learned: row " in out
    held, learned = read_manifest(tmp_path / "ab").info["notes"][1].partition("learned: ")[2].split(" is ")
    (i, j) = (int(told.split()[1]) for told in (held, learned))
    assert held == f"row {i} of test of {b}" and learned == f"row {j} of train of {a}" and j == 40 + i
    code, _, error = command("data", "merge", a, a, tmp_path / "aa")
    assert code == 2 and "is named twice" in error
    code, _, error = command("data", "merge", a, tmp_path / "aa")
    assert code == 2 and "two or more" in error


def test_of_many_rows_a_sample_tells_how_many_are_double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MOST_ROWS", 2000)
    double = Duplicates(["v"])
    values = np.concatenate([np.arange(20_000), np.arange(5_000)])
    double.begin("a", "train")
    for start in range(0, len(values), 1000):
        double.add({"v": values[start : start + 1000]})
    (told,) = double.notes()
    assert "by a sample of 1 in 16" in told or "by a sample of 1 in 32" in told
    assert 3500 < int(told.split()[1].replace(",", "")) < 6500
    assert len(set(hashed({"v": np.arange(1000)}, ["v"]).tolist())) == 1000
    assert hashed({"t": [b"ab", b"a", b"b"], "u": [b"c", b"bc", b"c"]}, ["t", "u"])[0] != 0
