"""Every source and every way to hold rows out: it does it, or refuses by name; and the guide's table says which."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distdl.data.manifest import Manifest
from distdl.data.prepare import prepare_dataset, source_module, source_names
from distdl.data.read import Dataset
from distdl.errors import InputError
from tests.conftest import REPOSITORY
from tests.data.raw_files import RAW, WAYS, text_lines

COLUMNS = {
    "svmlight": {"split_group": "qid", "split_time": "qid"},
    "images": {"split_group": "folder"},
    "sound": {"split_group": "folder"},
}
"""Of sources that name the columns of a split themselves."""
VALIDATION = {
    "validation_fraction": 0.2,
    "validation_values": 20,
    "validation_pictures": 2,
    "validation_takes": 2,
    "validation": True,
    "validation_rows": 3,
}


def told() -> dict[str, tuple[str, set[str]]]:
    """Source -> the option for a validation split ('': none) and its other ways, as the guide has them."""
    text = (REPOSITORY / "docs" / "own_data.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"\| source \| a validation split \|.*?\n\n", text, re.DOTALL)
    found = {}
    for row in table.strip().splitlines()[2:]:
        sources, validation, ways = (re.findall(r"`(\w+)", cell) for cell in row.strip("|").split("|"))
        assert len(validation) < 2, row
        found |= {name: (validation[0] if validation else "", set(ways)) for name in sources}
    return found


def made(source: str, folder: Path, options: dict[str, Any]) -> Manifest:
    options = {"test_fraction": 0.2, **options} if "test_fraction" in known(source) else options
    return prepare_dataset(source, folder / "made", options, overwrite=True)


def known(source: str) -> set[str]:
    return {field.name for field in dataclasses.fields(source_module(source).Options)}


def test_the_table_has_every_source() -> None:
    assert sorted(told()) == source_names() == sorted(RAW)


@pytest.mark.parametrize("source", sorted(RAW))
def test_a_validation_split_is_made_or_there_is_no_such_option(tmp_path: Path, source: str) -> None:
    option, _ = told()[source]
    assert {name for name in known(source) if name.startswith("validation")} == ({option} if option else set())
    options = RAW[source](tmp_path)
    before = {name: split.rows for name, split in made(source, tmp_path, options).splits.items()}
    assert "validation" not in before
    if not option:
        return
    after = {
        name: split.rows
        for name, split in made(source, tmp_path, {**options, option: VALIDATION[option]}).splits.items()
    }
    assert after["validation"] > 0 and after["train"] > 0
    if option == "validation_fraction" and source not in ("sentence_pairs", "digit_strings", "stdlib"):
        assert after["test"] == before["test"], "it takes from the training rows"
        assert sum(after.values()) == sum(before.values()) and after["validation"] == pytest.approx(
            0.2 * sum(before.values()), rel=0.8
        )


@pytest.mark.parametrize("source", sorted(RAW))
def test_other_ways_are_gone_or_are_refused_by_name(tmp_path: Path, source: str) -> None:
    """Never ignored in silence."""
    options, (_, ways) = RAW[source](tmp_path), told()[source]
    for way, value in {**WAYS, **COLUMNS.get(source, {})}.items():
        asked = {**(text_lines(tmp_path) if source == "text" else options), way: value}
        if way not in ways:
            with pytest.raises(InputError, match=way):
                made(source, tmp_path, asked)
            continue
        manifest = made(source, tmp_path, asked)
        record = manifest.info["split"]
        by = {"stratify": "label", "split_group": "group", "split_time": "time", "split_column": "column"}
        assert record["by"] == by[way] and manifest.splits["test"].rows > 0
        assert record["rows"].keys() == manifest.splits.keys()


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_texts_and_conversations_go_where_a_field_says(tmp_path: Path, tokenizer: str) -> None:
    """A document each row: all of a group's are in one split, the latest are tested, and a column says it."""
    from distdl.data.text.tokens import decode

    for source in ("text", "chat"):
        options = {**(text_lines(tmp_path) if source == "text" else RAW["chat"](tmp_path)), "tokenizer": tokenizer}
        options |= {"vocabulary": 300, "test_fraction": 0.2, "context": 128}
        manifest = prepare_dataset(source, tmp_path / "c", {**options, "split_column": "part"}, overwrite=True)
        counts = {split: told["documents"] for split, told in manifest.info["documents"].items()}
        assert counts == {"train": 20, "validation": 10, "test": 10}, source
        manifest = prepare_dataset(source, tmp_path / "t", {**options, "split_time": "when"}, overwrite=True)
        data = Dataset(tmp_path / "t", "test")
        texts = [decode(manifest.preparation["tokens"], row) for row in data.gather(np.arange(data.rows))["tokens"]]
        if source == "chat":
            assert [int(re.findall(r"What is (\d+)", text)[0]) for text in texts] == list(range(32, 40))
        options |= {"split_group": "who", "validation_fraction": 0.2}
        record = prepare_dataset(source, tmp_path / "g", options, overwrite=True).info["split"]
        assert record["rows"] == {"train": 24, "test": 8, "validation": 8}, "whole groups of four"


