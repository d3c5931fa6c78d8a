"""AlexNet against the layers of its variants written out, its normalisation, its views and its counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.layout import noise
from tests.families.common import made, parameters

SMALL = {"family": "alexnet", "image": [3, 63, 63], "side": 63, "hidden": 20, "classes": 7, "init": "he"}
MINI = {"image": (3, 32, 32), "side": 32, "classes": 10, "widths": (32, 64, 96, 96, 64), "hidden": 256, "kernel": 5}


def test_parameters_are_those_of_the_papers() -> None:
    assert parameters("alexnet") == 60_965_224  # two towers
    assert parameters("alexnet", variant="2014") == 61_100_840  # torchvision.models.alexnet
    assert parameters("alexnet", **MINI, stride=1) == 368_842
    assert parameters("alexnet", image=(3, 227, 227), side=227) == 60_965_224  # the size of others


def weird_trick(classes: int, widths: tuple[int, ...], hidden: int, maps: int) -> nn.Module:
    """torchvision's AlexNet: the same layers in the same order, so the same names in its state."""
    a, b, c, d, e = widths
    net = nn.Module()
    net.features = nn.Sequential(
        *(nn.Conv2d(3, a, kernel_size=11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(kernel_size=3, stride=2)),
        *(nn.Conv2d(a, b, kernel_size=5, padding=2), nn.ReLU(), nn.MaxPool2d(kernel_size=3, stride=2)),
        *(nn.Conv2d(b, c, kernel_size=3, padding=1), nn.ReLU()),
        *(nn.Conv2d(c, d, kernel_size=3, padding=1), nn.ReLU()),
        *(nn.Conv2d(d, e, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(kernel_size=3, stride=2)),
    )
    net.classifier = nn.Sequential(
        *(nn.Dropout(), nn.Linear(e * maps, hidden), nn.ReLU()),
        *(nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)),
    )
    return net.eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_2014_is_torchvisions(dtype: torch.dtype, tolerance: float) -> None:
    widths = (64, 192, 384, 256, 256)
    torch.manual_seed(1)
    peer = weird_trick(7, widths, 20, 1).to(dtype)  # a side of 63 leaves one pixel of each map
    learner = made({**SMALL, "variant": "2014"}).to(dtype)
    names = [*(f"features.{i}" for i in (0, 3, 6, 8, 10)), *(f"classifier.{i}" for i in (1, 4, 6))]  # torchvision's
    assert list(peer.state_dict()) == [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    learner.load_state_dict(dict(zip(learner.state_dict(), peer.state_dict().values())))
    pixels = torch.rand(4, 3, 63, 63, dtype=dtype)
    with torch.no_grad():
        expected = peer.classifier(peer.features((pixels - 0.45) / 0.226).flatten(1))
        assert (learner.logits({"image": pixels}) - expected).abs().max() < tolerance
    assert float(expected.std()) > 1e-3


def test_2012_is_two_towers_that_meet_in_the_third_layer() -> None:
    """Each tower written out with weights of its own, as on the paper's two GPUs."""
    learner = made({**SMALL, "widths": [8, 12, 16, 20, 24]}).double()
    w1, b1, w2, b2, w3, b3, w4, b4, w5, b5, *dense = (p.detach() for p in learner.parameters())
    local = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)  # alpha / size = the paper's 1e-4
    pixels = torch.rand(3, 3, 63, 63, dtype=torch.float64)
    pool = lambda x: F.max_pool2d(x, 3, 2)  # noqa: E731
    x = pool(local(F.conv2d((pixels - 0.45) / 0.226, w1, b1, 4, 2).relu()))
    halves = zip(x.chunk(2, 1), w2.chunk(2), b2.chunk(2))
    x = pool(local(torch.cat([F.conv2d(h, w, b, padding=2).relu() for h, w, b in halves], 1)))  # across the towers
    towers = F.conv2d(x, w3, b3, padding=1).relu().chunk(2, 1)
    for weight, bias in ((w4, b4), (w5, b5)):
        towers = [F.conv2d(t, w, b, padding=1).relu() for t, w, b in zip(towers, weight.chunk(2), bias.chunk(2))]
    x = pool(torch.cat(list(towers), 1)).flatten(1)
    x = F.linear(F.linear(x, dense[0], dense[1]).relu(), dense[2], dense[3]).relu()
    expected = F.linear(x, dense[4], dense[5])
    assert (learner.logits({"image": pixels}) - expected).abs().max() < 1e-12 and float(expected.std()) > 1e-3


def test_local_response_normalisation_is_the_papers_sum() -> None:
    from distdl.families.alexnet import LocalResponseNorm

    a = 30 * torch.randn(2, 9, 3, 4, dtype=torch.float64)
    b = torch.empty_like(a)
    for i in range(9):
        activity = sum(a[:, j] ** 2 for j in range(max(0, i - 2), min(8, i + 2) + 1))
        b[:, i] = a[:, i] / (2 + 1e-4 * activity) ** 0.75
    assert (LocalResponseNorm()(a) - b).abs().max() < 1e-12
    assert (b / a).min() < 0.45 < 0.55 < (b / a).max() < 2**-0.75


def seen(picture: Tensor, positions: list[int], **model: object) -> Tensor:
    """What the network sees of copies of a picture (C, H, W) in training, at places of the stream of samples."""
    settings = {"hidden": 4, "widths": [2, 2, 2, 2, 2], "kernel": 5, "stride": 1, "flip": False, "colour_jitter": 0.0}
    learner = made({"family": "alexnet", "image": list(picture.shape), **settings, **model}).train()
    noise.begin(5, torch.tensor(positions))
    try:
        return learner.view(picture.expand(len(positions), *picture.shape))
    finally:
        noise.begin(0, None)


def test_training_sees_random_parts_and_evaluation_the_centre() -> None:
    picture = torch.arange(20 * 22.0).view(1, 20, 22)
    parts = seen(picture, list(range(400)), side=16)
    corners = set()
    for part in parts:
        top, left = divmod(int(part[0, 0, 0]), 22)
        assert torch.equal(part, picture[:, top : top + 16, left : left + 16])
        corners.add((top, left))
    assert corners == {(top, left) for top in range(5) for left in range(7)}
    assert torch.equal(seen(picture, [7, 3], side=16), parts[[7, 3]])  # by the sample, whoever works on it
    model = {"family": "alexnet", "image": [1, 20, 22], "side": 16, "kernel": 5, "stride": 1}
    learner = made({**model, "colour_jitter": 0.0})
    assert torch.equal(learner.view(picture[None]), picture[None, :, 2:18, 3:19])


def test_flips_mirror_half_of_the_pictures() -> None:
    picture = torch.rand(3, 16, 16)
    views = seen(picture, list(range(1000)), side=16, flip=True)
    flipped = (views == picture.flip(-1)).flatten(1).all(1)
    assert ((views == picture).flatten(1).all(1) ^ flipped).all() and 0.45 < flipped.float().mean() < 0.55


def test_colour_jitter_moves_whole_pictures_along_the_principal_components() -> None:
    from distdl.families.alexnet import PCA, PCA_STD

    picture = torch.rand(3, 16, 16)
    change = seen(picture, list(range(4000)), side=16, colour_jitter=0.1) - picture
    assert float((change - change[..., :1, :1]).abs().max()) < 1e-6  # the same for all pixels of a picture
    axes = torch.tensor(PCA)
    assert torch.allclose(axes.T @ axes, torch.eye(3), atol=1e-3)
    amounts = change[..., 0, 0] @ axes  # (4000, 3)
    assert amounts.std(0) == pytest.approx(0.1 * torch.tensor(PCA_STD), rel=0.05)


def test_initial_weights_are_those_of_the_paper_or_of_he() -> None:
    model = {**MINI, "hidden": 200, "image": [3, 32, 32], "widths": list(MINI["widths"]), "stride": 1}

    def layers_of(init: str) -> list[nn.Conv2d | nn.Linear]:
        learner = made({"family": "alexnet", **model, "init": init})
        return [m for m in learner.modules() if isinstance(m, nn.Conv2d | nn.Linear)]

    layers = layers_of("paper")
    assert [float(layer.bias.detach().unique()) for layer in layers] == [0, 1, 0, 1, 1, 1, 1, 0]
    assert all(float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.06) for layer in layers)
    for layer in layers_of("he"):
        wanted = (2 / layer.weight[0].numel()) ** 0.5
        assert float(layer.weight.detach().std()) == pytest.approx(wanted, rel=0.06) and not layer.bias.any()


def test_models_that_cannot_be_say_what_can() -> None:
    from distdl.families.alexnet import Config

    for wrong, cure in (
        ({"widths": (8, 8)}, "all five"),
        ({"widths": (8, 9, 8, 8, 8)}, "even"),
        ({"image": (1, 256, 256)}, "colour_jitter to 0"),
        ({"side": 32}, "larger"),
    ):
        with pytest.raises(ValueError, match=cure):
            Config(**wrong)
