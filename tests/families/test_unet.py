"""U-Net against its transcription, its shape law, its weights, its tiles and its deformations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distdl.families import load_family, model_config
from distdl.families.unet import Config, bend, mirrored
from distdl.layout import noise
from tests.families.common import made, parameters

PLAIN = {"family": "unet", "border_weight": 0.0, "elastic": 0.0}
SMALL = {**PLAIN, "image": [1, 44, 60], "width": 3, "depth": 2, "classes": 3}


def test_parameters_are_those_of_the_paper() -> None:
    assert parameters("unet") == 31_030_658
    assert parameters("unet", image=(3, 572, 572), classes=1) == 31_031_745
    assert parameters("unet", batch_norm=True) == 31_042_434
    assert parameters("unet", image=(3, 572, 572), classes=1, batch_norm=True) == 31_043_521
    assert parameters("unet", image=(1, 512, 512), width=16, padding="same") == 1_940_834


def test_the_shape_law_is_the_networks() -> None:
    """572 -> 388 as in figure 1, and on every other side what the network does."""
    assert Config().side_out(572) == 388
    with torch.device("meta"):
        learner: Any = load_family("unet")(model_config({"family": "unet"}))
        assert learner.logits(torch.empty(1, 1, 572, 572)).shape == (1, 2, 388, 388)
        fits = 0
        for padding in ("valid", "same"):
            config = Config(image=(1, 44, 44), width=1, depth=2, padding=padding)
            learner = load_family("unet")(config)
            for side in range(40, 70):
                if config.side_out(side):
                    fits += 1
                    assert learner.logits(torch.empty(1, 1, side, 44)).shape[2] == config.side_out(side)
    assert fits == 7 + 8  # every fourth; a side of 40 leaves nothing without padding
    with pytest.raises(ValueError, match=r"45 .* one of \[44, 48, 52\]"):
        Config(image=(1, 45, 44), depth=2)


def transcription(w: list[Tensor], x: Tensor) -> Tensor:
    """Two levels down and up, valid convolutions: figure 1 of the paper with two pools, in its order of weights."""
    take = iter(w)
    conv = lambda x: F.conv2d(x, next(take), next(take)).relu()  # noqa: E731
    first = conv(conv(x - 0.5))
    second = conv(conv(F.max_pool2d(first, 2)))
    lowest = conv(conv(F.max_pool2d(second, 2)))
    to_second, to_first = (next(take), next(take)), (next(take), next(take))
    x = F.conv_transpose2d(lowest, *to_second, stride=2)
    cut = (second.shape[2] - x.shape[2]) // 2
    x = conv(conv(torch.cat([second[:, :, cut:-cut, cut:-cut], x], 1)))
    x = F.conv_transpose2d(x, *to_first, stride=2)
    cut = (first.shape[2] - x.shape[2]) // 2
    x = conv(conv(torch.cat([first[:, :, cut:-cut, cut:-cut], x], 1)))
    return F.conv2d(x, next(take), next(take))


def test_unet_is_its_transcription() -> None:
    learner = made(SMALL).double()
    pixels = torch.rand(2, 1, 44, 60, dtype=torch.float64)
    expected = transcription([p.detach() for p in learner.parameters()], pixels)
    got = learner.logits(pixels)
    assert got.shape == expected.shape == (2, 3, 4, 20)
    assert (got - expected).abs().max() < 1e-12 and float(expected.std()) > 1e-2
    expected = expected.float()
    assert (learner.float().logits(pixels.float()) - expected).abs().max() < 1e-5


def test_batch_norm_stands_after_the_relu_where_biases_count() -> None:
    learner = made({**SMALL, "batch_norm": True}).double().train()
    x = torch.rand(4, 1, 20, 20, dtype=torch.float64)
    conv = learner.down[0][0]
    maps = F.conv2d(x, conv.weight, conv.bias).relu()
    expected = (maps - maps.mean((0, 2, 3), keepdim=True)) / (maps.var((0, 2, 3), False, keepdim=True) + 1e-5).sqrt()
    assert (learner.down[0][:3](x) - expected).abs().max() < 1e-10


def batch_of(learner: Any, border: bool = False) -> dict[str, Tensor]:
    _, height, width = learner.config.image
    batch = {"image": torch.rand(2, 1, height, width), "id": torch.arange(2), "position": torch.arange(2)}
    batch["mask"] = torch.randint(0, learner.config.classes, (2, height, width)).byte()
    return batch | ({"border": torch.rand(2, height, width)} if border else {})


def test_every_pixel_weighs_its_class_and_its_border() -> None:
    """Equation 1 of the paper, with equation 2's weights, pixel by pixel."""
    learner = made({**SMALL, "border_weight": 10.0, "class_weights": [0.5, 1.0, 3.0]})
    batch = batch_of(learner, border=True)
    p = learner.logits(batch["image"]).softmax(1).detach()
    total = 0.0
    for b in range(2):
        for y in range(4):
            for x in range(20):  # the tile's inner part begins 20 pixels from its edge
                label = int(batch["mask"][b, 20 + y, 20 + x])
                weight = (0.5, 1.0, 3.0)[label] + 10 * float(batch["border"][b, 20 + y, 20 + x])
                total -= weight * float(p[b, label, y, x].log())
    assert float(learner.loss(batch, 0)[0].detach()) == pytest.approx(total / 160, rel=1e-5)


