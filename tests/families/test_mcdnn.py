"""Columns against their transcription, the widths that they see, their independence and their average."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distdl.families.mcdnn import Config, of_width
from tests.families.common import made, parameters

NET = {"family": "mcdnn", "widths": [0, 10, 20], "columns_per_width": 2}


def test_counts_are_the_papers() -> None:
    assert parameters("mcdnn") == 35 * 76040 == 2661400
    column = made(NET).nets[0]
    assert [sum(p.numel() for p in layer.parameters()) for layer in column.children()] == [340, 20040, 54150, 1510]


def test_a_column_is_torchs_layers() -> None:
    learner = made(NET).double()
    column = learner.nets[3]
    peer = nn.Sequential(
        *[nn.Conv2d(1, 20, 4), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(20, 40, 5), nn.Tanh(), nn.MaxPool2d(3)],
        *[nn.Flatten(), nn.Linear(360, 150), nn.Tanh(), nn.Linear(150, 10)],
    ).double()
    for ours, theirs in zip(column.parameters(), peer.parameters(), strict=True):
        theirs.data.copy_(ours)
    x = torch.rand(4, 1, 28, 28, dtype=torch.float64)
    framed = nn.functional.pad(x, (0, 1, 0, 1))
    logits = learner.logits({"image": x})
    assert logits.shape == (6, 4, 10)
    assert torch.allclose(logits[3], peer(of_width(framed, 10)), atol=1e-12)
    assert torch.allclose(learner.float().logits({"image": x.float()})[3].double(), logits[3], atol=1e-5)


def test_each_kind_of_input_goes_to_its_own_columns() -> None:
    learner = made(NET)
    seen = []
    for net in learner.nets:
        net.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = torch.zeros(1, 1, 28, 28)
    x[..., 4:24, 7:22] = 1  # 15 pixels wide
    learner.logits({"image": x})
    assert [int((given > 0.5).any(2).sum()) for given in seen] == [15, 15, 10, 10, 20, 20]


@pytest.mark.parametrize("width", [10, 14, 20, 28])
@pytest.mark.parametrize("at", [0, 5, 20])
def test_digits_get_the_width_and_the_middle(width: int, at: int) -> None:
    x = torch.zeros(1, 1, 29, 29, dtype=torch.float64)
    x[..., 3:25, at : at + 8] = 1
    out = of_width(x, width)
    touched = (out[0, 0] > 0.5).any(0).nonzero().flatten()
    assert len(touched) == width and int(touched[0] + touched[-1]) in (27, 28)  # in the middle of 28 pixels
    assert torch.equal((out > 0.5).any(3), (x > 0).any(3))  # rows stay where they are
    assert float(out.max()) <= 1 and float(out.min()) >= 0


def test_a_stretched_ramp_is_bilinear_and_a_squeezed_one_keeps_its_mean() -> None:
    x = torch.zeros(1, 1, 29, 29, dtype=torch.float64)
    x[..., 10:20] = torch.linspace(1, 2, 10, dtype=torch.float64)
    stretched = of_width(x, 20)[0, 0, 0]
    places = torch.arange(5, 23, dtype=torch.float64)  # inside, where no background is mixed in
    expected = 1 + (14.5 + (places - 13.5) / 2 - 10) / 9
    assert torch.allclose(stretched[5:23], expected, atol=1e-12)
    squeezed = of_width(x, 5)[0, 0, 0]
    assert float(squeezed.sum()) * 2 == pytest.approx(float(x[0, 0, 0].sum()), rel=0.02)


def test_an_empty_picture_and_the_width_it_has_change_nothing() -> None:
    empty = torch.zeros(2, 1, 29, 29)
    assert torch.equal(of_width(empty, 12), empty)
    x = torch.zeros(1, 1, 29, 29)
    x[..., 4:24, 4:24] = torch.rand(20, 20) * 0.8 + 0.2
    assert torch.allclose(of_width(x, 20), x, atol=1e-6)


def test_columns_learn_as_if_they_were_alone() -> None:
    learner = made(NET)
    batch = {"image": torch.rand(8, 1, 28, 28), "label": torch.randint(0, 10, (8,))}
    learner.loss(batch, 0)[0].backward()
    together = [p.grad.clone() for p in learner.nets[4].parameters()]
    learner.zero_grad()
    logits = learner.logits(batch)[4]
    nn.functional.cross_entropy(logits, batch["label"]).backward()
    assert all(torch.allclose(a, p.grad, atol=1e-7) for a, p in zip(together, learner.nets[4].parameters()))
    assert all(p.grad is None or not p.grad.any() for p in learner.nets[3].parameters())


def test_the_average_is_of_probabilities() -> None:
    learner = made(NET | {"widths": [0], "columns_per_width": 3, "classes": 3})
    certain, torn = [9.0, 0.0, 0.0], [0.0, 0.3, 0.0]
    learner.logits = lambda batch: torch.tensor([[certain, torn], [torn, torn], [torn, certain]])  # (N, B, K)
    batch = {"label": torch.tensor([0, 1]), "id": torch.arange(2)}
    found = {name: float(total) / count for name, (total, count) in learner.evaluate(batch).items()}
    assert found["accuracy"] == 0.5  # of sample 0 one sure column outvotes two; of sample 1 it is wrong
    assert [found[f"accuracy_column_{i}"] for i in range(3)] == [1, 0.5, 0]
    assert found["column_accuracy"] == 0.5
    loss, _ = learner.loss(batch, 0)
    assert found["loss"] == pytest.approx(float(loss))
    log_p = learner.logits(batch).log_softmax(-1)
    assert float(loss) == pytest.approx(-float(log_p[:, 0, 0].sum() + log_p[:, 1, 1].sum()) / 2, rel=1e-5)


def test_small_pictures_are_enlarged() -> None:
    learner, small = made(NET), torch.rand(2, 1, 8, 8)
    large = nn.functional.interpolate(small, (28, 28), mode="bilinear", align_corners=False)
    assert torch.equal(learner.logits({"image": small}), learner.logits({"image": large}))


def test_widths_are_told_once() -> None:
    with pytest.raises(ValueError, match="each of them once"):
        Config(widths=(10, 10))
