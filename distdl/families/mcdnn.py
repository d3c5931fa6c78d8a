"""Multi-column deep neural network: the average of networks that see the same digit at other widths.

Ciresan, Meier & Schmidhuber 2012, CVPR ("Multi-column Deep Neural Networks for Image Classification").

    a column: 1x29x29 -> 20C4 -> MP2 -> 40C5 -> MP3 -> 150N -> 10N,        p = mean over columns of softmax(logits)

nCk is n maps with kernels of side k, MPk max pooling, nN n units; tanh throughout. Before it enters a column, the digit
(what is brighter than the background) is stretched or squeezed sideways to a width of 10, 12, 14, 16, 18 or 20 pixels; a
seventh input is left as it is. Five columns for each input make 35. They never exchange a gradient: the loss is the sum of
their cross entropies, so each learns as if it were alone, and only the answers are averaged.

76,040 parameters a column = 340 + 20,040 + 54,150 + 1,510; 2,661,400 in the paper's 35 columns, whose test error on MNIST
was 0.23 %. The paper also distorts every training picture anew in each pass, which is left to the data set here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Count, Several
from distdl.learner import Answer, Batch, Column, Learner
from distdl.learner.answers import CLASSES
from distdl.learner.labels import filled, mean_known, mean_loss
from distdl.metrics import Metrics
from distdl.nn.images import to_unit
from distdl.nn.watch import seen, show_filters

SIDE = 28  # pixels of a picture
FRAME = 29  # pixels that a column sees, so that its maps come out even


@dataclass(frozen=True)
class Config:
    image: tuple[
        Annotated[int, Field(gt=0, le=1)], Annotated[int, Field(gt=0, le=28)], Annotated[int, Field(gt=0, le=28)]
    ] = (1, 28, 28)
    """Shape of one picture (1, height, width); smaller ones are enlarged to 28x28. uint8, or float32 in 0..1."""
    classes: Several = 10
    """Number of classes."""
    widths: tuple[Annotated[int, Field(ge=0, le=28)], ...] = (10, 12, 14, 16, 18, 20, 0)
    """Width of the digit in pixels for each kind of input; 0: as it is."""
    columns_per_width: Count = 5
    """Columns that see each kind of input, apart in their initial weights."""

    def __post_init__(self) -> None:
        if not self.widths or len(set(self.widths)) < len(self.widths):
            raise ValueError("widths needs at least one number, each of them once; columns_per_width repeats columns")


class ColumnNet(nn.Module):
    """1x29x29-20C4-MP2-40C5-MP3-150N-10N."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 20, 4), nn.Conv2d(20, 40, 5)
        self.dense, self.head = nn.Linear(40 * 3 * 3, 150), nn.Linear(150, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.tanh(self.c1(x)), 2)  # (B, 20, 13, 13)
        x = F.max_pool2d(torch.tanh(self.c2(x)), 3)  # (B, 40, 3, 3)
        return self.head(torch.tanh(self.dense(x.flatten(1))))  # (B, K)


class MultiColumn(Learner):
    primary, better = "accuracy", "higher"
    class_column = "label"
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.widths = [width for width in config.widths for _ in range(config.columns_per_width)]
        self.nets = nn.ModuleList(ColumnNet(config.classes) for _ in self.widths)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"image": Column.sample(config.image), "label": Column.label(config.classes)}

    def logits(self, batch: Batch) -> Tensor:
        """(N, B, K) of the N columns."""
        x = to_unit(batch["image"])  # (B, 1, H, W)
        if x.shape[-2:] != (SIDE, SIDE):
            x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
        x = F.pad(x, (0, FRAME - SIDE, 0, FRAME - SIDE))  # (B, 1, 29, 29)
        inputs = {width: of_width(x, width) if width else x for width in self.config.widths}
        return torch.stack([net(inputs[width]) for net, width in zip(self.nets, self.widths)])

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return CLASSES

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        together = self.logits(batch).softmax(-1).mean(0)
        return {"class": together.argmax(-1), "probabilities": together}

    def losses(self, logits: Tensor, label: Tensor) -> Tensor:
        """Cross entropy of every sample (B,), summed over columns: no column feels how many others there are."""
        return sum(F.cross_entropy(column, filled(label), reduction="none") for column in logits)  # type: ignore[return-value]

    def answers(self, logits: Tensor, label: Tensor) -> Metrics:
        """`accuracy` of the average, `column_accuracy` of the columns' mean, and each column's own."""
        right = (logits.argmax(-1) == label).float()  # (N, B)
        shares = logits.softmax(-1).mean(0)  # (B, K)
        seen("classes", shares.log(), label)
        together = shares.argmax(-1) == label  # (B,)
        each = {f"accuracy_column_{i}": mean_known(column, label) for i, column in enumerate(right)}
        columns = mean_known(right.T, label)
        return {"accuracy": mean_known(together.float(), label), "column_accuracy": columns, **each}

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        logits, label = self.logits(batch), batch["label"]  # (N, B, K), (B,)
        answers = self.answers(logits, label)
        return mean_loss(self.losses(logits, label), batch), {
            name: answers[name] for name in ("accuracy", "column_accuracy")
        }

    def evaluate(self, batch: Batch) -> Metrics:
        logits, label = self.logits(batch), batch["label"]
        show_filters(self)
        return {"loss": mean_known(self.losses(logits, label), label), **self.answers(logits, label)}


def of_width(x: Tensor, width: int) -> Tensor:
    """Pictures (B, 1, H, W) whose digit is stretched or squeezed sideways to `width` pixels, and centred.

    Each pixel of the new row is a mean of old ones, weighted by a tent as wide as the pixels are squeezed (bilinear
    interpolation where they are stretched). An empty picture stays so.
    """
    place = torch.arange(x.shape[-1], device=x.device, dtype=x.dtype)  # (W,)
    ink = (x > 0.1).any(2).any(1)  # (B, W): the columns of pixels that the digit touches
    left = torch.where(ink, place, place[-1]).amin(-1)  # (B,)
    right = torch.where(ink, place, place[0]).amax(-1)
    zoom = (right - left + 1).clamp(min=1) / width  # old pixels for a new one
    middle = (place[-1] - 1) / 2  # of the 28 pixels inside the frame
    source = (left + right)[:, None] / 2 + (place - middle) * zoom[:, None]  # (B, W): where a new pixel looks
    distance = (source[:, None] - place[:, None]).abs()  # (B, W old, W new)
    tent = (1 - distance / zoom.clamp(min=1)[:, None, None]).clamp(min=0)
    return x @ (tent / tent.sum(1, keepdim=True).clamp(min=1))[:, None]
