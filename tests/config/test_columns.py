"""A column that a family cannot take is refused before anything starts: by type, range and missing values, in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distdl.config.load import config_from_dict
from distdl.data import first_pass
from distdl.data.manifest import FILE_NAME, read_manifest
from distdl.data.read import Dataset
from distdl.data.tally import Tally
from distdl.errors import InputError
from distdl.train.survey import data_facts
from tests.families.common import Rehearsal
from tests.small import BASE, written

R = np.random.default_rng(0)
X = R.normal(size=(60, 8)).astype("f4")
LABEL = R.integers(0, 3, 60)
PICTURE = R.integers(0, 256, (60, 1, 32, 32)).astype("u1")
SMALL = R.integers(0, 256, (60, 1, 8, 8)).astype("u1")
DISC = (R.random((60, 32, 32)) > 0.5).astype("u1")
MLP = {"family": "mlp", "inputs": [8], "column": "x", "hidden": [4], "classes": 3}
UNET = {"family": "unet", "image": [1, 32, 32], "width": 4, "depth": 1, "padding": "same"}
CNN = {"family": "cnn", "image": [1, 8, 8], "classes": 3, "stages": [[4, 3, 2]], "dense": []}
TOKENS = R.integers(0, 16, (60, 9))
SPEECH = {
    "x": R.normal(size=(60, 20, 12)).astype("f4"),
    "frames": np.full(60, 20),
    "label": R.integers(0, 10, (60, 2)),
    "length": np.full(60, 2),
}
TREE = {
    "word": R.integers(0, 32, (60, 3)),
    "children": np.tile(np.array([[0, 0], [0, 0], [0, 1]]), (60, 1, 1)),
    "height": np.tile(np.array([0, 0, 1]), (60, 1)),
}


def put(array: np.ndarray, row: int, value: float) -> np.ndarray:
    """A copy with a value in a row."""
    changed = array.copy()
    changed[row].reshape(-1)[-1:] = value
    if changed.ndim == 1:
        changed[row] = value
    return changed


def config(path: str, model: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return {"name": "a", **BASE, "model": model, "data": {"path": path, "threads": 0}, **sections}


def refusal(path: str, model: dict[str, Any], **sections: Any) -> str:
    with pytest.raises(InputError) as caught:
        data_facts(config_from_dict(config(path, model, **sections)), look=True)
    return str(caught.value)


CASES: dict[str, tuple[dict[str, Any], dict[str, np.ndarray], tuple[str, ...]]] = {
    "a class too high": (
        MLP,
        {"x": X, "label": put(LABEL, 7, 5)},
        (
            "split 'train', row 7, column 'label': the class is 5",
            "0 to 2 (model.classes: 3), or -100 for no class",
            "model.classes: 6, or number them from 0",
        ),
    ),
    "a class below 0": (
        MLP,
        {"x": X, "label": put(LABEL, 4, -1)},
        ("row 4, column 'label': the class is -1", "number them from 0, and write -100 where there is none"),
    ),
    "classes in floating point": (
        MLP,
        {"x": X, "label": LABEL.astype("f4")},
        ("has float32", "prepare 'label' as int64"),
    ),
    "no class at all": (MLP, {"x": X, "label": np.full(60, -100)}, ("every value of the split is -100",)),
    "a family that needs every label": (
        {"family": "dnn_am", "bands": 12, "classes": 10},
        {**SPEECH, "label": put(np.arange(60) % 10, 3, -100)},
        ("row 3, column 'label': the class is -100", "for the family dnn_am: 0 to 9 (model.classes: 10)\n"),
    ),
    "a value to tell that is not finite": (
        {**MLP, "target": "value"},
        {"x": X, "y": put(X[:, 0], 42, np.nan)},
        ("row 42, column 'y': a value is NaN or infinite", "leave such rows out"),
    ),
    "a feature that is not finite": (
        MLP,
        {"x": put(put(X, 5, np.inf), 9, np.nan), "label": LABEL},
        ("row 5", "first of 2"),
    ),
    "a whole number that float32 has not": (
        MLP,
        {"x": put((100 * X).astype("i8"), 11, 1_000_000_001), "label": LABEL},
        ("row 11, column 'x': 1000000001 is read as float32", "whole number beyond 16,777,216"),
    ),
    "pixels of 0 to 255 in floating point": (
        CNN,
        {"image": SMALL.astype("f4"), "label": LABEL},
        ("column 'image': the pixel is 255", "-20 to 20, or bytes (uint8), which are divided by 255", "store uint8"),
    ),
    "the same as int64": (CNN, {"image": SMALL.astype("i8"), "label": LABEL}, ("the pixel is 255", "store uint8")),
    "the same as uint16": (CNN, {"image": 200 * SMALL.astype("u2"), "label": LABEL}, ("the pixel is 51000",)),
    "bytes of 0 and 1": (
        CNN,
        {"image": SMALL // 128, "label": LABEL},
        ("0 and 1 only", "store float32, or bytes of 0 and 255"),
    ),
    "probabilities below 0": (
        {"family": "rbm", "inputs": [8], "column": "x", "hidden": 4},
        {"x": X},
        ("column 'x': the number is -", "0 to 1, or bytes"),
    ),
    "cross entropy of values above 1": (
        {"family": "autoencoder", "inputs": [8], "column": "x", "hidden": [], "code": 2},
        {"x": abs(X)},
        ("column 'x': the number is", "0 to 1, or bytes"),
    ),
    "masks of 0 and 255, one class": (
        {**UNET, "classes": 1, "border_weight": 0.0},
        {"image": PICTURE, "mask": DISC * np.uint8(255)},
        ("column 'mask': the class of a pixel is 255", "0 to 1, or -100", "fix: write 0 and 1 (`mask > 0`"),
    ),
    "masks of 0 and 255, two classes": (
        {**UNET, "classes": 2, "border_weight": 0.0},
        {"image": PICTURE, "mask": DISC * np.uint8(255)},
        ("the class of a pixel is 255", "0 to 1 (model.classes: 2), or -100"),
    ),
    "a token beyond the vocabulary": (
        {"family": "gpt", "vocabulary": 16, "context": 8, "layers": 1, "heads": 1, "width": 8},
        {"tokens": put(TOKENS, 8, 16)},
        ("row 8, column 'tokens': the token is 16", "0 to 15 (model.vocabulary: 16)", "model.vocabulary: 17"),
    ),
    "a source token beyond its vocabulary": (
        {"family": "transformer", "vocabulary": 40, "source_vocabulary": 8, "source_length": 9, "target_length": 8},
        {"source": TOKENS, "target": TOKENS},
        ("column 'source'", "0 to 7 (model.source_vocabulary: 8)"),
    ),
    "a token of a Hugging Face model": (
        {
            "family": "huggingface",
            "context": 8,
            "overrides": {"vocab_size": 10, "n_embd": 8, "n_layer": 1, "n_head": 1},
        },
        {"tokens": TOKENS},
        ("the token is 15", "0 to 9 (model.overrides.vocab_size: 10)"),
    ),
    "one-hot symbols": (
        {"family": "gru", "task": "tokens", "inputs": 10, "steps": 8},
        {"tokens": TOKENS},
        ("the token is 15", "model.inputs: 16"),
    ),
    "a third segment": (
        {"family": "bert", "task": "mask", "vocabulary": 20, "context": 9, "mask": 3, "marks": [1, 2]},
        {"tokens": TOKENS, "segments": put(0 * TOKENS, 6, 2)},
        ("row 6, column 'segments'", "is 2", "0 to 1"),
    ),
    "a word of a caption": (
        {"family": "captioner", "image": [1, 8, 8], "vocabulary": 12, "length": 8},
        {"image": SMALL, "caption": TOKENS},
        ("column 'caption': the word is 15", "0 to 11"),
    ),
    "a box outside the picture": (
        {
            "family": "object_masks",
            "image": [1, 24, 24],
            "objects": 1,
            "grid": 8,
            "sides": [2, 5],
            "kernel": 5,
            "stride": 1,
        },
        {"image": PICTURE[:, :, :24, :24].copy(), "boxes": put(np.full((60, 1, 4), 12.0), 9, 40)},
        ("row 9, column 'boxes': the side of a box in pixels is 40", "0 to 24"),
    ),
    "a label that is CTC's blank": (
        {"family": "deep_speech", "inputs": 12, "classes": 10},
        {**SPEECH, "label": put(SPEECH["label"], 2, 10)},
        ("row 2, column 'label': the label (the blank is none of them) is 10", "0 to 9"),
    ),
    "more labels than the row has": (
        {"family": "deep_speech", "inputs": 12, "classes": 10},
        {**SPEECH, "length": put(SPEECH["length"], 5, 3), "frames": put(SPEECH["frames"], 1, 21)},
        (
            "row 5, column 'length'",
            "0 to 2, the places of 'label'",
            "row 1, column 'frames'",
            "1 to 20, the places of 'x'",
        ),
    ),
    "a word id": (
        {"family": "word2vec", "vocabulary": 12, "context": 9, "window": 2},
        {"tokens": TOKENS},
        ("the word is 15", "0 to 11 (model.vocabulary: 12)"),
    ),
    "a word of a tree": (
        {"family": "recnn", "vocabulary": 20, "classes": 3},
        {**TREE, "label": np.full((60, 3), 2)},
        ("column 'word': the word is 31", "0 to 19 (model.vocabulary: 20)"),
    ),
    "a label of a tree": (
        {"family": "recnn", "vocabulary": 32, "classes": 3},
        {
            **TREE,
            "label": put(np.full((60, 3), 2, "u1"), 3, 255) + put(np.zeros((60, 3), "u1"), 9, 3),
        },  # 255 is a filler
        ("row 9, column 'label': the label of a node is 5", "0 to 2 (model.classes: 3)"),
    ),
    "answers of 1 and -1": (
        {"family": "mtdnn", "inputs": 8, "packed": False, "tasks": 2},
        {"x": X, "y": np.where(X[:, :2] > 0, 1, -1)},
        ("without any 0", "would count as missing", "write 0 for a negative answer"),
    ),
    "a colour above 1": (
        {"family": "nerf"},
        {**dict.fromkeys(("origin", "direction"), X[:, :3]), "rgb": put(abs(np.tanh(X[:, :3])), 8, 2)},
        ("row 8, column 'rgb'", "0 to 1"),
    ),
    "an action that is none": (
        {"family": "clv_agent"},
        {"state": abs(X[:, :3]), "after": abs(X[:, :3]), "reward": X[:, 0], "action": put(LABEL, 6, 3)},
        ("row 6, column 'action': the action is 3", "0 to 2 (model.actions: 3)"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_family_cannot_take_is_told_with_its_place_and_its_cure(case: str, tmp_path: Path) -> None:
    model, arrays, said = CASES[case]
    text = refusal(written(tmp_path / "set", arrays), model)
    assert [words for words in said if words not in text] == [], text


def test_everything_that_is_wrong_is_told_at_once_of_both_splits(tmp_path: Path) -> None:
    bad = {"x": put(X, 1, np.nan), "label": put(LABEL, 2, 9)}
    text = refusal(written(tmp_path / "set", {"x": X, "label": put(LABEL, 3, -7)}, bad), MLP)
    for words in ("split 'train', row 3", "split 'test', row 1", "split 'test', row 2"):
        assert words in text
    only_train = {**config(str(tmp_path / "set"), MLP)["data"], "eval_split": None}
    assert "split 'test'" not in refusal(str(tmp_path / "set"), MLP, data=only_train)


def test_the_command_ends_with_2_before_a_worker_starts(tmp_path: Path, command: Any) -> None:
    path = written(tmp_path / "set", {"x": X, "label": put(LABEL, 7, 5)})
    values = config(path, MLP, runs=str(tmp_path / "runs"))
    (tmp_path / "a.yaml").write_text(json.dumps(values))  # JSON is YAML
    for verb in (["plan"], ["train"], ["doctor", "--config"]):
        done = command(*verb, tmp_path / "a.yaml")
        assert done.code == 2 and "row 7, column 'label': the class is 5" in done.stderr, (verb, done)
    assert not (tmp_path / "runs").exists()


def test_a_data_set_of_an_older_version_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTDL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(first_pass, "LONG_S", -1.0)
    path = written(tmp_path / "set", {"x": X, "label": put(LABEL, 7, 5)})
    told, new = refusal(path, MLP), read_manifest(path)
    manifest = json.loads((tmp_path / "set" / FILE_NAME).read_text())
    del manifest["values"]
    (tmp_path / "set" / FILE_NAME).write_text(json.dumps(manifest))
    old = read_manifest(path)
    assert old.fingerprint == new.fingerprint and not old.values
    assert first_pass.values_of(path, old, "train") == new.values["train"]
    said = capsys.readouterr().err
    assert "looking at the values of" in said and "60 rows" in said
    assert refusal(path, MLP) == told
    monkeypatch.setattr(first_pass, "_passed", lambda *_: pytest.fail("it was looked at already"))
    assert refusal(path, MLP) == told
    assert data_facts(config_from_dict(config(path, {**MLP, "classes": 6})), look=False)  # nothing is known: no pass


def test_values_that_were_changed_by_hand_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "set", {"x": X, "label": put(LABEL, 7, 5)})
    manifest = json.loads((tmp_path / "set" / FILE_NAME).read_text())
    manifest["values"]["splits"]["train"]["label"]["high"] = 2
    (tmp_path / "set" / FILE_NAME).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="edited by hand"):
        read_manifest(path)


def test_the_tally_is_that_of_numpy_whatever_the_batches() -> None:
    from distdl.data.manifest import Column

    for dtype in ("uint8", "int8", "int16", "int64", "uint16", "float16", "float32", "float64"):
        values = np.random.default_rng(1).integers(0, 7, (40, 2, 3)).astype(dtype)
        odd = {"i": (-1, -100, -3), "u": (255,), "f": (np.nan, np.inf, -2.5)}[np.dtype(dtype).kind]
        for i, value in enumerate(odd):
            values[(17, 23, 31)[i], 1, i] = value
        values[5, 0, 0] = values[6, 0, 0] = 9
        for cut in (1, 7, 40):
            gathered = Tally({"x": Column(dtype, (2, 3))})
            for start in range(0, 40, cut):
                gathered.add({"x": values[start : start + cut]})
            found = gathered.values()["x"]
            assert (found.high, found.high_row) == (9, 5)
            kind = np.dtype(dtype).kind
            if kind == "i":
                assert (found.minus_1, found.minus_100, found.low, found.low_row) == ((1, 17), (1, 23), -3, 31)
            elif kind == "f":
                assert (found.not_finite, found.low, found.low_row) == ((2, 17), -2.5, 31)
            else:
                assert found.plus_255 == (1, 17)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "int32", "int64", "float16", "float64"])
def test_features_of_every_type_teach_what_float32_does(dtype: str, tmp_path: Path) -> None:
    x = R.integers(0 if dtype.startswith("u") else -3, 4, (60, 8))

    def run(name: str, array: np.ndarray) -> Rehearsal:
        values = config(written(tmp_path / name, {"x": array, "label": LABEL}), MLP)
        values["data"]["shuffle"] = "none"  # their fingerprints differ, and with them the order
        one = Rehearsal(values)
        one.train(5)
        return one

    other, plain = run("other", x.astype(dtype)), run("plain", x.astype("f4"))
    assert other.losses == plain.losses and other.evaluate() == plain.evaluate()
    assert any(f"'x' holds {dtype} and is read as float32" in note for note in other.plan.notes)
    assert plain.plan.notes == ()


def test_a_family_of_ones_own_that_says_only_shapes_is_asked_for_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        '''"""A line (Gauss 1809)."""
from dataclasses import dataclass
import torch
from distdl.learner import Column, Learner

@dataclass(frozen=True)
class Config:
    inputs: int = 8
    """Numbers of a sample."""

class Line(Learner):
    def __init__(self, config):
        super().__init__()
        self.map = torch.nn.Linear(config.inputs, 1)

    @staticmethod
    def columns(config):
        return {"x": Column((config.inputs,)), "label": Column(())}

    def loss(self, batch, step):
        return (self.map(batch["x"])[:, 0] - batch["label"]).square().mean(), {}
'''
    )
    path = written(tmp_path / "set", {"x": X, "label": put(LABEL, 7, -100)})
    run = Rehearsal(config(path, {"family": str(tmp_path / "own.py")}))
    run.train(2)
    assert run.plan.data.unlabelled == () and Dataset(path, "train").gather([7])["label"] == [-100]
