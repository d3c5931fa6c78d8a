"""LeNet-5 against its transcription."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.families.common import made


@pytest.mark.parametrize("side", [28, 8])
@pytest.mark.parametrize(("activation", "pool"), [("tanh", "mean"), ("relu", "max")])
def test_lenet_is_its_transcription(activation: str, pool: str, side: int) -> None:
    learner = made({"family": "lenet5", "image": [1, side, side], "activation": activation, "pool": pool}).double()
    w = {name: p.detach() for name, p in learner.named_parameters()}
    assert [p.numel() for p in w.values()] == [150, 6, 2400, 16, 48000, 120, 10080, 84, 840, 10]
    act = {"tanh": torch.tanh, "relu": torch.relu}[activation]
    down = {"mean": lambda x: F.avg_pool2d(x, 2), "max": lambda x: F.max_pool2d(x, 2)}[pool]
    pixels = torch.randint(0, 256, (6, 1, side, side), dtype=torch.uint8)
    x = pixels.double() / 255
    if side != 28:
        x = F.interpolate(x, (28, 28), mode="bilinear", align_corners=False)
    x = F.pad(x, (2, 2, 2, 2))  # the paper's 32 x 32
    maps = F.unfold(x, 5).transpose(1, 2) @ w["c1.weight"].flatten(1).T + w["c1.bias"]  # a convolution by hand
    x = down(act(maps.transpose(1, 2).reshape(6, 6, 28, 28)))
    x = down(act(F.conv2d(x, w["c3.weight"], w["c3.bias"])))
    x = act(x.reshape(6, 400) @ w["c5.weight"].T + w["c5.bias"])
    x = act(x @ w["f6.weight"].T + w["f6.bias"])
    expected = x @ w["head.weight"].T + w["head.bias"]
    assert torch.allclose(learner.logits({"image": pixels.double() / 255}), expected, atol=1e-12)
    assert torch.allclose(learner.float().logits({"image": pixels}).double(), expected, atol=1e-5)
