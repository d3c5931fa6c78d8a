"""Pairs of passages: half follow each other, marks and segments where they belong, no held-out text in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError

LINES = [" ".join([f"{number:05d}"] * 7) for number in range(3000)]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("\n".join(LINES))
    return path


def pairs(path: Path, split: str = "train") -> list[tuple[str, str, int]]:
    """(A, B, label) of every row, with its marks checked."""
    data = Dataset(path, split)
    rows, found = data.gather(np.arange(data.rows)), []
    for tokens, segments, label in zip(rows["tokens"], rows["segments"], rows["label"]):
        length = int((tokens > 0).sum())
        assert tokens[0] == 1 and tokens[length - 1] == 2 and not tokens[length:].any()
        middle = 1 + int(np.flatnonzero(tokens[1:] == 2)[0])
        assert not segments[: middle + 1].any() and segments[middle + 1 : length].all() and not segments[length:].any()
        parts = [
            bytes((part - 4).astype(np.uint8)).decode() for part in (tokens[1:middle], tokens[middle + 1 : length - 1])
        ]
        assert all(parts)
        found.append((*parts, int(label)))
    return found


def test_half_of_the_pairs_follow_each_other(tmp_path: Path, book: Path) -> None:
    manifest = prepare_dataset("sentence_pairs", tmp_path / "pairs", {"path": str(book), "context": 200})
    assert manifest.info["vocabulary"] == 260 and manifest.columns["tokens"].shape == (200,)
    found = pairs(tmp_path / "pairs")
    whole, following = "\n".join(LINES), 0
    for a, b, label in found:
        assert a in whole and b in whole
        end, begin = whole.index(a) + len(a), whole.index(b)
        following += label == 0
        if label == 0:  # the same lines, one after the other, but for what was cut to fit
            assert -50 < begin - end < 200  # places within a line look alike
    assert 0.42 < following / len(found) < 0.58
    elsewhere = [abs(whole.index(b) - whole.index(a)) for a, b, label in found if label]
    assert np.median(elsewhere) > 4000
    assert np.mean([len(a) + len(b) for a, b, _ in found]) > 150  # of 197


def test_the_same_seed_gives_the_same_pairs_and_a_pass_gives_others(tmp_path: Path, book: Path) -> None:
    def made(name: str, **options: int) -> list[tuple[str, str, int]]:
        prepare_dataset("sentence_pairs", tmp_path / name, {"path": str(book), "context": 64, **options})
        return pairs(tmp_path / name)

    once = made("a")
    assert once == made("b") and once != made("c", seed=1)
    twice = made("d", passes=2)
    assert twice[: len(once)] == once and twice[len(once) :] != once and 1.8 < len(twice) / len(once) < 2.2


def test_held_out_text_is_not_trained_on(tmp_path: Path, book: Path) -> None:
    prepare_dataset("sentence_pairs", tmp_path / "pairs", {"path": str(book), "context": 160})
    held_out = {line for a, b, _ in pairs(tmp_path / "pairs", "test") for line in (a + "\n" + b).split("\n")}
    seen = "\n".join(a + "\n" + b for a, b, _ in pairs(tmp_path / "pairs"))
    whole = [line for line in held_out if line in LINES]
    assert len(whole) > 20 and not [line for line in whole if line in seen]


def test_the_standard_library_needs_no_file(tmp_path: Path) -> None:
    prepare_dataset("sentence_pairs", tmp_path / "pairs", {"context": 32, "max_bytes": 200_000})
    assert len(pairs(tmp_path / "pairs")) > 1000 and len(pairs(tmp_path / "pairs", "test")) > 50


def test_what_makes_no_pair_is_refused(tmp_path: Path, book: Path) -> None:
    for option, value in (("context", 7), ("passes", 0)):
        with pytest.raises(InputError, match=f"{option} is {value}"):
            prepare_dataset("sentence_pairs", tmp_path / "pairs", {"path": str(book), option: value})
