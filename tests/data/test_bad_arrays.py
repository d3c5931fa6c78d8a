"""Bad rows of arrays: the others make the data set, whatever file they lie in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distdl.data.prepare import prepare_dataset
from tests.data.test_bad_rows import ASIDE, listed
from tests.data.test_prepare_arrays import hdf5, mat5, npy, npz

N = 200
RNG = np.random.default_rng(0)
X, Y = RNG.random((N, 2, 3)), RNG.integers(0, 3, N)
WORDS = np.array(["10", "2", "9"])[Y]
KINDS = {"npz": npz, "npy": npy, "hdf5": hdf5, "mat": mat5}


def prepare(kind: str, tmp_path: Path, name: str, options: dict[str, Any], **arrays: np.ndarray) -> Any:
    path = KINDS[kind](tmp_path / name, **arrays)
    source = "npz" if kind == "npy" else kind
    return prepare_dataset(source, tmp_path / f"of-{name}", {"path": str(path), "train": "x,y", **options})


def rows(folder: Path) -> dict[int, str]:
    return {record["row"]: record["reason"] for record in listed(folder)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", [False, True])
def test_bad_rows_of_arrays(tmp_path, kind, words):
    good = np.arange(N + 4)
    bad = np.array([3, 50, 51, 203])
    good = np.setdiff1d(good, bad)
    x, y = np.zeros((N + 4, 2, 3)), np.zeros(N + 4, WORDS.dtype if words else np.float64)
    x[good], y[good], x[bad], y[bad] = X, WORDS if words else Y, 0.5, "2" if words else 1
    x[3, 0, 0], x[50, 1, 2], x[203] = np.nan, np.inf, 1e99
    y[51] = "" if words else np.nan
    if kind == "mat" and words:
        x[51, 0, 0], y[51] = np.nan, "2"  # MATLAB's cells have no empty text
    clean = prepare(kind, tmp_path, "clean", {}, x=X, y=WORDS if words else Y)
    found = prepare(kind, tmp_path, "dirty", ASIDE, x=x, y=y)
    assert found.fingerprint == clean.fingerprint and found.info["split"] == clean.info["split"]
    number = "no finite number"
    label = "no label" if words and kind != "mat" else number
    assert rows(tmp_path / "of-dirty") == {3: number, 50: number, 51: label, 203: number}
    assert found.info["bad_rows"]["of"] == N + 4 and found.columns["label"].dtype == "int64"


def test_classes_that_nobody_has_named_and_classes_of_the_test_rows(tmp_path):
    arrays = {"x": X, "y": Y + 1, "names": np.array(["a", "b", "c"]), "tx": X[:50], "ty": Y[:50] + 1}
    options = {"test": "tx,ty", "classes": "names", "first_class": 1}
    clean = prepare("npz", tmp_path, "clean", options, **arrays)
    more = {"y": np.insert(arrays["y"], 7, 4), "x": np.insert(X, 7, 0.5, axis=0)}
    more |= {"ty": np.insert(arrays["ty"], 9, 0), "tx": np.insert(X[:50], 9, 0.5, axis=0)}
    found = prepare("npz", tmp_path, "dirty", {**options, **ASIDE}, **{**arrays, **more})
    assert found.fingerprint == clean.fingerprint
    assert rows(tmp_path / "of-dirty") == {7: "no class", 9: "no class"}


def test_words_of_the_test_rows_that_training_does_not_have(tmp_path):
    arrays = {"x": X, "y": WORDS, "tx": X[:50], "ty": WORDS[:50]}
    clean = prepare("npz", tmp_path, "clean", {"test": "tx,ty"}, **arrays)
    more = {"ty": np.insert(WORDS[:50].astype("U5"), 9, "other"), "tx": np.insert(X[:50], 9, 0.5, axis=0)}
    found = prepare("npz", tmp_path, "dirty", {"test": "tx,ty", **ASIDE}, **{**arrays, **more})
    assert found.fingerprint == clean.fingerprint and rows(tmp_path / "of-dirty") == {9: "no class"}


def test_missing_answers_are_no_bad_rows(tmp_path):
    y = RNG.integers(0, 2, (N, 4)).astype(np.float32)
    y[::3, 1] = np.nan
    options = {"columns": "x,tasks"}
    clean = prepare("npz", tmp_path, "clean", options, x=X, y=y)
    bad = np.insert(y, 5, np.inf, axis=0)
    found = prepare("npz", tmp_path, "dirty", {**options, **ASIDE}, x=np.insert(X, 5, 0.0, axis=0), y=bad)
    assert found.fingerprint == clean.fingerprint and rows(tmp_path / "of-dirty") == {5: "no finite number"}


def test_an_unsigned_number_that_would_become_negative(tmp_path):
    y = Y.astype(np.uint64)
    clean = prepare("npz", tmp_path, "clean", {}, x=X, y=y)
    more = {"x": np.insert(X, 5, 0.5, axis=0), "y": np.insert(y, 5, np.uint64(1 << 63))}
    found = prepare("npz", tmp_path, "dirty", ASIDE, **more)
    assert found.fingerprint == clean.fingerprint and rows(tmp_path / "of-dirty") == {5: "too large"}
