"""Models of transformers that `distdl export --to huggingface` writes have the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distdl.errors import InputError
from distdl.export import check, huggingface
from tests.export.common import asked

SIZES = {"layers": 2, "heads": 2, "width": 16}
LLAMA = {"positions": "rotary", "norm": "rms", "feed_forward": "swiglu", "biases": "none", "key_value_heads": 2}
CASES: dict[str, dict[str, Any]] = {
    "gpt": {"family": "gpt", "vocabulary": 50, "context": 24, **SIZES},
    "gpt, llama": {"family": "gpt", "vocabulary": 50, "context": 24, **SIZES, **LLAMA, "heads": 4, "tied": False},
    "bert": {
        "family": "bert",
        "task": "pretrain",
        "vocabulary": 50,
        "context": 12,
        **SIZES,
        "mask": 3,
        "marks": [1, 2],
    },
    "bert, classes": {"family": "bert", "task": "classify", "vocabulary": 50, "context": 12, **SIZES, "classes": 3}
    | {"mask": 3, "marks": [1, 2]},
    "vit": {"family": "vit", "image": [3, 16, 16], "patch": 8, **SIZES, "classes": 4},
    "mamba": {"family": "mamba", "vocabulary": 50, "context": 24, "layers": 2, "width": 16},
    "huggingface": {"family": "huggingface", "architecture": "gpt2", "context": 16}
    | {"overrides": {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2}},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_equal_logits(case: str, precision: str, tmp_path: Path) -> None:
    model = CASES[case]
    learner, rows = asked(model)
    huggingface.write(tmp_path, learner, model, precision, ["a", "b", "c", "d"][: model.get("classes", 0)])
    huggingface.preprocessor(tmp_path, model)
    theirs, found = huggingface.theirs(tmp_path), check.Difference()
    for size, _, batch in check.cases(rows, {}):
        check.add(found, "logits", *huggingface.both(learner, theirs, model["family"], batch))
        found.rows += size
    check.judge(found, precision)
    assert (found.largest > 1e-5) == (precision == "fp16" and case != "huggingface")
    config = json.loads((tmp_path / "config.json").read_text())
    if model.get("classes") == 4:
        assert config["id2label"] == {"0": "a", "1": "b", "2": "c", "3": "d"}
        assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == {"height": 16, "width": 16}


@pytest.mark.slow
def test_a_model_whose_logits_differ_is_found(tmp_path: Path) -> None:
    model = CASES["gpt"]
    learner, rows = asked(model)
    huggingface.write(tmp_path, learner, model, "fp32", [])
    with torch.no_grad():
        learner.ln.bias += 1e-3
    found = check.Difference()
    check.add(found, "logits", *huggingface.both(learner, huggingface.theirs(tmp_path), "gpt", rows))
    with pytest.raises(InputError, match="'logits' is off by"):
        check.judge(found, "fp32")
