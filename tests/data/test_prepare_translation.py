"""Sentences in two languages: their words, vocabularies and marks; numbers in digits and in words."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distdl.data.corpora.translation import in_words
from distdl.data.manifest import Manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError

GERMAN = ["Ein Hund läuft.", "Ein Kind, ein Hund!", "Zwei Hunde", "Ein Hund"]
ENGLISH = ["A dog runs.", "A child, a dog!", "Two dogs", "A dog"]


def sentences(path: Path, manifest: Manifest, split: str, side: str) -> list[str]:
    data, words = Dataset(path, split), manifest.info[f"{side}_words"]
    return [" ".join(words[n] for n in row) for row in data.gather(np.arange(data.rows))[side]]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "train.de").write_text("\n".join(GERMAN) + "\n", encoding="utf-8")
    (tmp_path / "train.en").write_bytes(("\n".join(ENGLISH) + "\n").encode())
    (tmp_path / "val.de.gz").write_bytes(gzip.compress(b"Ein Hund und ein Kind\n"))
    (tmp_path / "val.en").write_text("A dog and a child\n")
    names = {"path": "train.de", "target_path": "train.en", "test_path": "val.de.gz", "test_target_path": "val.en"}
    return {option: str(tmp_path / name) for option, name in names.items()}


def test_words_marks_and_what_is_unknown(tmp_path: Path, files: dict[str, Any]) -> None:
    options = files | {"source_length": 6, "target_length": 4, "source_vocabulary": 8}
    manifest = prepare_dataset("translation", tmp_path / "data", options)
    assert manifest.info["source_words"] == ["<pad>", "<unknown>", "<begin>", "<end>", "ein", "hund", "!", ","]
    assert manifest.columns["source"].shape == (6,) and manifest.columns["target"].shape == (5,)
    assert sentences(tmp_path / "data", manifest, "train", "source") == [
        "ein hund <unknown> <unknown> <end> <pad>",
        "ein <unknown> , ein hund <end>",  # the ! did not fit
        "<unknown> <unknown> <end> <pad> <pad> <pad>",
        "ein hund <end> <pad> <pad> <pad>",
    ]
    assert sentences(tmp_path / "data", manifest, "train", "target") == [
        "<begin> a dog runs <end>",
        "<begin> a child , <end>",
        "<begin> two dogs <end> <pad>",
        "<begin> a dog <end> <pad>",
    ]
    assert sentences(tmp_path / "data", manifest, "test", "target") == ["<begin> a dog <unknown> <end>"]


def test_numbers_need_no_file(tmp_path: Path) -> None:
    manifest = prepare_dataset("translation", tmp_path / "data", {"rows": 300, "source_length": 8, "target_length": 12})
    digits = [s for split in ("train", "test") for s in sentences(tmp_path / "data", manifest, split, "source")]
    words = [s for split in ("train", "test") for s in sentences(tmp_path / "data", manifest, split, "target")]
    assert len(digits) == 300 and Dataset(tmp_path / "data", "test").rows in range(15, 50)
    for source, target in zip(digits, words):
        number = int(source.split(" <end>")[0].replace(" ", ""))
        assert target.split(" <end>")[0] == "<begin> " + " ".join(in_words(number))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (80, "eighty"),
        (342, "three hundred forty two"),
        (1000, "one thousand"),
        (700_019, "seven hundred thousand nineteen"),
        (999_999, "nine hundred ninety nine thousand nine hundred ninety nine"),
    ],
)
def test_numbers_in_words(number: int, words: str) -> None:
    assert " ".join(in_words(number)) == words


def test_what_is_not_parallel_is_refused(tmp_path: Path, files: dict[str, Any]) -> None:
    for change, said in (
        ({"target_path": files["test_target_path"]}, "has 4 lines and .* has 1"),
        ({"target_path": ""}, "no translations of it"),
        ({"target_length": 1}, "target_length is 1"),
        ({"source_vocabulary": 4}, "source_vocabulary is 4"),
        ({"path": str(tmp_path / "gone")}, "there is no file"),
    ):
        with pytest.raises(InputError, match=said):
            prepare_dataset("translation", tmp_path / "data", files | change)
    (tmp_path / "train.en").write_bytes(b"\xff\xfe\n" * 4)
    with pytest.raises(InputError, match="is not UTF-8"):
        prepare_dataset("translation", tmp_path / "data", files)
