"""Files of SVMlight, written by scikit-learn: every feature in its place, in one numbering for all files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import dump_svmlight_file

from distdl.data.formats import svmlight
from distdl.data.manifest import Column
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError

RNG = np.random.default_rng(0)
X = np.where(RNG.random((5000, 9)) < 0.3, RNG.normal(size=(5000, 9)), 0)
SIGNS = np.where(RNG.random(5000) < 0.5, -1, 1)


def rows(folder: Path, split: str = "train") -> dict[str, Any]:
    data = Dataset(folder, split)
    return data.gather(np.arange(data.rows))


@pytest.mark.parametrize("zero_based", [True, False])
@pytest.mark.parametrize("block_bytes", [1 << 20, 700])
def test_rows_and_labels(
    tmp_path: Path,
    zero_based: bool,
    block_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(svmlight, "BLOCK_BYTES", block_bytes)
    dump_svmlight_file(X, SIGNS, str(tmp_path / "a"), zero_based=zero_based, comment="made up")
    manifest = prepare_dataset("svmlight", tmp_path / "d", {"path": tmp_path / "a", "test_fraction": 0})
    assert manifest.columns == {"x": Column("float32", (9,)), "label": Column("int64")}
    split = {"by": "rows", "seed": 0, "test_fraction": manifest.options["test_fraction"], "validation_fraction": 0.0}
    assert manifest.info == {"zero_based": zero_based, "classes": ["-1", "1"], "split": split}
    assert manifest.preparation == {"label": {"kind": "class", "version": 1, "classes": ["-1", "1"]}}
    assert f"counted from {0 if zero_based else 1}" in capsys.readouterr().err
    got = rows(tmp_path / "d")
    assert (got["x"] == X.astype(np.float32)).all() and (got["label"] == (SIGNS > 0)).all()


@pytest.mark.parametrize("first", [0, 1])
def test_one_numbering_for_both_files(tmp_path: Path, first: int) -> None:
    """Only one of them has a feature 0, and only the other one the last: alone, each would be read otherwise."""
    train, test = X.copy(), X[:50].copy()
    (test if first else train)[:, 0] = 0
    (train if first else test)[:, 8] = 0
    for name, x in (("train", train), ("test", test)):
        dump_svmlight_file(x, SIGNS[: len(x)], str(tmp_path / name), zero_based=True)
    options = {"path": tmp_path / "train", "test_path": tmp_path / "test"}
    assert prepare_dataset("svmlight", tmp_path / "d", options).columns["x"] == Column("float32", (9,))
    assert (rows(tmp_path / "d")["x"] == train.astype(np.float32)).all()
    assert (rows(tmp_path / "d", "test")["x"] == test.astype(np.float32)).all()
    prepare_dataset("svmlight", tmp_path / "e", options | {"features": "12", "zero_based": "true"})
    assert (rows(tmp_path / "e", "test")["x"][:, :9] == test.astype(np.float32)).all()


def test_targets_and_queries(tmp_path: Path) -> None:
    """A number to predict; the query of a row; .gz; blank lines and comments are no rows."""
    y, queries = RNG.normal(size=5000), np.sort(RNG.integers(0, 90, 5000))
    dump_svmlight_file(X, y, str(tmp_path / "a"), query_id=queries)
    lines = (tmp_path / "a").read_bytes().splitlines(keepends=True)
    with gzip.open(tmp_path / "a.gz", "wb") as file:
        file.writelines([b"# first\n", *lines[:700], b"\n   \n", *lines[700:]])
    options = {"path": tmp_path / "a.gz", "target": "true", "test_fraction": 0.2}
    manifest = prepare_dataset("svmlight", tmp_path / "d", options)
    assert manifest.columns == {"x": Column("float32", (9,)), "y": Column("float32"), "qid": Column("int64")}
    got = [rows(tmp_path / "d", split) for split in ("train", "test")]
    told = {float(value): (x.tobytes(), query) for value, x, query in zip(np.float32(y), X.astype(np.float32), queries)}
    assert sum(len(part["y"]) for part in got) == 5000
    for part in got:
        for value, x, query in zip(np.asarray(part["y"]), np.asarray(part["x"]), np.asarray(part["qid"])):
            assert told[float(value)] == (x.tobytes(), query)


def test_what_is_refused(tmp_path: Path) -> None:
    def refused(text: str, words: str, **options: Any) -> None:
        (tmp_path / "a").write_text(text)
        with pytest.raises(InputError, match=words):
            prepare_dataset("svmlight", tmp_path / "d", {"path": tmp_path / "a", "test_fraction": 0} | options)

    fine = "1 1:2\n# no row\n"
    refused(fine + "0 2:x\n", r"a:3: '0 2:x' cannot be read: could not convert.*\n.*allowed: LABEL")
    refused(fine + "0 2:1 1:3\n", r"a:3: .* sorted and unique")
    refused(fine + "0 4294967297:1\n", r"a:3: ")
    refused(fine + "0,1 2:1\n", r"a:3: ")
    refused(fine + "0.5 2:1\n", r"a:3: the label is 0.5, .*\n.*target=true")
    refused(fine + "0 2:nan\n", r"a:3 \(split 'train'\): the column 'x' has the value nan")
    refused(fine + "0 2:1e39\n", r"a:3 \(split 'train'\): the column 'x' has the value 1e\+39, which is too large")
    refused(fine + "1e39 2:1\n", r"a:3 \(split 'train'\): the column 'y' has the value 1e\+39", target=True)
    refused(fine + "0 70000:1\n", r"a:3: .*number 70,000: a row would hold 70,000 values.*\n.*65,536\n.*TruncatedSVD")
    refused(fine + "0 7:1\n", r"a:3: features is 6, and a line has a feature 7\n.*7 or more", features=6)
    refused(fine + "0 0:1\n", r"a has a feature 0\n", zero_based=False)
    refused("1 qid:1 1:2\n0 1:3\n", r"a:2: .*some lines have qid")
    refused("0 1:2\n1 qid:1 1:3\n1 1:2\n", r"a:2: .*some lines have qid")
    refused("# nothing\n\n", "a holds no rows")
    refused(fine, "holds the same as path=", test_path=tmp_path / "a")
    (tmp_path / "b").write_text("7 1:3\n")
    refused(fine, r"b:1: the label is 7, which is none of the 1 classes.*\n.*allowed: 1", test_path=tmp_path / "b")
    (tmp_path / "b").write_text("1 qid:2 1:3\n")
    refused(fine, r"only one of .* has qid", test_path=tmp_path / "b")
    with gzip.open(tmp_path / "c.gz", "wb") as file:
        file.write(RNG.bytes(9000))
    (tmp_path / "c.gz").write_bytes((tmp_path / "c.gz").read_bytes()[:5000])
    refused(fine, "c.gz is a damaged gzip file", path=tmp_path / "c.gz")


@pytest.mark.parametrize("ways", [{}, {"split_group": "qid"}])
def test_features_and_targets_on_one_scale(tmp_path: Path, ways: dict[str, str]) -> None:
    x, y = X[:400] * np.logspace(-3, 5, 9), 1e5 + 300 * X[:400].sum(1)
    dump_svmlight_file(x, y, str(tmp_path / "a"), zero_based=False, query_id=np.arange(400) // 8)
    options = {"path": tmp_path / "a", "target": True, "scale": "standard", "test_fraction": 0.2, **ways}
    manifest = prepare_dataset("svmlight", tmp_path / "d", options)
    train, test = rows(tmp_path / "d"), rows(tmp_path / "d", "test")
    np.testing.assert_allclose([train["x"].mean(0), train["x"].std(0)], [[0] * 9, [1] * 9], atol=1e-5)
    assert abs(train["y"].mean()) < 1e-5 and abs(train["y"].std() - 1) < 1e-5
    assert abs(test["x"].mean(0)).max() > 0.01  # nothing is fitted to them
    record = manifest.preparation
    assert record["y"]["kind"] == "number" and record["x"]["kind"] == "scaled"
    back = {name: np.concatenate([train[name], test[name]]) for name in ("x", "y")}
    for name, raw in (("x", x), ("y", y)):
        scale = record[name]["scale"]
        found = np.sort(back[name] * np.array(scale["divide"]) + scale["shift"], axis=0)
        np.testing.assert_allclose(found, np.sort(raw, axis=0), rtol=1e-4, atol=1e-4 * raw.std(0).max())
    with pytest.raises(InputError, match="has the value nan"):
        (tmp_path / "b").write_text("1 1:2\n0 1:nan\n1 1:3\n")
        prepare_dataset("svmlight", tmp_path / "e", {"path": tmp_path / "b", "scale": "standard", "test_fraction": 0})
