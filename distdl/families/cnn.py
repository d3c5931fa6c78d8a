"""Convolutional network of any depth (LeCun et al. 1989, Neural Computation 1:541; VGG, Simonyan & Zisserman 2015, ICLR).

    h_l = pool(act(norm(W_l * h_{l-1} + b_l))),        logits = dense layers of h_L

`*` is a convolution that keeps the size of its maps, padded with zeros. The dense layers see all places of the last maps,
or with `average` the mean of each map alone (Lin, Chen & Yan 2014). Trained by cross entropy
(learner/classifier.py). The defaults have 421,738 parameters = convolutions 18,720 + gains and shifts 192 + dense layers
402,826.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor, nn

from distdl.config.fields import Activation, Count, Counts, ImageShape, Init, Norm, OpenShare, Several
from distdl.config.marks import INVISIBLE, TRAINING_ONLY
from distdl.layout.noise import Dropout
from distdl.learner import Batch, Column
from distdl.learner.classifier import Classifier
from distdl.nn import blocks
from distdl.nn.images import to_unit


@dataclass(frozen=True)
class Config:
    image: ImageShape = (1, 28, 28)
    """Shape of one picture (channels, height, width); uint8 (scaled to 0..1) or float32."""
    classes: Several = 10
    """Number of classes."""
    stages: tuple[tuple[Count, Count, Count], ...] = ((32, 3, 2), (64, 3, 2))
    """Of each stage the maps, the side of the kernel (odd) and the side of the pooling window (1: no pooling)."""
    pool: Literal["max", "mean"] = "max"
    """What a pooling window passes on."""
    activation: Annotated[Activation, INVISIBLE] = "relu"
    """Non-linearity of the convolutions and of the hidden dense layers."""
    norm: Annotated[Norm, INVISIBLE] = "batch"
    """Normalise the sums of the maps before the non-linearity; batch: of each map over the batch (Ioffe & Szegedy 2015)."""
    init: Init = "default"
    """How fresh weights are drawn; default: as torch does, uniform in +-1 / sqrt(inputs)."""
    average: bool = False
    """The dense layers see the mean of each map instead of all its places."""
    dense: Counts = (128,)
    """Units of each hidden dense layer; empty: the classes come straight from the maps."""
    dropout: Annotated[OpenShare, TRAINING_ONLY] = 0.0
    """Probability that an input of a dense layer is silenced in training."""

    def __post_init__(self) -> None:
        for number, (_, kernel, _) in enumerate(self.stages, 1):
            if kernel % 2 == 0:
                raise ValueError(f"stage {number} has a kernel of {kernel}, which has no middle: {kernel + 1} has one")
        side = smallest = min(self.image[1:])
        for number, (_, _, pool) in enumerate(self.stages, 1):
            side //= pool
            if side == 0:
                raise ValueError(f"nothing of {smallest} pixels is left after the pooling of stage {number}: pool less")


class ConvNet(Classifier):
    batch_coupled = True  # with batch normalisation
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        act = blocks.ACTIVATIONS[config.activation]
        pool = {"max": nn.MaxPool2d, "mean": nn.AvgPool2d}[config.pool]
        maps, height, width = config.image
        layers: list[nn.Module] = []
        for out, kernel, window in config.stages:
            # A bias before batch normalisation would be subtracted again: it could not learn.
            layers.append(nn.Conv2d(maps, out, kernel, padding=kernel // 2, bias=config.norm != "batch"))
            layers += [*blocks.normalisation(config.norm, out), act()]
            if window > 1:
                layers.append(pool(window))
            maps, height, width = out, height // window, width // window
        if config.average:
            layers.append(nn.AdaptiveAvgPool2d(1))
            height = width = 1
        layers.append(nn.Flatten())
        widths = (maps * height * width, *config.dense, config.classes)
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            layers += [*([act()] if i else []), Dropout(config.dropout), nn.Linear(before, after)]
        self.net = nn.Sequential(*layers)
        self.batch_coupled = config.norm == "batch"
        blocks.initialise(self.net, config.init)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"image": Column.sample(config.image), "label": Column.label(config.classes)}

    def logits(self, batch: Batch) -> Tensor:
        return self.net(to_unit(batch["image"]))  # (B, C, H, W) -> (B, K)
