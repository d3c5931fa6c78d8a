"""LeNet-5 in both forms against their transcriptions; the counts, drawings and loss of the paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distdl.families.lenet5 import SEEN, Config
from tests.families.common import made, parameters

OLD = {"family": "lenet5", "variant": "1998"}


def test_counts_of_both_forms() -> None:
    assert parameters("lenet5") == 61706 and parameters("lenet5", variant="1998") == 60000
    learner, layers = made(OLD), ("c1", "s2", "c3", "s4", "c5", "f6")
    counts = {name: sum(p.numel() for p in getattr(learner, name).parameters()) for name in layers}
    assert counts == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48120, "f6": 10164}
    assert list(learner.head.parameters()) == [] and learner.head.points.shape == (10, 84)


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


TABLE_I = """
    X . . . X X X . . X X X X . X X
    X X . . . X X X . . X X X X . X
    X X X . . . X X X . . X . X X X
    . X X X . . X X X X . . X . X X
    . . X X X . . X X X X . X X . X
    . . . X X X . . X X X X . X X X
"""  # rows: maps of S2; columns: maps of C3


def test_c3_sees_what_table_one_says() -> None:
    table = [line.split() for line in TABLE_I.split("\n") if line.strip()]
    assert [tuple(row for row in range(6) if table[row][column] == "X") for column in range(16)] == [
        tuple(sorted(sources)) for sources in SEEN
    ]


def test_the_form_of_1998_is_the_paper_layer_by_layer() -> None:
    learner = made(OLD).double()
    with torch.no_grad():
        for p in learner.parameters():
            p.normal_(0, 0.1)  # biases and coefficients, too
    w = {name: p.detach().numpy() for name, p in learner.named_parameters()}
    pixels = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)

    def f(a: np.ndarray) -> np.ndarray:
        return 1.7159 * np.tanh(2 * a / 3)

    def convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return np.einsum("ijkl,kl->ij", np.lib.stride_tricks.sliding_window_view(x, (5, 5)), kernel)

    def sampled(x: np.ndarray, name: str) -> np.ndarray:
        sums = x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]
        return f(sums * w[f"{name}.coefficient"] + w[f"{name}.bias"])

    def penalties(image: np.ndarray) -> np.ndarray:
        x = np.full((32, 32), -0.1)  # white; black is 1.175
        x[2:30, 2:30] += 1.275 * image / 255
        c1 = f(np.stack([convolved(x, k[0]) + b for k, b in zip(w["c1.weight"], w["c1.bias"])]))
        s2 = sampled(c1, "s2")
        kernels = iter(w["c3.weight"])
        c3 = np.stack([sum(convolved(s2[source], next(kernels)) for source in sources) for sources in SEEN])
        s4 = sampled(f(c3 + w["c3.bias"][:, None, None]), "s4")
        c5 = f(w["c5.weight"] @ s4.reshape(-1) + w["c5.bias"])
        f6 = f(w["f6.weight"] @ c5 + w["f6.bias"])
        return ((f6 - learner.head.points.numpy()) ** 2).sum(-1)

    expected = np.stack([penalties(image[0].double().numpy()) for image in pixels])
    got = -learner.logits({"image": pixels.double() / 255}).detach().numpy()
    assert np.abs(got - expected).max() < 1e-10 and np.ptp(expected) > 1
    got = -learner.float().logits({"image": pixels}).detach().numpy()
    assert got == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_1998_is_equation_nine() -> None:
    learner = made(OLD | {"margin": 2.5})
    y = 4 * torch.rand(6, 10, dtype=torch.float64)
    label = torch.randint(0, 10, (6,))
    learner.logits = lambda batch: -y
    batch = {"label": label, "id": torch.arange(6)}
    expected = y.gather(1, label[:, None])[:, 0] + torch.log(np.exp(-2.5) + torch.exp(-y).sum(1))
    loss, metrics = learner.loss(batch, 0)
    assert float(loss) == pytest.approx(float(expected.mean()), abs=1e-12)
    assert float(metrics["accuracy"].total) == float((y.argmin(1) == label).sum())
    assert float(learner.evaluate(batch)["loss"].total) == pytest.approx(float(expected.sum()), rel=1e-6)


def test_no_class_farther_than_the_margin_is_pushed_much() -> None:
    """The competition is between classes nearer than J: beyond it the loss is that of equation 8, less J."""
    y = torch.full((1, 10), 60.0, dtype=torch.float64, requires_grad=True)
    learner = made(OLD | {"margin": 1.0})
    learner.logits = lambda batch: -y
    learner.loss({"label": torch.tensor([4])}, 0)[0].backward()
    assert y.grad is not None and float(y.grad[0, 4]) == pytest.approx(1)
    assert float(y.grad[0].sum()) == pytest.approx(1)  # nothing on the others


def test_the_drawings_are_ten_different_digits() -> None:
    points = made(OLD).head.points
    assert set(points.unique().tolist()) == {-1.0, 1.0}
    far = (points[:, None] - points).square().sum(-1) / 4  # in points
    assert int(far.fill_diagonal_(84).min()) >= 5
    zero = points[0].view(12, 7)
    assert (zero[0] > 0).tolist() == [False, True, True, True, True, True, False]
    assert made(OLD | {"classes": 4}).head.points.shape == (4, 84)


def test_the_form_of_1998_starts_within_the_papers_bounds() -> None:
    learner = made(OLD)
    for name, inputs in (("c1", 25), ("c5", 400), ("f6", 120)):
        largest = float(getattr(learner, name).weight.detach().abs().max())
        assert 0.8 * 2.4 / inputs < largest <= 2.4 / inputs
    kernels = iter(learner.c3.weight.detach())
    for sources in SEEN:
        largest = max(float(next(kernels).abs().max()) for _ in sources)
        assert 0.8 * 2.4 / (25 * len(sources)) < largest <= 2.4 / (25 * len(sources))


def test_what_the_form_of_1998_does_not_have_is_told() -> None:
    with pytest.raises(ValueError, match="set variant"):
        Config(variant="1998", pool="max")
    with pytest.raises(ValueError, match="at most 10 classes"):
        Config(variant="1998", classes=26)