def test_dice_is_of_the_sums_and_of_the_foreground() -> None:
    learner = made(SMALL)
    batch = batch_of(learner)
    found = learner.logits(batch["image"]).argmax(1)
    mask, k = batch["mask"][:, 20:24, 20:40], int(found.flatten().mode()[0])
    learner = made({**SMALL, "foreground": k})
    a, b = ({tuple(place) for place in (classes == k).nonzero().tolist()} for classes in (found, mask))
    total, count = learner.evaluate(batch)["dice"]
    assert (float(total), count) == (2 * len(a & b), len(a) + len(b)) and a and b
    batch["mask"][:, 20:24, 20:40] = found
    total, count = learner.evaluate(batch)["dice"]
    assert float(total) == count


def test_one_class_is_a_sigmoid() -> None:
    learner = made({**SMALL, "classes": 1})
    batch = batch_of(learner)
    batch["mask"] = torch.randint(0, 2, batch["mask"].shape)
    p, y = learner.logits(batch["image"])[:, 0].sigmoid(), batch["mask"][:, 20:24, 20:40].float()
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    assert float(learner.loss(batch, 0)[0].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(learner.evaluate(batch)["accuracy"].total) == ((p > 0.5) == y).sum()


def test_tiles_that_overlap_are_one_large_picture() -> None:
    """Valid convolutions see the same surroundings in a tile as in the whole: no seams, to the last digit."""
    learner = made({**SMALL, "image": [1, 44, 48]}).double()  # 4 x 8 classes a tile
    picture = torch.rand(2, 1, 10, 21, dtype=torch.float64)
    rows, columns = mirrored(-20, 12 + 20, 10, torch.device("cpu")), mirrored(-20, 24 + 20, 21, torch.device("cpu"))
    at_once = learner.logits(picture[..., rows[:, None], columns])  # (2, 3, 12, 24)
    tiled = learner.segment(picture)
    assert tiled.shape == (2, 3, 10, 21)
    assert (tiled - at_once[..., :10, :21]).abs().max() < 1e-12


def test_mirrored_continues_a_picture_at_its_edges() -> None:
    import numpy as np

    for size in (1, 3, 10):
        expected = np.pad(np.arange(size), 25, mode="symmetric")
        assert mirrored(-25, size + 25, size, torch.device("cpu")).tolist() == expected.tolist()


def bent(values: dict[str, Tensor], image: Tensor, deviation: float) -> tuple[Tensor, dict[str, Tensor]]:
    noise.begin(3, torch.arange(len(image)))
    try:
        return bend(image, values, deviation)
    finally:
        noise.begin(0, None)


def test_deformations_move_picture_and_mask_alike() -> None:
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    image = torch.stack([y, x]).expand(40, 2, 48, 64)  # every pixel says its place
    still, _ = bent({}, image, 1e-6)
    assert (still - image).abs().max() < 1e-3
    moved, of_pixel = bent({"mask": (y > 20).float().expand(40, 1, 48, 64)}, image, 3.0)
    inner = (moved[:, 0] > 1) & (moved[:, 0] < 46) & (moved[:, 1] > 1) & (moved[:, 1] < 62)  # not reflected at an edge
    clear = inner & ((moved[:, 0] - 20.5).abs() > 0.5)
    assert torch.equal(of_pixel["mask"][:, 0][clear] == 1, (moved[:, 0] > 20.5)[clear]) and clear.float().mean() > 0.6
    centre = moved[:, :, 24, 32] - image[:, :, 24, 32]  # the middle point of the coarse grid
    assert float(centre.std()) == pytest.approx(3.0, rel=0.25)
    neighbours = (moved - image).diff(dim=-1).abs()[inner[:, None, :, 1:].expand(-1, 2, -1, -1)]
    assert float(neighbours.mean()) < 0.3  # smooth


def test_only_training_is_deformed() -> None:
    learner = made({**SMALL, "elastic": 4.0, "dropout": 0.0})
    batch = batch_of(learner)
    noise.begin(0, batch["position"])
    try:
        once, again = learner.loss(batch, 0)[0].detach(), learner.loss(batch, 0)[0].detach()
        assert once == again
        assert abs(learner.train().loss(batch, 0)[0].detach() - once) > 1e-3
    finally:
        noise.begin(0, None)


def test_models_that_cannot_be_say_what_can() -> None:
    with pytest.raises(ValueError, match="foreground is class 2, of 2"):
        Config(foreground=2)
    with pytest.raises(ValueError, match="before each of 300 pools; take fewer pools"):  # at once
        Config(depth=300)
    with pytest.raises(ValueError, match="3 numbers for 2 classes"):
        Config(class_weights=(1.0, 1.0, 1.0))
