"""Object masks: what is drawn against counted pixels, the score against loops, and boxes read off true masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distdl.families import model_config
from distdl.families.object_masks import candidates, drawn, iou, parts, scored
from tests.families.common import made, parameters

SMALL = {"family": "object_masks", "image": [1, 24, 24], "objects": 3, "grid": 8, "sides": [2, 5]}
SMALL |= {"widths": [3, 3, 4, 4, 4], "hidden": 6, "kernel": 5, "stride": 1}


def test_the_default_model_is_alexnet_with_another_last_layer() -> None:
    convolutions = [(3, 96, 11), (96, 256, 5), (256, 384, 3), (384, 384, 3), (384, 256, 3)]
    trunk = sum(n * m * k * k + m for n, m, k in convolutions) + (256 * 36 + 1) * 4096 + 4097 * 4096
    assert trunk + 4097 * 1000 == 62_378_344  # AlexNet in one tower
    assert parameters("object_masks") == trunk + 4097 * 5 * 24**2 == 70_080_704
    with torch.device("meta"):
        from distdl.families import build

        learner: Any = build({"family": "object_masks"})
        assert learner.masks(torch.empty(2, 3, 225, 225)).shape == (2, 5, 24, 24)
    small = 16 * 26 + 32 * 401 + 64 * 289 + 2 * 64 * 577 + (64 * 36 + 1) * 256 + 257 * 256 + 257 * 2880
    own = {"image": (1, 56, 56), "objects": 2, "sides": (2, 12), "widths": (16, 32, 64, 64, 64), "hidden": 256}
    assert parameters("object_masks", **own, kernel=5, stride=1) == small


BOXES = torch.tensor([[[2, 3, 12, 10], [13, 1, 20, 9], [0, 0, 0, 0]], [[0, 11, 24, 24], [0, 0, 0, 0], [0, 0, 0, 0]]])


def halves(box: list[int]) -> list[tuple[float, float, float, float]]:
    top, left, bottom, right = box
    y, x = (top + bottom) / 2, (left + right) / 2
    upper, lower = (top, left, y, right), (y, left, bottom, right)
    return [(top, left, bottom, right), upper, lower, (top, left, bottom, x), (top, x, bottom, right)]


def test_masks_are_the_covered_parts_of_the_cells() -> None:
    """24 pixels in 8 cells of 3: counted on points half a pixel apart, which no box cuts."""
    learner = made(SMALL)
    found = drawn(learner.cells(BOXES), 8)
    assert found.shape == (2, 5, 8, 8)
    points = torch.arange(48) / 2 + 0.25
    for row, boxes in enumerate(BOXES.tolist()):
        for part in range(5):
            inside = torch.zeros(48, 48)
            for box in boxes:
                top, left, bottom, right = halves(box)[part]
                inside += ((points >= top) & (points < bottom))[:, None] & ((points >= left) & (points < right))
            expected = inside.view(8, 6, 8, 6).mean((1, 3))
            assert torch.allclose(found[row, part], expected, atol=1e-6), (row, part)
    assert 0.1 < found.mean() < 0.9


def test_the_loss_weighs_covered_cells_more() -> None:
    learner = made(SMALL | {"ground": 0.3})
    image = torch.rand(2, 1, 24, 24)
    loss, _ = learner.loss({"image": image, "boxes": BOXES}, 0)
    true, found = drawn(learner.cells(BOXES), 8), learner.masks(image)
    total = torch.zeros(())
    for m, f in zip(true.flatten(1), found.flatten(1)):
        weighted = torch.diag(m) + 0.3 * torch.eye(len(m))
        total = total + ((weighted.sqrt() @ (f - m)) ** 2).sum()
    assert loss.item() == pytest.approx(total.item() / found.numel(), rel=1e-5)
    weights = list(learner.parameters())
    for a, b in zip(torch.autograd.grad(loss, weights), torch.autograd.grad(total / found.numel(), weights)):
        assert torch.allclose(a, b, atol=1e-6)
    assert nn.functional.mse_loss(found, true) < loss / 0.3


def mean_over(mask: Tensor, box: tuple[float, float, float, float]) -> float:
    """Mean of a mask (d, d) in a box with edges on half cells, value by value."""
    top, left, bottom, right = (round(2 * edge) for edge in box)
    values = [mask[y // 2, x // 2].item() for y in range(top, bottom) for x in range(left, right)]
    return sum(values) / len(values)


def test_the_score_of_a_box_is_that_of_equation_3() -> None:
    torch.manual_seed(0)
    masks, boxes = torch.rand(2, 5, 8, 8), candidates(8, (2, 5))
    assert len(boxes) == (7 + 6 + 5 + 4) ** 2
    found = scored(masks, boxes)
    for n in torch.randperm(len(boxes))[:60].tolist():
        box = boxes[n].int().tolist()
        pieces = halves(box)
        for row, mask in enumerate(masks):
            total = mean_over(mask[0], pieces[0])
            for part, other in ((1, 2), (2, 1), (3, 4), (4, 3)):
                total += mean_over(mask[part], pieces[part]) - mean_over(mask[part], pieces[other])
            top, left, bottom, right = box
            around = mask[0, max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1]
            inside = mask[0, top:bottom, left:right]
            total -= (around.sum() - inside.sum()).item() / (around.numel() - inside.numel())
            assert found[row, n].item() == pytest.approx(total, abs=1e-4)


def test_boxes_on_the_grid_are_read_off_their_masks() -> None:
    """Even where two of them touch, which the whole mask alone cannot tell apart."""
    learner = made(SMALL | {"objects": 2})
    boxes = torch.tensor(
        [[[0, 3, 12, 12], [12, 3, 24, 12]], [[3, 0, 15, 12], [6, 12, 18, 24]], [[6, 6, 18, 21], [0] * 4]]
    )
    masks = drawn(learner.cells(boxes), 8)
    found, scores = learner.read(masks)
    for row, known in enumerate((2, 2, 1)):
        expected = {tuple(box) for box in boxes[row, :known].tolist()}
        assert {tuple(box) for box in (3 * found[row, :known]).long().tolist()} == expected
    assert (scores[:, 0] >= scores[:, 1]).all() and scores[2, 1] < scores[2, 0] - 0.5
    assert torch.equal(learner.matched(masks, boxes), torch.ones(5))
    missed = learner.matched(masks.flip(0), boxes)
    assert len(missed) == 5 and missed.mean() < 0.6


def test_overlap_of_boxes() -> None:
    a, b = torch.tensor([0.0, 0, 4, 4]), torch.tensor([[0.0, 0, 4, 4], [2, 2, 6, 6], [4, 0, 8, 4], [1, 1, 3, 3]])
    assert iou(a, b).tolist() == pytest.approx([1, 4 / 28, 0, 4 / 16])
    assert parts(a).tolist() == [list(part) for part in halves([0, 0, 4, 4])]


def test_evaluation_counts_objects() -> None:
    learner = made(SMALL)
    metrics = learner.evaluate({"image": torch.rand(2, 1, 24, 24), "boxes": BOXES, "id": torch.arange(2)})
    assert metrics["iou"].count == metrics["recall"].count == 3 and metrics["loss"].count == 2
    assert 0 <= float(metrics["recall"].total) <= 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"widths": (1, 2)}, "widths has 2 numbers"),
        ({"sides": (5, 4)}, r"sides \[5, 4\]"),
        ({"sides": (2, 25)}, "within a grid of 24"),
        ({"image": (1, 24, 24)}, "nothing is left of 24 x 24"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_config({"family": "object_masks"}).__class__(**wrong)
