"""The zip-code network of 1989: the first convolutional network that back-propagation taught to read real handwriting.

LeCun, Boser, Denker, Henderson, Howard, Hubbard & Jackel 1989, Neural Computation 1:541.

    16x16 in [-1, 1] -> H1 12@8x8, 5x5 stride 2 -> H2 12@4x4, 5x5 stride 2 -> H3 30 -> 10

Every unit is tanh(sum of weights x inputs + bias), the ten outputs too. What lies beyond the edge of a picture or a map is
background, -1. The units of a map share one kernel but each has its own bias. A map of H2 sees 8 of the 12 maps of H1;
the paper does not say which, here they are three overlapping groups. The loss is the mean squared error to +1 for the class
and -1 for the others. Weights begin in U(-2.4 / F, 2.4 / F), F being the inputs of the unit, and biases at 0.

9,760 parameters = H1 (300 + 768) + H2 (2,400 + 192) + H3 5,790 + output 310. With the inputs it has 1,256 units, and
64,660 connections. The paper reports 0.14 % error on the 7,291 training pictures and 5.0 % (102 misses) on the 2,007 test
pictures after 23 passes.
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
from distdl.learner.answers import SCORES, of_scores
from distdl.learner.labels import filled, mean_known, mean_loss
from distdl.metrics import Metrics
from distdl.nn.images import to_unit
from distdl.nn.watch import seen, shown

SIDE = 16  # pixels
MAPS = 12  # in H1, and in H2
BACKGROUND = -1.0
SEEN = ((0, 1, 2, 3, 4, 5, 6, 7), (4, 5, 6, 7, 8, 9, 10, 11), (0, 1, 2, 3, 8, 9, 10, 11))
"""The maps of H1 that the first four, the next four and the last four maps of H2 see."""


@dataclass(frozen=True)
class Config:
    image: tuple[Annotated[int, Field(gt=0, le=1)], Count, Count] = (1, 16, 16)
    """Shape of one picture (1, height, width); another size is resampled to 16x16. uint8, or float32 in [-1, 1]."""
    classes: Several = 10
    """Number of classes."""


class Maps(nn.Module):
    """A layer of maps: a 5x5 convolution of stride 2 over a background of -1, a bias for every unit, tanh."""

    place: Tensor | None

    def __init__(self, inputs: int, side: int, seen: tuple[tuple[int, ...], ...] | None = None) -> None:
        super().__init__()
        self.inputs = inputs
        groups = seen or (tuple(range(inputs)),)
        pairs = [(to, source) for to in range(MAPS) for source in groups[to * len(groups) // MAPS]]
        self.weight = nn.Parameter(torch.empty(len(pairs), 5, 5))  # one kernel for each pair of maps that are joined
        self.bias = nn.Parameter(torch.zeros(MAPS, side, side))
        spread(self.weight, 25 * len(groups[0]))
        place = torch.tensor([to * inputs + source for to, source in pairs]) if seen else None
        self.register_buffer("place", place)

    def forward(self, x: Tensor) -> Tensor:
        kernels: Tensor = self.weight
        if self.place is not None:  # one convolution with zeros where maps are not joined: a third of the time of three
            kernels = kernels.new_zeros(MAPS * self.inputs, 5, 5).index_copy(0, self.place, kernels)
        x = F.pad(x, (2, 2, 2, 2), value=BACKGROUND)
        return torch.tanh(F.conv2d(x, kernels.view(MAPS, self.inputs, 5, 5), stride=2) + self.bias)


class ZipCodeNet(Learner):
    primary, better = "error", "lower"
    class_column = "label"
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.h1 = Maps(1, 8)
        self.h2 = Maps(MAPS, 4, SEEN)
        self.h3 = nn.Linear(MAPS * 4 * 4, 30)
        self.head = nn.Linear(30, config.classes)
        for layer in (self.h3, self.head):
            spread(layer.weight, layer.in_features)
            nn.init.zeros_(layer.bias)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"image": Column.sample(config.image), "label": Column.label(config.classes)}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return SCORES

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return of_scores(self.outputs(batch["image"]))

    def read_out(self) -> nn.Module | None:
        return self.head

    def outputs(self, image: Tensor) -> Tensor:
        """(B, K) in (-1, 1); the largest is the answer."""
        x = 2 * to_unit(image) - 1 if image.dtype == torch.uint8 else image  # (B, 1, H, W)
        if x.shape[-2:] != (SIDE, SIDE):
            x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
        x = self.h2(self.h1(x))  # (B, 12, 4, 4)
        x = torch.tanh(self.h3(x.flatten(1)))  # (B, 30)
        return torch.tanh(self.head(x))

    def errors(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Squared errors (B, K), and how many answers are wrong."""
        outputs, label = self.outputs(batch["image"]), batch["label"]  # (B, K), (B,)
        seen("classes", outputs, label)
        target = 2 * F.one_hot(filled(label), self.config.classes).to(outputs.dtype) - 1
        return (outputs - target).square(), {"error": mean_known((outputs.argmax(-1) != label).float(), label)}

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        squares, metrics = self.errors(batch)
        return mean_loss(squares, batch), metrics

    def evaluate(self, batch: Batch) -> Metrics:
        squares, metrics = self.errors(batch)
        shown("filters", lambda: {"filters": self.h1.weight[:, None]})
        return {"loss": mean_known(squares, batch["label"]), **metrics}


def spread(weight: Tensor, inputs: int) -> None:
    """Initial weights as in the paper: narrow enough that the sums lie where tanh is steep."""
    nn.init.uniform_(weight, -2.4 / inputs, 2.4 / inputs)
