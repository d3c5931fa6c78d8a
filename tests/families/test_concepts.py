"""Word detectors: the noisy OR in closed form, stable where it is surely on or off, and scikit-learn's F1."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from distdl.families.concepts import log_one_minus_exp, noisy_or
from tests.families.common import made, parameters

SMALL = {"family": "concepts", "image": [1, 12, 10], "vocabulary": 5, "first": 4, "length": 4, "widths": [3, 4]}


def test_the_default_model_has_the_agreed_number_of_parameters() -> None:
    assert parameters("concepts") == 5_599_904 + 1025 * 1000 == 6_624_904
    trunk = 25 * (32 + 32 * 64 + 64 * 128) + 2 * 224
    assert parameters("concepts", image=(1, 56, 56), vocabulary=15, widths=(32, 64, 128)) == trunk + 129 * 15


def test_a_word_is_there_when_a_region_shows_it() -> None:
    """p(w) = 1 - prod_j (1 - p_j(w)), values and gradients of the loss against the product itself."""
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 2, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 2, (3, 5)).double()
    p = 1 - (1 - logits.sigmoid()).flatten(2).prod(-1)
    assert torch.allclose(1 - noisy_or(logits).exp(), p)
    expected = F.binary_cross_entropy(p, target, reduction="sum")
    log_absent = noisy_or(logits)
    ours = -torch.where(target > 0, log_one_minus_exp(log_absent), log_absent).sum()
    assert (ours - expected).abs() < 1e-9
    (a,), (b,) = torch.autograd.grad(ours, logits), torch.autograd.grad(expected, logits)
    assert (a - b).abs().max() < 1e-9 and b.abs().max() > 0.01


def test_it_is_exact_and_finite_at_either_end() -> None:
    x = torch.tensor([-100.0, -20.0, -1.0, -0.5, -1e-3, 0.0], requires_grad=True)
    found = log_one_minus_exp(x)
    exact = [-3.72e-44, -2.061153622e-9, -0.4586751453870819, -0.9327521295671886, -6.908255320646790]
    for got, wanted in zip(found[1:5].tolist(), exact[1:], strict=True):
        assert got == pytest.approx(wanted, rel=1e-5)
    found.sum().backward()
    assert torch.isfinite(found).all() and x.grad is not None and torch.isfinite(x.grad).all()


def test_loss_words_and_f1() -> None:
    from sklearn.metrics import f1_score

    learner = made(SMALL).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(torch.randn_like(p), alpha=0.5)
    image = torch.rand(6, 1, 12, 10, dtype=torch.float64)
    caption = torch.tensor([[2, 4, 4, 3, 0], [2, 8, 5, 9, 3], [2, 1, 3, 0, 0], [2, 6, 7, 8, 3]] + [[2, 5, 3, 0, 0]] * 2)
    present = learner.present(caption)
    assert [row.nonzero().flatten().tolist() for row in present] == [[0], [1, 4], [], [2, 3, 4], [1], [1]]
    p, regions = learner.detect(image)
    assert regions.shape == (6, 5, 3, 3) and torch.allclose(p, 1 - (1 - regions).flatten(2).prod(-1), atol=1e-6)
    batch = {"image": image, "caption": caption.byte(), "id": torch.arange(6)}
    expected = F.binary_cross_entropy(p.double(), present.double(), reduction="none").sum(1)
    assert learner.loss(batch, 0)[0].item() == pytest.approx(expected.mean().item(), rel=1e-4)
    metrics = learner.evaluate(batch)
    assert float(metrics["loss"].total) == pytest.approx(expected.sum().item(), rel=1e-4)
    found = (p > 0.5).numpy()
    assert 0 < found.sum() < 30
    theirs = f1_score(present.numpy(), found, average="micro")
    assert float(metrics["f1"].total) / metrics["f1"].count == pytest.approx(theirs)


@pytest.mark.slow
def test_it_finds_where_a_word_is_without_being_told() -> None:
    torch.manual_seed(0)
    image, caption = torch.zeros(128, 1, 24, 24), torch.zeros(128, 5, dtype=torch.long)
    caption[:, 0] = 2
    places = torch.randint(0, 6, (128, 2, 2))  # of the two signs, in regions of 4 x 4 pixels
    there = torch.rand(128, 2) < 0.5
    for row in range(128):
        for word in range(2):
            if there[row, word]:
                y, x = (4 * places[row, word]).tolist()
                image[row, 0, y + 1 : y + 3, x : x + 4] += 1.0 * (word == 0)
                image[row, 0, y : y + 4, x + 1 : x + 3] += 1.0 * (word == 1)
                caption[row, 1 + word] = 4 + word
    learner = made(SMALL | {"image": [1, 24, 24], "vocabulary": 2, "widths": [8, 16]}).train()
    optimizer = torch.optim.Adam(learner.parameters(), 2e-2)
    batch = {"image": image, "caption": caption, "id": torch.arange(128)}
    for step in range(120):
        optimizer.zero_grad()
        learner.loss(batch, step)[0].backward()
        optimizer.step()
    f1 = learner.eval().evaluate(batch)["f1"]
    assert float(f1.total) / f1.count > 0.95
    _, regions = learner.detect(image)  # (B, 2, 6, 6), each of which sees 13 x 13 pixels
    at = regions.flatten(2).argmax(-1)
    away = (torch.stack([at // 6, at % 6], -1) - places).abs().amax(-1)
    assert (away <= 1)[there].float().mean() > 0.9  # by chance 1/4 or less
