"""The synthetic sequences: each against the definition of its task."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from distdl.data.generators.synthetic import TOMITA, Options, prepare


def made(task: str, **options: int) -> dict[str, dict[str, np.ndarray]]:
    """Split -> columns."""
    return dict(prepare(Options(task, **options)).chunks)


def test_patterns() -> None:
    rows = made("patterns", rows=400, length=50)
    assert rows["train"]["x"].shape == (400, 50) and rows["train"]["x"].dtype == np.float32
    assert set(np.unique(rows["train"]["x"])) == {-1, 1} and abs(rows["train"]["x"].mean()) < 0.03
    assert (rows["train"]["x"] == rows["test"]["x"]).all()
    assert (made("patterns", rows=400, length=50, seed=1)["train"]["x"] != rows["train"]["x"]).any()


def test_delayed_xor() -> None:
    rows = made("delayed_xor", rows=30, test_rows=20, length=10)
    assert {name: part["x"].shape for name, part in rows.items()} == {"train": (30, 11, 2), "test": (20, 11, 2)}
    for part in rows.values():
        for x, y in zip(part["x"], part["y"]):
            assert [int(a != b) for a, b in x[:10]] == y[:, 0].tolist()
    assert 0.4 < rows["train"]["y"].mean() < 0.6


def test_mackey_glass() -> None:
    rows = made("mackey_glass", rows=20, test_rows=5, length=100)
    assert rows["train"]["x"].shape == (20, 101, 1) and rows["test"]["x"].shape == (5, 101, 1)
    both = np.concatenate([rows["train"]["x"], rows["test"]["x"]])[..., 0].astype(np.float64)
    assert (both[1:, 0] == both[:-1, -1]).all()  # the windows follow each other
    x = np.concatenate([both[0, :1], both[:, 1:].reshape(-1)]) + 1  # (2501,)
    slope = (x[18:] - x[16:-2]) / 2  # at 17, 18, ...: x(t + 1) - x(t - 1)
    expected = 0.2 * x[:-18] / (1 + x[:-18] ** 10) - 0.1 * x[17:-1]
    assert np.corrcoef(slope, expected)[0, 1] > 0.99
    assert 0.2 < x.min() < 0.6 and 1.2 < x.max() < 1.4  # the attractor's extent
    assert (made("mackey_glass", rows=20, test_rows=5, length=100, seed=1)["train"]["x"] != rows["train"]["x"]).any()


def accepted(grammar: int, string: str) -> bool:
    """Tomita's grammars as they are said in words."""
    if grammar == 3:  # no odd run of 0s after an odd run of 1s
        runs = [(symbol, len(list(run))) for symbol, run in itertools.groupby(string)]
        return not any(a == "1" and m % 2 and n % 2 for (a, m), (_, n) in itertools.pairwise(runs))
    if grammar == 4:
        return "000" not in string
    if grammar == 5:
        return string.count("0") % 2 == 0 and string.count("1") % 2 == 0
    if grammar == 6:
        return (string.count("1") - string.count("0")) % 3 == 0
    return bool(re.fullmatch({1: "1*", 2: "(10)*", 7: "0*1*0*1*"}[grammar], string))


@pytest.mark.parametrize("grammar", sorted(TOMITA))
def test_tomita(grammar: int) -> None:
    rows = made(f"tomita{grammar}", length=10, test_rows=300)
    strings: dict[str, list[str]] = {"train": [], "test": []}
    for split, part in rows.items():
        assert part["tokens"].shape[1] == 30 and part["tokens"].dtype == np.uint8
        for tokens, length, label in zip(part["tokens"], part["length"], part["label"]):
            string = "".join(map(str, tokens[:length]))
            assert set(string) <= {"0", "1"} and (tokens[length:] == 2).all()
            assert accepted(grammar, string) == label, string
            strings[split].append(string)
    assert len(strings["train"]) == len(set(strings["train"])) == 2**11 - 1 and "" in strings["train"]
    lengths = {len(string) for string in strings["test"]}
    assert lengths <= set(range(11, 31)) and {12, 30} <= lengths
    assert rows["test"]["label"].mean() == 0.5
