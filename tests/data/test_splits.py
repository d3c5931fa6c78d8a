"""Which rows are held out: by number, label, group, time and column; the same ones whenever and however they are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from distdl.data import split_shares, split_values
from distdl.data.order import keyed_hash
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.data.split_rules import SPLITS
from distdl.data.split_shares import apportion
from distdl.data.splits import SPLIT_KEY, SplitOptions, Splitter, split_files
from distdl.errors import InputError

ROWS = 20_000


def cut(columns: dict[str, Any], size: int = 777) -> Iterator[dict[str, Any]]:
    rows = len(next(iter(columns.values())))
    for begin in range(0, rows, size):
        yield {name: values[begin : begin + size] for name, values in columns.items()}


def assigned(
    columns: dict[str, Any], size: int = 777, label: str = "", **options: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """The split of every row, and the record."""
    splitter = Splitter(SplitOptions(**options), names=tuple(columns), label=label, where="t.csv")
    splitter.look(cut(columns, size))
    return np.concatenate([splitter.assign(c, i * size) for i, c in enumerate(cut(columns, size))]), splitter.record()


def shared(columns: dict[str, np.ndarray], **options: Any) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for split, rows in Splitter(SplitOptions(**options)).parts(lambda: cut(columns)):
        found.setdefault(split, []).extend(rows["x"].tolist())
    return found


def test_the_default_holds_out_the_rows_it_always_did() -> None:
    x = np.arange(ROWS)
    expected = x[keyed_hash(SPLIT_KEY, x) < np.uint64(int(0.1 * 2.0**64))].tolist()
    assert shared({"x": x})["test"] == expected and len(expected) == pytest.approx(2000, abs=200)
    both = shared({"x": x}, validation_fraction=0.1)
    assert both["test"] == expected, "a validation split takes from the training rows, not from the test rows"
    assert sorted(chain(*both.values())) == x.tolist() and len(both["validation"]) == pytest.approx(2000, abs=200)
    which, record = assigned({"x": x}, validation_fraction=0.1)
    assert [x[which == n].tolist() for n in range(3)] == [both[name] for name in SPLITS]
    assert record["rows"] == {name: len(rows) for name, rows in both.items()} and record["by"] == "rows"


def test_another_seed_holds_out_others() -> None:
    first, second = (set(shared({"x": np.arange(ROWS)}, split_seed=seed)["test"]) for seed in (0, 1))
    assert len(second) == pytest.approx(2000, abs=200) and len(first & second) < 400


@pytest.mark.parametrize("rows", [3, 4, 17])
def test_each_of_three_splits_gets_a_row_of_few(rows: int) -> None:
    options: dict[str, Any] = {"test_fraction": 0.01, "validation_fraction": 0.01}
    found = shared({"x": np.arange(rows)}, **options)
    assert sorted(found) == sorted(SPLITS) and sorted(chain(*found.values())) == list(range(rows))
    which, _ = assigned({"x": np.arange(rows)}, size=2, **options)
    assert {name: np.flatnonzero(which == n).tolist() for n, name in enumerate(SPLITS)} == found


def test_strata_are_exact_within_a_row() -> None:
    label = np.random.default_rng(0).choice(["often", "seldom", "hardly"], ROWS, p=[0.95, 0.049, 0.001])
    which, record = assigned({"label": label}, label="label", stratify=True, test_fraction=0.2, validation_fraction=0.1)
    for name in set(label):
        of_class = np.bincount(which[label == name], minlength=3)
        assert abs(of_class[1] - 0.2 * of_class.sum()) < 1 and abs(of_class[2] - 0.1 * of_class.sum()) < 1, name
    assert record["rows"] == {"train": 14_000, "test": 4_000, "validation": 2_000}, "in all as exact as can be"
    again, _ = assigned({"label": pa.array(label).dictionary_encode()}, 5000, "label", stratify=True, test_fraction=0.2,
                        validation_fraction=0.1)  # fmt: skip
    assert (again == which).all(), "however the rows are cut and typed"


def test_many_small_classes_are_rounded_to_the_right_sum() -> None:
    rows = np.array([4] * 1000)
    held_out = apportion(rows, 0.1, rows - 1, np.arange(1000).astype(np.uint64))
    assert held_out.sum() == 400 and set(held_out.tolist()) == {0, 1}
    assert apportion(np.array([100]), 0.29, np.array([99]), np.zeros(1, np.uint64)).tolist() == [29]


def test_a_group_is_in_one_split_only_and_shares_are_near() -> None:
    draw = np.random.default_rng(1)
    sizes = draw.integers(1, 200, 150)
    group = draw.permutation(np.repeat([f"patient {i}" for i in range(150)], sizes))
    which, record = assigned({"g": group}, split_group="g", test_fraction=0.2, validation_fraction=0.1)
    assert all(len(set(which[group == name].tolist())) == 1 for name in set(group))
    shares = np.bincount(which) / len(which)
    assert shares[1] == pytest.approx(0.2, abs=0.01) and shares[2] == pytest.approx(0.1, abs=0.01)
    assert sum(record["groups"].values()) == 150 and sum(record["rows"].values()) == len(group)
    assert (assigned({"g": group}, 100, split_group="g", test_fraction=0.2, validation_fraction=0.1)[0] == which).all()
    few, _ = assigned({"g": ["a", "b"] * 4 + ["c"]}, split_group="g", test_fraction=0.5, validation_fraction=0.4)
    assert sorted(np.bincount(few).tolist()) == [1, 4, 4]


def test_more_groups_than_are_counted_are_shared_out_by_their_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_shares, "MOST_GROUPS", 100)
    monkeypatch.setattr(split_values, "PENDING_ROWS", 64)
    group = np.random.default_rng(4).integers(0, 5000, ROWS)
    which, record = assigned({"g": group}, split_group="g", test_fraction=0.2)
    assert all(len(set(which[group == name].tolist())) == 1 for name in range(0, 5000, 50))
    assert np.mean(which) == pytest.approx(0.2, abs=0.02) and record["groups"] == "more than 100"
    assert record["rows"] == {"train": int((which == 0).sum()), "test": int((which == 1).sum())}


@pytest.mark.parametrize("kind", ["days", "texts", "numbers", "negative", "timestamps"])
def test_the_latest_part_is_tested(kind: str) -> None:
    order = np.random.default_rng(2).permutation(1000)
    days = np.datetime64("1969-06-01") + order
    values = {
        "days": days,
        "texts": days.astype(str).tolist(),
        "numbers": order * 1.5,
        "negative": -1000.25 + order,
        "timestamps": pa.array(days.astype("datetime64[s]")),
    }[kind]
    which, record = assigned({"t": values}, split_time="t", test_fraction=0.2, validation_fraction=0.1)
    assert (which == np.where(order >= 800, 1, np.where(order >= 700, 2, 0))).all()
    assert record["begin"]["test"] == {"numbers": "1200", "negative": "-200.25"}.get(kind, "1971-08-10")
    assert "notes" not in record


def test_rows_of_one_time_stay_together_and_that_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    year = np.repeat(np.arange(2000, 2010), 30)
    which, record = assigned({"year": year}, split_time="year", test_fraction=0.14)
    assert set(year[which == 1].tolist()) == {2009} and set(year[which == 0].tolist()) == set(range(2000, 2009))
    told = "30 rows share 2009, the first time of the split test, and stay together: it has 30 of 300 rows, 10.00% "
    told += "instead of 14.00%"
    assert record["notes"] == [told] and told in capsys.readouterr().err


def test_more_times_than_are_kept_are_told_apart_less_finely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_values, "MOST_KEYS", 256)
    monkeypatch.setattr(split_values, "PENDING_ROWS", 64)
    time = np.random.default_rng(3).permutation(ROWS)
    which, _ = assigned({"t": time}, split_time="t", test_fraction=0.2)
    assert time[which == 1].min() > time[which == 0].max() and np.mean(which) == pytest.approx(0.2, abs=0.01)


def test_a_column_says_it() -> None:
    which, record = assigned({"part": [" train", "Val", "test", "validation", "training"]}, split_column="part")
    assert which.tolist() == [0, 2, 1, 2, 0] and record["rows"] == {"train": 2, "test": 1, "validation": 2}
    assert "test_fraction" not in record


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"g": ["a"] * 9}, {"split_group": "h"}, "no column 'h', which split_group= names"),
        ({"g": ["a"] * 9}, {"split_group": "g"}, "the column 'g' has 1 groups, too few for test_fraction=0.1"),
        ({"g": ["a", "b", None, "c"]}, {"split_group": "g"}, "t.csv, row 2: the column 'g' has no value here"),
        ({"g": ["a", "b", " ", "c"]}, {"split_group": "g"}, "t.csv, row 2: the column 'g' has no value here"),
        ({"t": [1.0, 2.0, float("nan")]}, {"split_time": "t"}, "t.csv, row 2: the column 't' has no value here"),
        ({"t": ["2020-01-01", None]}, {"split_time": "t"}, "t.csv, row 1: the column 't' has no value here"),
        ({"t": ["2020-01-01", "soon"]}, {"split_time": "t"}, "t.csv, row 1: the column 't' has the value 'soon'"),
        ({"t": [7, 7, 7]}, {"split_time": "t"}, "the column 't' has 1 different times"),
        ({"l": ["a", "a", "b"]}, {"stratify": True}, "of 1 classes there is one row only: 'b'"),
        ({"x": [1, 2]}, {"stratify": True}, "stratify=true .* there is no label"),
        ({"l": [1, 2], "x": [1, 2]}, {"stratify": True, "label": "y"}, "stratify=true .* there is no label"),
        ({"p": ["train", "holdout"]}, {"split_column": "p"}, "t.csv, row 1: the column 'p' says 'holdout'"),
        ({"p": ["test", "test"]}, {"split_column": "p"}, "says 'train' of none of 2 rows"),
        ({"p": ["train"]}, {"split_column": "p", "validation_fraction": 0.1}, "validation_fraction says it, too"),
        ({"p": ["train"]}, {"split_column": "p", "split_time": "p"}, "split_time and split_column at once"),
        ({"x": [1]}, {"test_fraction": 0.6, "validation_fraction": 0.4}, "leave nothing to train on"),
        ({"x": [1]}, {"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"x": [1, 2]}, {"validation_fraction": 0.1}, "of 2 rows leaves nothing to"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(columns: dict[str, Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        assigned(columns, **{"label": "l" if "l" in columns else "", **options})


def test_whole_files_go_to_three_splits() -> None:
    names = [f"part/{i}.txt" for i in range(500)]
    found = split_files(names, SplitOptions(test_fraction=0.1, validation_fraction=0.2))
    counts = {split: list(found.values()).count(split) for split in SPLITS}
    assert counts["test"] == pytest.approx(50, abs=20) and counts["validation"] == pytest.approx(100, abs=25)
    assert sorted(split_files(["a", "b", "c"], SplitOptions(validation_fraction=0.1)).values()) == sorted(SPLITS)
    assert [n for n, s in found.items() if s == "test"] == [
        n for n, s in split_files(names, SplitOptions(test_fraction=0.1)).items() if s == "test"
    ]


def test_sources_share_their_rows_out_so(tmp_path: Path) -> None:
    label = np.repeat([0, 1], [300, 30])
    np.savez(tmp_path / "a.npz", x=np.arange(330.0), y=label, who=np.arange(330) % 33)
    arrays = {"path": tmp_path / "a.npz", "columns": "x,label", "train": "x,y"}
    manifest = prepare_dataset("npz", tmp_path / "n", {**arrays, "stratify": "true", "test_fraction": 0.1})
    assert np.bincount(Dataset(tmp_path / "n", "test").gather(np.arange(33))["label"]).tolist() == [30, 3]
    assert manifest.info["split"] == {
        "by": "label", "column": "label", "seed": 0, "test_fraction": 0.1, "validation_fraction": 0.0,
        "rows": {"train": 297, "test": 33},
    }  # fmt: skip
    grouped = {**arrays, "columns": "x,label,who", "train": "x,y,who", "split_group": "who", "validation_fraction": 0.2}
    manifest = prepare_dataset("npz", tmp_path / "g", {**grouped, "test_fraction": 0.2})
    assert list(manifest.columns) == ["x", "label"], "what says where a row belongs is nothing to learn from"
    whose = {s: set(Dataset(tmp_path / "g", s).gather(np.arange(p.rows))["x"] % 33) for s, p in manifest.splits.items()}
    assert sorted(map(len, whose.values())) == [7, 7, 19] and len(set.union(*whose.values())) == 33

    rows = [{"x": i, "when": i // 2} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_dataset("jsonl", tmp_path / "j", {"path": tmp_path / "a.jsonl", "split_time": "when"})
    assert Dataset(tmp_path / "j", "test").gather(np.arange(4))["when"].tolist() == [18, 18, 19, 19]

    table = pa.table({"x": range(6), "part": ["train", "train", "val", "test", "train", "val"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    manifest = prepare_dataset("parquet", tmp_path / "p", {"path": tmp_path / "a.parquet", "split_column": "part"})
    assert {name: split.rows for name, split in manifest.splits.items()} == {"test": 1, "train": 3, "validation": 2}
    assert list(manifest.columns) == ["x"]


def test_a_source_that_cannot_heed_an_option_refuses_it(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("abc" * 1000)
    with pytest.raises(InputError, match="split_group"):
        prepare_dataset("text", tmp_path / "d", {"path": f"{tmp_path}/t.txt", "split_group": "author"})
    with pytest.raises(InputError, match="whole files are held out, so that stratify says nothing"):
        prepare_dataset("stdlib", tmp_path / "d", {"max_bytes": 10_000, "stratify": "true"})


def test_the_rows_of_a_stream_are_those_of_a_splitter_that_has_looked() -> None:
    x = {"x": np.arange(3000)}
    splitter = Splitter(SplitOptions(test_fraction=0.3))
    splitter.look(cut(x))
    held = [i for split, rows in splitter.share(cut(x)) if split == "test" for i in rows["x"].tolist()]
    assert held == shared(x, test_fraction=0.3)["test"]
