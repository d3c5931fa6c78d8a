"""The generic convolutional network against torch's own layers, and each of its options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from distdl.families.cnn import Config
from distdl.nn.batch_norm import BatchNorm
from tests.families.common import made, parameters

NET = {"family": "cnn", "image": [2, 9, 12], "stages": [[5, 3, 2], [7, 5, 3]], "dense": [11], "classes": 4}


def test_counts_follow_from_the_stages() -> None:
    assert parameters("cnn") == 32 * 9 + 64 * 32 * 9 + 2 * (32 + 64) + (64 * 7 * 7 + 1) * 128 + 129 * 10 == 421738
    assert parameters("cnn", norm="none") == 421738 - (32 + 64)  # a bias for each map instead of gain and shift
    assert parameters("cnn", average=True) == 421738 - 128 * 64 * 48
    assert parameters("cnn", dense=(), stages=((8, 1, 1),), image=(3, 4, 5)) == 8 * 3 + 2 * 8 + (8 * 4 * 5 + 1) * 10


def oracle(options: dict[str, Any]) -> nn.Sequential:
    """The same network out of torch's layers, written down by hand."""
    act = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}[options.get("activation", "relu")]
    pool = {"max": nn.MaxPool2d, "mean": nn.AvgPool2d}[options.get("pool", "max")]
    norm = (lambda n: [nn.BatchNorm2d(n)]) if options.get("norm", "batch") == "batch" else (lambda n: [])
    bias = options.get("norm", "batch") != "batch"
    average = [nn.AdaptiveAvgPool2d(1)] if options.get("average") else []
    return nn.Sequential(
        *[nn.Conv2d(2, 5, 3, padding=1, bias=bias), *norm(5), act(), pool(2)],  # 4 x 6
        *[nn.Conv2d(5, 7, 5, padding=2, bias=bias), *norm(7), act(), pool(3)],  # 1 x 2
        *[*average, nn.Flatten(), nn.Linear(7 if average else 14, 11), act(), nn.Linear(11, 4)],
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"norm": "none"}, {"pool": "mean", "average": True}, {"activation": "tanh"}, {"activation": "sigmoid"}],
)
def test_cnn_is_torchs_layers(options: dict[str, Any]) -> None:
    learner, peer = made(NET | options).double(), oracle(options).double()
    theirs = list(peer.parameters())
    assert [p.shape for p in learner.parameters()] == [p.shape for p in theirs]
    with torch.no_grad():
        for ours, other in zip(learner.parameters(), theirs):
            ours.normal_(0, 0.5)
            other.copy_(ours)
    learner.train(), peer.train()
    x = torch.randn(6, 2, 9, 12, dtype=torch.float64)
    for _ in range(3):  # running statistics, too
        expected = peer(x)
        assert (
            torch.allclose(learner.logits({"image": x}), expected, atol=1e-11) and float(expected.detach().std()) > 0.1
        )
    learner.eval(), peer.eval()
    assert torch.allclose(learner.logits({"image": x}), peer(x), atol=1e-11)
    assert torch.allclose(learner.float().logits({"image": x.float()}), peer(x).float(), atol=1e-5)


def test_whole_numbers_are_scaled_to_one() -> None:
    learner = made(NET)
    pixels = torch.randint(0, 256, (3, 2, 9, 12), dtype=torch.uint8)
    assert torch.equal(learner.logits({"image": pixels}), learner.logits({"image": pixels.float() / 255}))


def test_dropout_silences_the_inputs_of_the_dense_layers_in_training() -> None:
    learner = made(NET | {"norm": "none", "dropout": 0.5})
    x = torch.rand(5, 2, 9, 12)
    assert torch.equal(learner.logits({"image": x}), learner.logits({"image": x}))
    silenced: list[float] = []
    for layer in learner.net:
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(lambda _, given: silenced.append(float((given[0] == 0).float().mean())))
    with torch.no_grad():
        for layer in learner.net:
            if isinstance(layer, nn.Conv2d):
                layer.bias.fill_(9)  # nothing is 0 of itself
            if isinstance(layer, nn.Linear):
                layer.bias.fill_(99)
    learner.train()
    for _ in range(50):
        learner.logits({"image": x})
    assert 0.4 < sum(silenced[::2]) / 50 < 0.6 and 0.4 < sum(silenced[1::2]) / 50 < 0.6


def test_batch_norm_is_an_option() -> None:
    assert sum(isinstance(m, BatchNorm) for m in made(NET).modules()) == 2
    assert sum(isinstance(m, BatchNorm) for m in made(NET | {"norm": "none"}).modules()) == 0


def test_what_cannot_be_built_is_told() -> None:
    with pytest.raises(ValueError, match="stage 2 has a kernel of 4"):
        Config(stages=((8, 3, 2), (8, 4, 2)))
    with pytest.raises(ValueError, match="nothing of 8 pixels is left after the pooling of stage 3"):
        Config(image=(1, 9, 8), stages=((8, 3, 2), (8, 3, 4), (8, 3, 2)))
