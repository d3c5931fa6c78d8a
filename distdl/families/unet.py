"""U-Net, a class for every pixel (Ronneberger, Fischer & Brox 2015, MICCAI).

    down, 4 times:  two 3x3 convolutions with ReLU, kept for later; max-pool 2x2, twice the maps      64 ... 1024 maps
    up, 4 times:    2x2 up-convolution, half the maps; beside it the kept maps, cropped; two 3x3 convolutions with ReLU
    at the end:     1x1 convolution to the classes

No convolution is padded, so that each class is decided from real surroundings only: 572x572 pixels give 388x388 classes,
and a large picture is covered by tiles that overlap. Trained by cross entropy with a weight for every pixel (equation 2),

    w(x) = w_class(x) + w0 exp(-(d1(x) + d2(x))^2 / 2 sigma^2)

d1, d2 = distances to the two nearest objects: the exponential is the column `border` that the source `segmentation` writes.
31,030,658 parameters from 1 channel to 2 classes, 31,031,745 from 3 to 1; with batch normalisation 31,042,434.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Amount, AmountOrZero, Count, CountOrZero, ImageShape, OpenShare
from distdl.config.marks import TRAINING_ONLY
from distdl.layout import noise
from distdl.learner import Answer, Batch, Column, Learner
from distdl.learner.labels import as_count, filled, known, mean_known, mean_loss
from distdl.metrics import Mean, Metrics
from distdl.nn.batch_norm import BatchNorm
from distdl.nn.images import to_unit
from distdl.nn.watch import shown

GRID = 3  # points of the coarse grid whose random displacements bend a picture (section 3.1)


@dataclass(frozen=True)
class Config:
    image: ImageShape = (1, 572, 572)
    """Shape of one tile (channels, height, width); uint8 or float32. The mask has its height and width."""
    classes: Count = 2
    """Number of classes of a pixel."""
    width: Count = 64
    """Maps of the first level; each level down doubles them."""
    depth: Count = 4
    """Number of pools, and of up-convolutions."""
    padding: Literal["valid", "same"] = "valid"
    """valid: as in the paper, classes of the tile's inner part only; same: zeros around, classes of the whole tile."""
    batch_norm: bool = False
    """Normalise after each ReLU; after it, because before it the convolutions' biases would have no effect."""
    dropout: Annotated[OpenShare, TRAINING_ONLY] = 0.5
    """Probability that a value at the end of the contracting path (the two lowest levels) is silenced in training."""
    border_weight: AmountOrZero = 10.0
    """w0, the additional weight of the pixels between objects; 0: the data set needs no column `border`."""
    class_weights: tuple[Amount, ...] = ()
    """Weight of each class, to balance their frequencies; empty: 1 each."""
    foreground: CountOrZero = 1
    """The class whose Dice coefficient is the primary metric."""
    elastic: Annotated[AmountOrZero, TRAINING_ONLY] = 10.0
    """Standard deviation, in pixels, of the random displacements that bend the pictures in training; 0: none."""

    def __post_init__(self) -> None:
        if self.classes > 1 and self.foreground >= self.classes:
            raise ValueError(f"foreground is class {self.foreground}, of {self.classes} classes counted from 0")
        if self.class_weights and len(self.class_weights) != self.classes:
            raise ValueError(f"class_weights has {len(self.class_weights)} numbers for {self.classes} classes")
        for side in self.image[1:]:
            if self.side_out(side) < 1:
                near = [n for n in range(max(1, side - 2**self.depth), side + 400) if self.side_out(n) > 0][:3]
                take = f"one of {near}" if near else "fewer pools"
                raise ValueError(f"a side of {side} is not even before each of {self.depth} pools; take {take}")

    def side_out(self, side: int) -> int:
        """How many pixels in a row get a class: the shape law; 0 where the pools do not fit."""
        eaten = 4 if self.padding == "valid" else 0
        for _ in range(self.depth):
            side -= eaten
            if side < 2 or side % 2:
                return 0
            side //= 2
        side -= eaten
        for _ in range(self.depth):
            side = 2 * side - eaten
        return max(side, 0)


def double(n_in: int, n_out: int, config: Config) -> nn.Sequential:
    """Two 3x3 convolutions."""
    layers: list[nn.Module] = []
    for n in (n_in, n_out):
        layers += [nn.Conv2d(n, n_out, 3, padding=config.padding), nn.ReLU()]
        layers += [BatchNorm(n_out)] if config.batch_norm else []
    return nn.Sequential(*layers)


def centre(x: Tensor, size: torch.Size) -> Tensor:
    """The inner part of (..., H, W) with the last two sizes of `size`."""
    top, left = (x.shape[-2] - size[-2]) // 2, (x.shape[-1] - size[-1]) // 2
    return x[..., top : top + size[-2], left : left + size[-1]]