def test_a_text_without_the_field_is_refused_with_its_line(tmp_path: Path) -> None:
    options = text_lines(tmp_path)
    lines = options["path"].read_text().splitlines()
    lines[2] = lines[2].replace('"who"', '"whom"')
    options["path"].write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"texts\.jsonl:3.*'who', which says where a text belongs, is missing"):
        prepare_dataset("text", tmp_path / "d", {**options, "split_group": "who"})
    with pytest.raises(InputError, match="no column 'who', which split_group= names"):
        prepare_dataset("text", tmp_path / "d", {**RAW["text"](tmp_path), "split_group": "who"})


def test_whole_files_are_validated_too(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(40):
        (tmp_path / "in" / f"{i:02}.txt").write_text(f"This is file {i:02}. " * 20)
    options = {
        "path": tmp_path / "in",
        "tokenizer": "bpe",
        "vocabulary": 280,
        "context": 40,
        "validation_fraction": 0.2,
    }
    manifest = prepare_dataset("text", tmp_path / "d", options)
    counts = {split: told["documents"] for split, told in manifest.info["documents"].items()}
    assert manifest.info["split"]["by"] == "files" and sum(counts.values()) == 40
    assert counts["validation"] == pytest.approx(8, abs=6) and counts["test"] >= 1


def test_folders_of_splits_without_a_validation_one_give_a_part_of_training(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(40):
        path = tmp_path / "in" / ("test" if i < 8 else "train") / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), i).save(path)
    options = {"path": tmp_path / "in", "channels": 1, "validation_fraction": 0.25, "stratify": True}
    manifest = prepare_dataset("images", tmp_path / "d", options)
    assert {name: split.rows for name, split in manifest.splits.items()} == {"test": 8, "train": 24, "validation": 8}
    tested = Dataset(tmp_path / "d", "test").gather(np.arange(8))["image"]
    assert sorted(tested[:, 0, 0, 0].tolist()) == list(range(8)), "the folder is the test split, whole"
    (tmp_path / "in" / "train").rename(tmp_path / "in" / "val")
    (tmp_path / "in" / "test").rename(tmp_path / "in" / "train")
    with pytest.raises(InputError, match="are splits, so that validation_fraction and stratify say nothing"):
        prepare_dataset("images", tmp_path / "e", options)


def test_a_validation_split_of_its_own_and_a_fraction_are_two(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    rows = datasets.Dataset.from_dict({"a": list(range(20)), "y": ["no", "yes"] * 10})
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(str(tmp_path / "in"))
    for label in ({"label": "y"}, {}):
        options = {"path": tmp_path / "in", "validation_fraction": 0.2, **label}
        with pytest.raises(InputError, match="there is a validation split of its own"):
            prepare_dataset("huggingface", tmp_path / "d", options)


def test_parts_of_a_series_follow_each_other(tmp_path: Path) -> None:
    """No window reaches into a later part, and every value behind the first windows is asked for once."""
    (tmp_path / "s.txt").write_text("".join(f"{t}\n" for t in range(100)))
    options = {"path": tmp_path / "s.txt", "steps": 4, "validation_values": 12, "test_values": 8, "train_values": 80}
    manifest = prepare_dataset("series", tmp_path / "d", options)
    asked = {}
    for split, part in manifest.splits.items():
        x = Dataset(tmp_path / "d", split).gather(np.arange(part.rows))["x"][:, 1:, 0]
        asked[split] = (int(x.min()), int(x.max()), x.size)
    assert asked == {"train": (1, 76, 76), "validation": (80, 91, 12), "test": (92, 99, 8)}
    with pytest.raises(InputError, match="3 validation values, a window asks for 4"):
        prepare_dataset("series", tmp_path / "e", {**options, "validation_values": 3})
