"""LeNet-5, a convolutional network for handwritten characters (LeCun, Bottou, Bengio & Haffner 1998, Proc. IEEE 86:2278).

    28x28 -> C1 6@5x5 pad 2 -> S2 pool 2 -> C3 16@5x5 -> S4 pool 2 -> C5 120 -> F6 84 -> 10

The form in common use: all six maps feed every map of C3, and a linear head with cross entropy stands in for the RBF units.
61,706 parameters = 156 + 2,416 + 48,120 + 10,164 + 850. Smaller pictures are enlarged to 28x28 first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.learner import Batch, Column
from distdl.nn.classifier import Classifier
from distdl.nn.images import to_unit

SIDE = 28  # pixels; C1 pads it to the paper's 32


@dataclass(frozen=True)
class Config:
    image: tuple[
        Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0, le=28)], Annotated[int, Field(gt=0, le=28)]
    ] = (1, 28, 28)
    """Shape of one picture (channels, height, width), at most 28x28 pixels; uint8 or float32."""
    classes: Annotated[int, Field(gt=1)] = 10
    """Number of classes."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Non-linearity: tanh as in the paper, or ReLU."""
    pool: Literal["mean", "max"] = "mean"
    """Sub-sampling: the mean as in the paper (without its trainable gain), or the maximum."""


class LeNet(Classifier):
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.c1 = nn.Conv2d(config.image[0], 6, 5, padding=2)
        self.c3 = nn.Conv2d(6, 16, 5)
        self.c5 = nn.Linear(16 * 5 * 5, 120)
        self.f6 = nn.Linear(120, 84)
        self.head = nn.Linear(84, config.classes)
        self.act = nn.Tanh() if config.activation == "tanh" else nn.ReLU()
        self.pool = nn.AvgPool2d(2) if config.pool == "mean" else nn.MaxPool2d(2)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"image": Column(config.image), "label": Column(())}

    def logits(self, batch: Batch) -> Tensor:
        x = to_unit(batch["image"])  # (B, C, H, W)
        if x.shape[-2:] != (SIDE, SIDE):
            x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
        x = self.pool(self.act(self.c1(x)))  # (B, 6, 14, 14)
        x = self.pool(self.act(self.c3(x)))  # (B, 16, 5, 5)
        x = self.act(self.c5(x.flatten(1)))  # (B, 120)
        return self.head(self.act(self.f6(x)))  # (B, K)
