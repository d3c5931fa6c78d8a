"""The visual-semantic embedding: its two losses against loops over pairs, its ranks, and what is no mismatch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from distdl.families.vse import ranks
from tests.families.common import made, parameters

SMALL = {"family": "vse", "image": [1, 12, 10], "vocabulary": 9, "length": 4, "contrasts": 3, "widths": [3, 4]}
SMALL |= {"units": 6}


def batch(rows: int = 7) -> dict[str, Tensor]:
    """Pictures and captions; the second and the fifth have the same words, lengths differ."""
    draw = torch.Generator().manual_seed(1)
    captions = torch.randint(4, 9, (rows, 4, 5), generator=draw)
    captions[..., 0] = 2
    for row in range(rows):
        end = 2 + row % 3
        captions[row, :, end], captions[row, :, end + 1 :] = 3, 0
    captions[4, 0] = captions[1, 0]
    image = torch.rand(rows, 1, 12, 10, dtype=torch.float64, generator=draw)
    known = {"image": image, "caption": captions[:, 0].byte(), "contrasts": captions[:, 1:].byte()}
    return known | {"id": torch.arange(rows)}


def rough(**changes: Any) -> Any:
    learner = made(SMALL | changes).double()
    torch.manual_seed(2)
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(torch.randn_like(p), alpha=0.5)
    return learner


def vectors(learner: Any, data: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Pictures and sentences one by one, the sentence read to its end and no further."""
    seen, read = [], []
    for image, caption in zip(data["image"], data["caption"].long()):
        x = learner.see(learner.trunk(image[None]).flatten(1))[0]
        words = caption[: int((caption != 0).sum())]
        _, (h, _) = learner.lstm(learner.words.weight[words][None])
        seen.append(x / x.norm())
        read.append(h[0, 0] / h[0, 0].norm())
    return seen, read


def test_the_default_model_has_the_agreed_number_of_parameters() -> None:
    lstm, words = 4 * (300 * 600 + 2 * 300), 12_000 * 300
    assert parameters("vse") == 5_599_904 + 1025 * 300 + lstm + words == 10_229_804
    assert parameters("vse", units=1024) == 5_599_904 + 1025 * 1024 + 4 * (1024 * 2048 + 2048) + 12_000 * 1024
    small = 25 * (32 + 32 * 64 + 64 * 64) + 2 * 160 + (64 * 49 + 1) * 128
    own = parameters("vse", image=(1, 56, 56), vocabulary=19, length=11, widths=(32, 64, 64), units=128)
    assert own == small + 4 * (128 * 256 + 256) + 19 * 128


@pytest.mark.parametrize("objective", ["ranking", "infonce"])
def test_the_loss_is_the_sum_over_pairs_and_mismatches(objective: str) -> None:
    """Value and gradients; pairs of the same words are not told apart."""
    learner, data = rough(objective=objective, margin=0.5, temperature=0.3), batch()
    loss, _ = learner.loss(data, 0)
    seen, read = vectors(learner, data)
    total = torch.zeros((), dtype=torch.float64)
    skipped = 0
    for one, two in ((seen, read), (read, seen)):
        for i, anchor in enumerate(one):
            wrong = [k for k in range(len(two)) if not torch.equal(data["caption"][k], data["caption"][i])]
            skipped += len(two) - 1 - len(wrong)
            if objective == "ranking":
                for k in wrong:
                    total = total + (0.5 - anchor @ two[i] + anchor @ two[k]).clamp(min=0)
            else:
                among = torch.stack([anchor @ two[i], *(anchor @ two[k] for k in wrong)]) / 0.3
                total = total - 0.5 * (among[0] - among.exp().sum().log())
    expected = total / len(seen)
    assert skipped >= 4 and (loss - expected).abs() < 1e-5 and expected > 0.5
    weights = list(learner.parameters())
    ours, theirs = torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 1e-5
    assert min(b.abs().max() for b in theirs) > 1e-4


@pytest.mark.parametrize("objective", ["ranking", "infonce"])
def test_evaluation_ranks_the_caption_among_those_beside_it(objective: str) -> None:
    learner, data = rough(objective=objective), batch()
    seen, read = vectors(learner, data)
    places, losses = [], []
    for i, (x, v) in enumerate(zip(seen, read)):
        _, others = vectors(learner, {"image": data["image"][:3], "caption": data["contrasts"][i]})
        right, wrong = (x @ v).item(), [(x @ other).item() for other in others]
        places.append(1 + sum(s >= right for s in wrong))
        if objective == "ranking":
            losses.append(sum(max(0.0, 0.2 - right + s) for s in wrong))
        else:
            losses.append(math.log(sum(math.exp((s - right) / 0.07) for s in (right, *wrong))))
    metrics = learner.evaluate(data)
    assert float(metrics["rank"].total) == sum(places) and float(metrics["recall_at_1"].total) == places.count(1)
    assert metrics["rank"].count == 7 and len(set(places)) > 1
    assert float(metrics["loss"].total) == pytest.approx(sum(losses), rel=1e-5)


def test_ranks_of_the_best_right_candidate() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.3, 0.2], [0.4, 0.5, 0.6]])
    right = torch.tensor([[False, False, True], [True, False, False], [True, False, True]])
    assert ranks(scores, right).tolist() == [2, 2, 1]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["ranking", "infonce"])
def test_pictures_and_words_of_four_kinds_meet(objective: str) -> None:
    torch.manual_seed(0)
    kinds = torch.randint(0, 4, (64,))
    image = torch.zeros(64, 1, 12, 10)
    image[torch.arange(64), 0, 2 * kinds, 2 * kinds] = 1
    captions = torch.stack([torch.tensor([2, 4 + kind, 3, 0, 0]) for kind in range(4)])
    others = torch.stack([captions[[k for k in range(4) if k != kind]] for kind in kinds.tolist()])
    data = {"image": image, "caption": captions[kinds], "contrasts": others, "id": torch.arange(64)}
    learner = made(SMALL | {"objective": objective})
    before = float(learner.evaluate(data)["recall_at_1"].total)
    learner.train()
    optimizer = torch.optim.Adam(learner.parameters(), 1e-2)
    for step in range(60):
        optimizer.zero_grad()
        learner.loss(data, step)[0].backward()
        optimizer.step()
    assert float(learner.eval().evaluate(data)["recall_at_1"].total) >= 60 > before + 10
