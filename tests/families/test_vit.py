"""The Vision Transformer against transformers', its counts, and its weights both ways."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distdl.checkpoint.convert import Wish, convert, open_source
from distdl.config.load import config_from_dict
from distdl.families import build
from tests.families.common import made, parameters
from tests.small import BASE

SMALL = {"family": "vit", "image": [2, 8, 12], "patch": 4, "classes": 5, "layers": 2, "heads": 4, "width": 32}
SMALL |= {"inner": 48, "epsilon": 1e-12}


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ({}, 86_567_656),
        ({"patch": 32}, 88_224_232),
        ({"layers": 24, "heads": 16, "width": 1024}, 304_326_632),
        ({"heads": 6, "width": 384}, 22_050_664),
        ({"heads": 3, "width": 192}, 5_717_416),
    ],
)
def test_counts_of_the_models_that_have_names(model: dict[str, int], count: int) -> None:
    assert parameters("vit", **model) == count


def test_patches_are_read_row_by_row_and_the_class_stands_first() -> None:
    learner = made(SMALL)
    with torch.no_grad():
        learner.embed.places.zero_()
        learner.embed.patch.bias.zero_()
        image = torch.zeros(1, 2, 8, 12)
        image[:, :, 4:, 4:8] = 1  # the middle patch of the second row: 1 + 3 + 1
        out = learner.embed(image)[0]
    assert out.shape == (7, 32) and out.abs().sum(-1).nonzero().flatten().tolist() == [5]
    expected = learner.embed.patch.weight.sum((1, 2, 3))
    assert torch.allclose(out[5], expected, atol=1e-6)


def test_bytes_are_scaled_to_minus_one_and_one() -> None:
    image = torch.tensor([0, 255], dtype=torch.uint8).expand(3, 2, 8, 1, 2).reshape(3, 2, 8, 2)
    inputs = made(SMALL).inputs({"image": image})
    assert inputs.unique().tolist() == [-1, 1]


@pytest.mark.slow
def test_weights_cross_both_ways_and_compute_the_same(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (make bench installs it)")
    torch.manual_seed(3)
    settings = transformers.ViTConfig(
        image_size=(8, 12), patch_size=4, num_channels=2, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, num_labels=5,
    )  # fmt: skip
    peer = transformers.ViTForImageClassification(settings).eval()
    with torch.no_grad():
        for p in peer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    peer.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours.safetensors", Wish("safetensors"))
    model = open_source(tmp_path / "theirs").model
    assert model is not None and {**model, "dropout": 0.0} == {**SMALL, "dropout": 0.0}
    learner = build(model).eval()
    learner.load_state_dict(load_file(tmp_path / "ours.safetensors"))
    image = torch.rand(3, 2, 8, 12)
    with torch.no_grad():
        expected = peer(2 * image - 1).logits
        assert (learner.logits({"image": image}) - expected).abs().max() < 1e-5 and expected.std() > 0.1
        for p in learner.parameters():
            p.add_(0.1 * torch.randn_like(p))
        expected = learner.logits({"image": image})
    save_file(learner.state_dict(), tmp_path / "changed.safetensors")
    config = config_from_dict({"name": "vit", **BASE, "model": SMALL, "data": {"path": "none"}})
    convert(tmp_path / "changed.safetensors", tmp_path / "back", Wish("huggingface", config))
    again = transformers.ViTForImageClassification.from_pretrained(tmp_path / "back").eval()
    with torch.no_grad():
        assert (again(2 * image - 1).logits - expected).abs().max() < 1e-5