class UNet(Learner):
    one_graph = True
    targets = frozenset({"mask", "border"})
    primary, better = "dice", "higher"
    batch_coupled = True  # with batch_norm
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * 2**level for level in range(config.depth + 1)]
        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList([double(n, m, config) for n, m in [(config.image[0], widths[0]), *pairs]])
        self.up = nn.ModuleList([nn.ConvTranspose2d(m, n, 2, stride=2) for n, m in reversed(pairs)])
        self.merge = nn.ModuleList([double(m, n, config) for n, m in reversed(pairs)])
        self.head = nn.Conv2d(widths[0], config.classes, 1)
        self.dropout = noise.Dropout(config.dropout)
        for layer in self.modules():  # deviation sqrt(2 / N), N inputs of a unit (section 3)
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        size = config.image[1:]
        columns = {"image": Column.sample(config.image), "mask": Column.mask(config.classes, size)}
        border = Column.numbers(size, 0, meaning="weight of a pixel near a border")
        return columns | ({"border": border} if config.border_weight else {})

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"mask": Answer("mask", "the likeliest class of every pixel", of="mask")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return {"mask": self.found(self.segment(batch["image"]))}

    def found(self, logits: Tensor) -> Tensor:
        """(B, K, h, w) -> (B, h, w): the class of each pixel; of a single class whether it is there."""
        return (logits[:, 0] > 0).long() if self.config.classes == 1 else logits.argmax(1)

    def logits(self, x: Tensor) -> Tensor:
        """Pixels 0..1 (B, C, H, W) -> (B, K, h, w) of the inner part."""
        x = x - 0.5  # else filters of negative sum see nothing
        kept = []
        for level, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if level else x)
            x = self.dropout(x) if level >= self.config.depth - 1 else x
            kept.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(kept[:-1])):
            x = up(x)
            x = merge(torch.cat([centre(skip, x.shape), x], 1))
        return self.head(x)

    def measured(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted cross entropy, class found and class of each pixel that gets one, all (B, h, w)."""
        config, image = self.config, to_unit(batch["image"])
        known = ["mask", "border"] if config.border_weight else ["mask"]
        of_pixel = {name: batch[name][:, None].float() for name in known}  # (B, 1, H, W) each
        if self.training and config.elastic:
            image, of_pixel = bend(image, of_pixel, config.elastic)
        logits = self.logits(image)  # (B, K, h, w)
        of_pixel = {name: centre(values, logits.shape)[:, 0] for name, values in of_pixel.items()}
        mask = of_pixel["mask"].long()
        answer = filled(mask)
        if config.classes == 1:  # a single sigmoid: the class is there or not
            losses = F.binary_cross_entropy_with_logits(logits[:, 0], answer.float(), reduction="none")
        else:
            losses = F.cross_entropy(logits, answer, reduction="none")
        found = self.found(logits)
        shown("masks", lambda: {"picture": centre(image, logits.shape), "told": found, "true": mask})
        weights = losses.new_tensor(config.class_weights)[answer] if config.class_weights else torch.ones_like(losses)
        if config.border_weight:
            weights = weights + config.border_weight * of_pixel["border"]
        return weights * losses, found, mask

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        losses, found, mask = self.measured(batch)
        there = {
            name: values for name, values in batch.items() if name == "mask.share"
        }  # of the masks before they bend
        return mean_loss(losses, {"mask": mask, **there}, "mask"), {
            "accuracy": mean_known((found == mask).float(), mask)
        }

    def evaluate(self, batch: Batch) -> Metrics:
        losses, found, mask = self.measured(batch)
        a, b = (found == self.config.foreground) & known(mask), mask == self.config.foreground
        # Dice: twice the common pixels over all pixels of both; the sums add up over batches, their quotients would not.
        dice = Mean(2 * (a & b).sum(), as_count(a.sum() + b.sum()))
        accuracy = mean_known((found == mask).float(), mask)
        return {"loss": mean_known(losses, mask), "accuracy": accuracy, "dice": dice}

    @torch.no_grad()
    def segment(self, picture: Tensor) -> Tensor:
        """Pictures of any size (B, C, H, W) -> logits (B, K, H, W), by tiles that overlap: each sees its surroundings, and
        what lies outside the picture is mirrored (figure 2 of the paper)."""
        height, width = picture.shape[-2:]
        tile = self.config.image[1:]
        inner = [self.config.side_out(side) for side in tile]
        rows, columns = (
            mirrored(-((t - i) // 2), -(-n // i) * i + (t - i) // 2, n, picture.device)
            for t, i, n in zip(tile, inner, (height, width))
        )
        padded = to_unit(picture)[..., rows[:, None], columns]
        strips = []
        for y in range(0, height, inner[0]):
            tiles = [padded[..., y : y + tile[0], x : x + tile[1]] for x in range(0, width, inner[1])]
            strips.append(torch.cat([self.logits(seen) for seen in tiles], -1))
        return torch.cat(strips, -2)[..., :height, :width]


def mirrored(begin: int, end: int, size: int, device: torch.device) -> Tensor:
    """The numbers begin ... end - 1, reflected into 0 ... size - 1 at both ends: 1 0 | 0 1 2 | 2 1."""
    place = torch.arange(begin, end, device=device) % (2 * size)
    return torch.minimum(place, 2 * size - 1 - place)


def bend(image: Tensor, of_pixel: dict[str, Tensor], deviation: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Elastic deformation: random displacements on a coarse grid, bicubic in between (section 3.1)."""
    B, _, height, width = image.shape
    coarse = deviation * noise.normal(B, 2, GRID, GRID, device=image.device)  # in pixels
    fine = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    move = fine.permute(0, 2, 3, 1)  # (B, H, W, 2)
    y, x = (torch.linspace(-1, 1, n, device=image.device) for n in (height, width))
    still = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)  # (H, W, 2), x first, as grid_sample has it
    grid = still + move * 2 / torch.tensor([width - 1, height - 1], device=image.device)

    def at(values: Tensor, mode: str) -> Tensor:
        return F.grid_sample(values, grid, mode=mode, padding_mode="reflection", align_corners=True)

    return at(image, "bilinear"), {n: at(v, "nearest" if n == "mask" else "bilinear") for n, v in of_pixel.items()}
