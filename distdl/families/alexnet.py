"""AlexNet, the convolutional network that won ImageNet 2012 (Krizhevsky, Sutskever & Hinton 2012, NIPS).

    224x224x3 -> 96@11 stride 4 -> LRN, pool -> 256@5 -> LRN, pool -> 384@3 -> 384@3 -> 256@3 -> pool
              -> 4096 -> 4096 -> 1000

ReLU after every layer, pools that overlap (3x3, stride 2), dropout on both hidden layers. The two towers of the paper, one
for each of its GPUs, are `groups=2` of the second, fourth and fifth convolution. Local response normalisation divides by
the activity of the n = 5 maps around map i at the same place (section 3.3; k = 2, alpha = 1e-4, beta = 0.75):

    b_i = a_i / (k + alpha sum_{j=i-2..i+2} a_j^2)^beta

torch.nn.LocalResponseNorm divides alpha by n: there the paper's is alpha=5e-4. 60,965,224 parameters. The variant "2014" is
"one weird trick" (Krizhevsky 2014, arXiv 1404.5997), one tower of 64-192-384-256-256 without normalisation: 61,100,840.
Trained by cross entropy (learner/classifier.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import AmountOrZero, Count, Counts, ImageShape, OpenShare, Several
from distdl.config.marks import TRAINING_ONLY
from distdl.layout import noise
from distdl.learner import Batch, Column, Layer
from distdl.learner.classifier import Classifier
from distdl.nn.images import to_unit

WIDTHS = {"2012": (96, 256, 384, 384, 256), "2014": (64, 192, 384, 256, 256)}
MEAN, STD = 0.45, 0.226  # of ImageNet's pixels, all channels together

# Principal components of ImageNet's RGB values (0..1) and their standard deviations (section 4.1 of the paper).
PCA_STD = (0.2175, 0.0188, 0.0045)
PCA = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))  # a column each


@dataclass(frozen=True)
class Config:
    variant: Literal["2012", "2014"] = "2012"
    """2012: two towers and local response normalisation; 2014: one tower, none, and other widths."""
    image: ImageShape = (3, 256, 256)
    """Shape of one picture (channels, height, width); uint8 or float32."""
    side: Count = 224
    """Side of what the network sees: a random part of the picture in training, its centre in evaluation; smaller pictures
    are enlarged."""
    classes: Several = 1000
    """Number of classes."""
    widths: Counts = ()
    """Maps of the five convolutions; empty: those of the variant."""
    hidden: Count = 4096
    """Units of each of the two hidden layers."""
    kernel: Count = 11
    """Side of the filters of the first convolution; 5 suits pictures of 32x32."""
    stride: Count = 4
    """Stride of the first convolution; 1 suits pictures of 32x32."""
    dropout: Annotated[OpenShare, TRAINING_ONLY] = 0.5
    """Probability that a hidden unit is silenced in training."""
    flip: Annotated[bool, TRAINING_ONLY] = True
    """Mirror every second picture in training."""
    colour_jitter: Annotated[AmountOrZero, TRAINING_ONLY] = 0.1
    """Standard deviation of the multiples of the principal components of colour that are added in training; 0: none."""
    init: Literal["paper", "he"] = "paper"
    """Initial weights, normal. paper: of deviation 0.01, biases of 1 where the paper has them; he: of deviation sqrt(2 / n)
    for n inputs (He et al. 2015), biases of 0, with which small forms learn at once."""

    def __post_init__(self) -> None:
        if self.widths and len(self.widths) != 5:
            raise ValueError(f"widths has {len(self.widths)} numbers; name all five convolutions or none")
        if self.variant == "2012" and any(width % 2 for width in self.widths):
            raise ValueError(f"widths {list(self.widths)} cannot be halved over two towers; use even numbers")
        if self.colour_jitter and self.image[0] != 3:
            raise ValueError(f"colour_jitter needs three channels, image has {self.image[0]}; set colour_jitter to 0")
        if self.map_side() < 1:
            raise ValueError(f"nothing is left of a side of {self.side} after three pools; use a larger one")

    def map_side(self) -> int:
        """Side of the maps behind the third pool."""
        side = (self.side + 4 - self.kernel) // self.stride + 1
        for _ in range(3):
            side = (side - 3) // 2 + 1
        return side


class LocalResponseNorm(nn.Module):
    """Competition between neighbouring maps, as in the docstring of this file."""

    def forward(self, x: Tensor) -> Tensor:
        maps = x.shape[1]
        squares = F.pad(x.square(), (0, 0, 0, 0, 2, 2))  # (B, C + 4, H, W)
        activity = sum(squares[:, j : j + maps] for j in range(5))  # (B, C, H, W)
        return x * (2 + 1e-4 * activity) ** -0.75


class AlexNet(Classifier):
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3", "tensor", "pipeline"})
    tensor_plan = {"classifier.*": "gather"}  # where 96 % of the weights are

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        a, b, c, d, e = config.widths or WIDTHS[config.variant]
        towers = 2 if config.variant == "2012" else 1
        norm = LocalResponseNorm if config.variant == "2012" else nn.Identity
        first = nn.Conv2d(config.image[0], a, config.kernel, config.stride, padding=2)
        self.features = nn.Sequential(
            *(first, nn.ReLU(), norm(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(a, b, 5, padding=2, groups=towers), nn.ReLU(), norm(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU()),  # the only one where the towers meet
            *(nn.Conv2d(c, d, 3, padding=1, groups=towers), nn.ReLU()),
            *(nn.Conv2d(d, e, 3, padding=1, groups=towers), nn.ReLU(), nn.MaxPool2d(3, 2)),
        )
        self.classifier = nn.Sequential(
            *(nn.Linear(e * config.map_side() ** 2, config.hidden), nn.ReLU(), noise.Dropout(config.dropout)),
            *(nn.Linear(config.hidden, config.hidden), nn.ReLU(), noise.Dropout(config.dropout)),
            nn.Linear(config.hidden, config.classes),
        )
        layers = [m for m in self.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        for i, layer in enumerate(layers):
            assert layer.bias is not None
            if config.init == "paper":  # section 5; biases of 1 give the ReLUs positive inputs at the start
                nn.init.normal_(layer.weight, 0, 0.01)
                nn.init.constant_(layer.bias, 1.0 if i in (1, 3, 4, 5, 6) else 0.0)
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"image": Column.sample(config.image), "label": Column.label(config.classes)}

    def inputs(self, batch: Batch) -> Tensor:
        return (self.view(to_unit(batch["image"])) - MEAN) / STD  # (B, C, side, side)

    def layers(self) -> list[Layer]:
        convolutions = (self.features[:4], self.features[4:8], self.features[8:])
        dense = (self.classifier[:3], self.classifier[3:6], self.classifier[6:])
        first = Layer("dense 1", lambda x: dense[0](x.flatten(1)), (dense[0],))
        maps = [Layer(name, part, (part,)) for name, part in zip(("maps 1", "maps 2", "maps 3-5"), convolutions)]
        return [*maps, first, *(Layer(f"dense {i + 1}", dense[i], (dense[i],)) for i in (1, 2))]

    def view(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, side, side): what the network sees, in training with random variations."""
        config, side, (B, _, height, width) = self.config, self.config.side, x.shape
        if min(height, width) < side:
            x = F.interpolate(x, (max(height, side), max(width, side)), mode="bilinear", align_corners=False)
            height, width = x.shape[-2:]
        if not self.training:
            top, left = (height - side) // 2, (width - side) // 2
            return x[..., top : top + side, left : left + side]
        if height > side or width > side:
            room = torch.tensor([height - side + 1, width - side + 1], device=x.device)
            corner = (noise.uniform(B, 2, device=x.device) * room).long()  # (B, 2)
            rows, columns = corner.T[:, :, None] + torch.arange(side, device=x.device)  # (B, side) each
            samples = torch.arange(B, device=x.device)[:, None, None]
            x = x[samples, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        if config.flip:
            mirrored = noise.uniform(B, 1, 1, 1, device=x.device) < 0.5
            x = torch.where(mirrored, x.flip(-1), x)
        if config.colour_jitter:
            amount = config.colour_jitter * noise.normal(B, 3, device=x.device) * x.new_tensor(PCA_STD)  # (B, 3)
            x = x + (amount @ x.new_tensor(PCA).T)[:, :, None, None]
        return x
