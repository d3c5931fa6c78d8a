"""Bracketed trees: what is written is what was read, made binary; held-out trees, wrong brackets, the small grammar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distdl.data.corpora.trees import NONE, leaves, parse
from distdl.data.manifest import read_manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError

TWO = "(3 (2 (2 The) (3 good)) (2 plot))\n(1 (2 a)\n   (0 mess))\n"


def rows(path: Path, split: str = "train") -> dict[str, Any]:
    data = Dataset(path, split)
    return data.gather(np.arange(data.rows))


def test_a_tree_is_numbered_from_its_words_up(tmp_path: Path) -> None:
    (tmp_path / "raw").write_text(TWO)
    options = {"path": str(tmp_path / "raw"), "test_path": str(tmp_path / "raw")}
    manifest = prepare_dataset("trees", tmp_path / "data", options)
    words, labels = manifest.info["words"], manifest.info["labels"]
    assert words == ["<unknown>", "a", "good", "mess", "plot", "the"] and labels == ["0", "1", "2", "3"]
    found = rows(tmp_path / "data")
    assert found["word"].tolist() == [[5, 2, 4, 0, 0], [1, 3, 0, 0, 0]]
    assert found["children"][0].tolist() == [[0, 0], [0, 0], [0, 0], [0, 1], [3, 2]]
    assert found["height"].tolist() == [[0, 0, 0, 1, 2], [0, 0, 1, NONE, NONE]]
    assert found["label"].tolist() == [[2, 3, 2, 2, 3], [2, 0, 1, NONE, NONE]]
    assert all((found[name] == rows(tmp_path / "data", "test")[name]).all() for name in found)


def test_treebanks_become_binary() -> None:
    """The way of the Penn Treebank: an outer bracket, functions, traces, one child and four."""
    text = (
        "( (S (NP-SBJ-1 (NNS Dogs)) (VP (VBD ran) (NP (-NONE- *T*-1)) (PP (IN in)) (ADVP (RB on)) (. .)) (-RRB- b)) )"
    )
    below = ("@VP", (("PP+IN", "in"), ("@VP", (("ADVP+RB", "on"), (".", ".")))))
    verbs = ("VP", (("VBD", "ran"), below))
    (tree,) = parse(text, "x", lower=True)
    assert tree == ("S", (("NP+NNS", "dogs"), ("@S", (verbs, ("-RRB-", "b")))))
    assert leaves(tree) == ["dogs", "ran", "in", "on", ".", "b"]
    assert list(parse("(S (-NONE- *))", "x", lower=True)) == []
    assert leaves(next(parse("(2 (2 8\xa01\\/2) (2 X))", "x", lower=False))) == ["8\xa01\\/2", "X"]


def test_long_trees_are_left_out_and_rare_words_become_unknown(tmp_path: Path) -> None:
    (tmp_path / "raw").write_text(TWO + "(2 (2 the) (3 good))")
    options = {"path": str(tmp_path / "raw"), "longest": 2, "vocabulary": 3, "test_fraction": 0}
    assert prepare_dataset("trees", tmp_path / "data", options).info["words"] == ["<unknown>", "a", "good"]
    assert rows(tmp_path / "data")["word"].tolist() == [[1, 0, 0], [0, 2, 0]]


def test_corners_are_the_labels_of_phrases_that_begin_with_them(tmp_path: Path) -> None:
    (tmp_path / "raw").write_text(TWO + "(2 (2 the) (3 good))")
    options = {"path": str(tmp_path / "raw"), "corners": 2, "test_fraction": 0}
    labels = prepare_dataset("trees", tmp_path / "data", options).info["labels"]
    assert labels == ["good", "other", "the"]  # of the other words, all seen once, `a` comes later than two seen twice
    found = rows(tmp_path / "data")["label"]
    assert [[labels[n] for n in row if n != NONE] for row in found] == [
        ["the", "good", "other", "the", "the"],
        ["other", "other", "other"],
        ["the", "good", "the"],
    ]


def test_the_small_grammar(tmp_path: Path) -> None:
    for name, options in (("a", {}), ("b", {}), ("c", {"seed": 1}), ("d", {"labels": "category"})):
        prepare_dataset("trees", tmp_path / name, options)
    prints = [read_manifest(str(tmp_path / name)).fingerprint for name in "abcd"]
    assert prints[0] == prints[1] and len(set(prints)) == 3
    found, labels = rows(tmp_path / "a"), read_manifest(str(tmp_path / "a")).info["labels"]
    roots = found["label"][np.arange(len(found["label"])), (found["height"] != NONE).sum(1) - 1]
    assert labels == list("01234") and (np.bincount(roots, minlength=5) > 0.03 * len(roots)).all()
    assert "VP" in read_manifest(str(tmp_path / "d")).info["labels"]
    assert Dataset(tmp_path / "a", "test").rows > 100


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(2 (2 a) (3 b))\n(2 a))", r"raw:2: '\)' is not inside a node"),
        ("a (2 b)", "raw:1: 'a' is not inside a node"),
        ("(2 (2 a)", "1 bracket not closed"),
        ("(2 a b)", "raw:1: a node holds the word 'a' and something else"),
        ("(2 ())", r"'\)' is not inside"),
        ("\n", "holds no tree"),
        ("\xff", "not UTF-8"),
    ],
)
def test_wrong_brackets_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "raw").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=said):
        prepare_dataset("trees", tmp_path / "data", {"path": str(tmp_path / "raw")})


def test_unknown_labels_of_the_grammar_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="labels is 'syntax'"):
        prepare_dataset("trees", tmp_path / "data", {"labels": "syntax"})
