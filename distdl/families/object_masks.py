"""Object detection as regression to masks of the objects' boxes (Szegedy, Toshev & Erhan 2013, NIPS).

An AlexNet whose last layer is a regression: it draws, on a grid of d x d cells, which part of each cell the objects' boxes
cover, and the same for the upper, lower, left and right halves of the boxes, which tells neighbours apart. One network has
five outputs here, where the paper has five networks; its crops at several scales, its second pass, and AlexNet's response
normalisation and dropout are left out. m is the true mask, f(x) what the network draws (equation 1):

    loss = | (Diag(m) + lambda I)^(1/2) (f(x) - m) |^2          here the mean over the 5 d^2 cells

With a small lambda, cells of an object count for more than the ground, which covers most of a picture. A box b is read off
by its score, with the mean S of mask h over a region (equations 2 and 3):

    score(b) = sum_h S(b(h), m_h) - S(b(h'), m_h)       h' the opposite half; for the whole box, the cells around it

All boxes on the grid are tried, and of those that overlap the best is kept. 70,080,704 parameters with the default config:
the 58,281,344 of AlexNet's layers before the last, in one tower, and 11,799,360 of the regression.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Amount, Count, Counts, ImageShape, Pair, Several
from distdl.learner import Answer, Batch, Column, Learner
from distdl.metrics import Metrics, mean
from distdl.nn.images import to_unit
from distdl.nn.watch import shown

PARTS = 5  # whole, top, bottom, left, right
OPPOSITE = (0, 2, 1, 4, 3)
OVERLAP = 0.5  # intersection over union beyond which two boxes are the same object


@dataclass(frozen=True)
class Config:
    image: ImageShape = (3, 225, 225)
    """Shape of one picture (channels, height, width); uint8 or float32 of 0 to 1."""
    objects: Count = 5
    """Boxes that a row of the data set has room for."""
    grid: Several = 24
    """d, cells of a mask in a row."""
    sides: Pair = (2, 24)
    """Least and greatest height and width, in cells, of the boxes that are tried."""
    ground: Amount = 0.2
    """lambda, the weight of a cell that no object covers; one that is covered counts 1 more."""
    widths: Counts = (96, 256, 384, 384, 256)
    """Maps of the five convolutions."""
    hidden: Count = 4096
    """Units of each of the two hidden layers."""
    kernel: Count = 11
    """Side of the filters of the first convolution; 5 suits small pictures."""
    stride: Count = 4
    """Stride of the first convolution; 1 or 2 suits small pictures."""

    def __post_init__(self) -> None:
        if len(self.widths) != 5:
            raise ValueError(f"widths has {len(self.widths)} numbers; name all five convolutions")
        if not self.sides[0] <= self.sides[1] <= self.grid:
            raise ValueError(f"sides {list(self.sides)} do not lie in order within a grid of {self.grid} cells")
        if min(map(self.map_side, self.image[1:])) < 1:
            raise ValueError(
                f"nothing is left of {self.image[1]} x {self.image[2]} after three pools; lower the stride"
            )

    def map_side(self, side: int) -> int:
        """Side of the maps behind the third pool."""
        side = (side + 4 - self.kernel) // self.stride + 1
        for _ in range(3):
            side = (side - 3) // 2 + 1
        return side


class ObjectMasks(Learner):
    targets = frozenset({"boxes"})
    primary, better = "iou", "higher"
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        a, b, c, d, e = config.widths
        self.features = nn.Sequential(
            *(nn.Conv2d(config.image[0], a, config.kernel, config.stride, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(c, d, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(d, e, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        )
        height, width = map(config.map_side, config.image[1:])
        self.dense = nn.Sequential(
            *(nn.Linear(e * height * width, config.hidden), nn.ReLU()),
            *(nn.Linear(config.hidden, config.hidden), nn.ReLU()),
            nn.Linear(config.hidden, PARTS * config.grid**2),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        nn.init.normal_(cast(nn.Linear, self.dense[-1]).weight, std=0.01)  # empty masks at the start

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {
            "image": Column.sample(config.image),
            "boxes": Column.numbers((config.objects, 4), 0, max(config.image[1:]), meaning="side of a box in pixels"),
        }

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"boxes": Answer("boxes", "the best boxes, best first"), "scores": Answer("values", "of the boxes")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        boxes, scores = self.read(self.masks(batch["image"]))
        return {"boxes": boxes / self.cells(torch.ones_like(boxes)), "scores": scores}

    def masks(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 5, d, d)."""
        flat = self.dense(self.features(2 * to_unit(image) - 1).flatten(1)).float()
        return flat.view(-1, PARTS, self.config.grid, self.config.grid)

    def cells(self, boxes: Tensor) -> Tensor:
        """Boxes in pixels (..., 4) -> in cells."""
        height, width = self.config.image[1:]
        return boxes * (self.config.grid / torch.tensor([height, width] * 2, device=boxes.device))

    def losses(self, found: Tensor, boxes: Tensor) -> Tensor:
        """(B,): the weighted squared error of masks (B, 5, d, d) to those of boxes in pixels (B, n, 4)."""
        true = drawn(self.cells(boxes), self.config.grid)
        shown("masks", lambda: {"told": found[:, 0], "true": true[:, 0]})
        return ((true + self.config.ground) * (found - true).square()).mean((1, 2, 3))

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        return self.losses(self.masks(batch["image"]), batch["boxes"]).mean(), {}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        masks = self.masks(batch["image"])
        best = self.matched(masks, batch["boxes"])
        hits = (best > OVERLAP).float()
        return {"loss": mean(self.losses(masks, batch["boxes"])), "iou": mean(best), "recall": mean(hits)}

    def matched(self, masks: Tensor, boxes: Tensor) -> Tensor:
        """(N,): of each of the N objects, the overlap with the nearest of as many boxes as its picture has objects."""
        cells = self.cells(boxes)
        there = area(cells) > 0  # (B, n)
        found, _ = self.read(masks)
        overlaps = iou(cells[:, :, None], found[:, None])  # (B, n, n)
        counted = torch.arange(found.shape[1], device=masks.device) < there.sum(1, keepdim=True)  # (B, n)
        return overlaps.masked_fill(~counted[:, None], 0.0).max(2).values[there]

    def read(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Masks (B, 5, d, d) -> the best boxes in cells (B, n, 4), and their scores (B, n), best first."""
        boxes = candidates(self.config.grid, self.config.sides).to(masks.device)  # (M, 4)
        scores = scored(masks, boxes)  # (B, M)
        chosen, values = [], []
        for _ in range(self.config.objects):
            top = scores.max(1)
            chosen.append(boxes[top.indices])
            values.append(top.values)
            scores = scores.masked_fill(iou(chosen[-1][:, None], boxes) > OVERLAP, -torch.inf)
        return torch.stack(chosen, 1), torch.stack(values, 1)


def candidates(grid: int, sides: tuple[int, int]) -> Tensor:
    """(M, 4): all boxes on the grid with sides within these two, in cells: top, left, bottom, right."""
    ends = itertools.product(range(grid + 1), repeat=2)
    spans = torch.tensor([(low, high) for low, high in ends if sides[0] <= high - low <= sides[1]])  # (K, 2)
    rows, columns = spans.repeat_interleave(len(spans), 0), spans.repeat(len(spans), 1)
    return torch.stack([rows[:, 0], columns[:, 0], rows[:, 1], columns[:, 1]], 1).float()


def parts(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) -> (..., 5, 4): whole, top, bottom, left, right."""
    top, left, bottom, right = boxes.unbind(-1)
    y, x = (top + bottom) / 2, (left + right) / 2
    halves = ((top, left, y, right), (y, left, bottom, right), (top, left, bottom, x), (top, x, bottom, right))
    return torch.stack([boxes, *(torch.stack(half, -1) for half in halves)], -2)


def drawn(boxes: Tensor, grid: int) -> Tensor:
    """Boxes in cells (B, n, 4) -> (B, 5, d, d): the part of each cell that they cover, and that their halves cover."""
    low = torch.arange(grid, device=boxes.device)
    top, left, bottom, right = parts(boxes.float()).unbind(-1)  # (B, n, 5) each
    down, across = (
        (b[..., None].clamp(max=low + 1) - a[..., None].clamp(min=low)).clamp(min=0)
        for a, b in ((top, bottom), (left, right))
    )  # (B, n, 5, d)
    return torch.einsum("bnpi,bnpj->bpij", down, across).clamp(max=1)


def scored(masks: Tensor, boxes: Tensor) -> Tensor:
    """(B, M): scores of boxes (M, 4) on whole cells, by sums over rectangles; halves may cut a cell in two."""
    fine = masks.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4  # (B, 5, 2d, 2d), cells of half the side
    table = F.pad(fine.cumsum(2).cumsum(3), (1, 0, 1, 0))  # [i, j] = the sum above and left of it
    pieces, total = parts(boxes), torch.zeros(masks.shape[0], len(boxes), device=masks.device)

    def summed(h: int, region: Tensor) -> Tensor:
        top, left, bottom, right = (2 * region).long().unbind(-1)
        of = table[:, h]
        return of[:, bottom, right] - of[:, top, right] - of[:, bottom, left] + of[:, top, left]  # (B, M)

    for h in range(1, PARTS):
        here, there = pieces[:, h], pieces[:, OPPOSITE[h]]
        total += summed(h, here) / area(here) - summed(h, there) / area(there)
    around = torch.cat([boxes[:, :2] - 1, boxes[:, 2:] + 1], 1).clamp(0, masks.shape[-1])
    inside = summed(0, boxes)
    frame = (summed(0, around) - inside) / (area(around) - area(boxes)).clamp(min=1)
    return total + inside / area(boxes) - frame


def area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4), broadcast."""
    corner = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    common = corner.clamp(min=0).prod(-1)
    return common / (area(a) + area(b) - common).clamp(min=1e-9)
