"""What a manifest tells of the columns, and what a survey makes of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from distdl.columns import Column as Asked
from distdl.data import manifest as manifests
from distdl.data.fit import class_notes
from distdl.data.manifest import Column, Manifest, read_manifest
from distdl.data.statistics import MOST_CLASSES, Part, Statistics
from distdl.data.strict import checksum
from distdl.data.summary import KEPT_ROWS, Summary, part_of
from distdl.data.write import DatasetWriter
from distdl.errors import InputError

LABELS = {"label": Column("int64")}


def summed(columns: dict[str, Column], *batches: dict) -> dict[str, Statistics]:
    summary = Summary(columns)
    for batch in batches:
        lengths = {
            name: np.array([len(value) for value in batch[name]]) for name in columns if columns[name].dtype == "bytes"
        }
        summary.add({name: values for name, values in batch.items() if name not in lengths}, lengths)
    return summary.statistics()


def written(folder: Path, splits: dict[str, dict], columns: dict[str, Column], **about: object) -> Manifest:
    with DatasetWriter(folder / "set", columns, "test", {}, rows_per_batch=16, about=about) as writer:
        for split, rows in splits.items():
            writer.write(split, rows)
    return read_manifest(folder / "set")


def test_each_feature_has_its_own_numbers() -> None:
    x = np.random.default_rng(0).normal([5, -100], [1, 20], (500, 2)).astype(np.float32)
    x[3, 1] = np.nan
    found = summed({"x": Column("float32", (2,))}, {"x": x[:200]}, {"x": x[200:]})["x"]
    assert found.looked_at == 500 and found.classes is None and len(found.parts) == 2
    one, two = found.parts
    assert one.mean == pytest.approx(x[:, 0].mean(), rel=1e-5) and one.deviation == pytest.approx(
        x[:, 0].std(), rel=1e-5
    )
    assert (one.low, one.high, one.median) == pytest.approx((x[:, 0].min(), x[:, 0].max(), np.median(x[:, 0])))
    assert (one.missing, two.missing) == (0, 1)
    assert sum(one.histogram) == 500 and sum(two.histogram) == 499
    assert one.histogram == tuple(np.histogram(x[:, 0].astype(float), 20)[0])


def test_bytes_of_pictures_are_taken_together() -> None:
    picture = np.arange(192, dtype=np.uint8).reshape(1, 3, 8, 8)
    (part,) = summed({"image": Column("uint8", (3, 8, 8))}, {"image": picture})["image"].parts
    assert (part.low, part.high, part.mean) == (0, 191, 95.5)


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint8", "uint64"])
def test_classes_are_counted_in_all_rows(dtype: str) -> None:
    ends = np.iinfo(dtype)
    labels = np.array([ends.min, ends.max] * 3 + [7], dtype) if dtype != "int64" else np.array([-100, 3, 3], dtype)
    found = summed({"label": Column(dtype)}, {"label": labels}, {"label": labels[:1]})["label"]
    assert found.classes == Counter([*labels.tolist(), labels[0].item()])


def test_many_rows_are_told_from_some_and_counted_in_full() -> None:
    labels = np.arange(5 * KEPT_ROWS, dtype=np.int64)
    found = summed(LABELS, *({"label": part % 10} for part in np.split(labels, 20)))["label"]
    assert KEPT_ROWS // 4 < found.looked_at <= KEPT_ROWS
    assert found.classes == dict.fromkeys(range(10), KEPT_ROWS // 2), "in all rows"
    (part,) = found.parts
    assert part.mean == pytest.approx(4.5, abs=0.2), "chance picks them, and no stride that meets every tenth alone"
    assert summed(LABELS, {"label": labels % 10})["label"] == found, "whatever the batches are"
    assert summed(LABELS, {"label": labels[: MOST_CLASSES + 1]})["label"].classes is None


def test_lengths_of_strings_of_bytes() -> None:
    found = summed({"t": Column("bytes")}, {"t": [b"abc", b""]}, {"t": [b"x" * 9]})["t"]
    assert found.lengths == (0, 4.0, 9) and found.parts == ()


def test_numbers_without_a_distribution() -> None:
    assert part_of(np.array([np.nan, np.inf])) == Part(None, None, None, None, None, 2, ())
    wide = part_of(np.array([-1.7e308, 1.7e308]))
    assert wide.deviation is None and wide.histogram == () and json.dumps([wide.low, wide.high])
    assert part_of(np.array([3, 5, 5])).histogram == (1, 0, 2)
    assert part_of(np.full(4, 0.5)).histogram.count(4) == 1


def test_the_manifest_keeps_them_and_the_fingerprint_does_not(tmp_path: Path) -> None:
    rows = {"label": np.array([0, 1, 1]), "x": np.array([[0.5], [1], [2]], np.float32), "t": [b"a", b"bb", b""]}
    columns = {"label": Column("int64"), "x": Column("float32", (1,)), "t": Column("bytes")}
    manifest = written(tmp_path, {"train": rows}, columns)
    assert manifest.statistics["train"]["label"].classes == {0: 1, 1: 2}
    assert manifest.statistics["train"]["t"].lengths == (0, 1.0, 2)
    assert manifests.from_json(manifests.to_json(manifest)) == manifest
    record = json.loads(manifests.to_json(manifest))
    del record["statistics"]
    older = manifests.from_json(json.dumps(record))
    assert older.statistics == {} and older.fingerprint == manifest.fingerprint


def edited(tmp_path: Path, change: dict, of: str = "label", seal: bool = True) -> str:
    manifest = written(tmp_path, {"train": {"label": np.array([0, 1, 1])}}, LABELS)
    record = json.loads(manifests.to_json(manifest))
    record["statistics"]["splits"]["train"][of] |= change
    if seal:
        record["statistics"]["checksum"] = checksum(record["statistics"]["splits"])
    return json.dumps(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"looked_at": -1}, "not a count"),
        ({"odd": 1}, "unknown key 'odd'"),
        ({"classes": {"one": 2}}, "a class of statistics of 'label'"),
        ({"classes": {"1": 2.5}}, "not a count"),
        ({"lengths": [1, 2]}, "lengths"),
        ({"lengths": [1, None, 2]}, "no mean"),
        ({"parts": [{}]}, "lacks the key"),
        ({"parts": [None] * 129}, "129 parts"),
        ({"classes": {str(i): 1 for i in range(1001)}}, "1001 classes"),
    ],
)
def test_they_are_read_strictly(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        manifests.from_json(edited(tmp_path, change))


def test_a_changed_one_is_not_believed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="checksum of the statistics does not match"):
        manifests.from_json(edited(tmp_path, {"looked_at": 2}, seal=False))


# -- what a survey says ------------------------------------------------------------------------------------------------


def notes(tmp_path: Path, train: list[int], test: list[int], classes: int, **about: object) -> list[str]:
    splits = {"train": {"label": np.array(train)}, "test": {"label": np.array(test)}}
    manifest = written(tmp_path, splits, LABELS, **about)
    return class_notes(manifest, {"the family f": {"label": Asked.label(classes)}}, "train", "test")


def test_classes_without_rows_are_said(tmp_path: Path) -> None:
    told = notes(tmp_path, [0, 1, 1, -100], [0, 1], 4, info={"classes": ["cat", "dog", "emu", "fox"]})
    assert told == [
        "model.classes is 4, and class 2 (emu), class 3 (fox) have no row in the split 'train': they are never learned"
    ]


def test_a_class_of_the_test_split_alone_is_said(tmp_path: Path) -> None:
    told = notes(tmp_path, [0, 1, 0], [0, 2, 2], 3)
    assert told[1:] == ["2 rows of the split 'test' are of class 2, which the split 'train' does not have"]


def test_one_class_is_none(tmp_path: Path) -> None:
    assert notes(tmp_path, [1, 1], [1], 2) == ["every 'label' of the split 'train' is class 1: nothing is told apart"]


def test_nothing_is_said_where_all_is_well_or_not_known(tmp_path: Path) -> None:
    assert notes(tmp_path, [0, 1, -100], [1], 2) == []
    manifest = Manifest("s", {}, LABELS, 16, {})
    assert class_notes(manifest, {"f": {"label": Asked.label(2)}}, "train", None) == []
