"""LeNet-5, a convolutional network for handwritten characters (LeCun, Bottou, Bengio & Haffner 1998, Proc. IEEE 86:2278).

    28x28 -> C1 6@5x5 pad 2 -> S2 pool 2 -> C3 16@5x5 -> S4 pool 2 -> C5 120 -> F6 84 -> 10

`modern` is the form in common use: all six maps feed every map of C3, and a linear head with cross entropy
(learner/classifier.py) stands in for the RBF units. 61,706 parameters = 156 + 2,416 + 48,120 + 10,164 + 850.

`1998` is the paper's. A unit of S2 or S4 adds four units, multiplies by a trainable coefficient and adds a trainable bias,
one pair for each map. A map of C3 sees three, four or all six maps of S2. Units up to F6 are f(a) = 1.7159 tanh(2/3 a). An
output is a radial basis function, the squared distance from F6 to a fixed drawing of the digit, 7x12 points of -1 and 1:

    y_i = sum_j (x_j - w_ij)^2,        E = y_d + log(e^-J + sum_i e^-y_i)        (equation 9; d is the class)

The first term pulls F6 to the drawing of the class, the second pushes it from those others that are not farther than J.
60,000 parameters = C1 156 + S2 12 + C3 1,516 + S4 32 + C5 48,120 + F6 10,164. Smaller pictures are enlarged to 28x28.

Both stand in one file because they are one network: the same layers in the same order, with the same names, units and cuts.
What differs is how S2 and S4 add, what C3 sees, f, and how the output is read. The parts of 1998 are at the end.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import AmountOrZero, Count, Several
from distdl.config.marks import INVISIBLE
from distdl.learner import Batch, Column, Layer
from distdl.learner.classifier import Classifier
from distdl.learner.labels import accuracy, filled
from distdl.metrics import Metrics
from distdl.nn.images import to_unit

SIDE = 28  # pixels; a frame of 2 makes it the paper's 32
PAPER, INK = -0.1, 1.175  # grey levels of 1998, so that the inputs have about mean 0 and variance 1


@dataclass(frozen=True)
class Config:
    image: tuple[Count, Annotated[int, Field(gt=0, le=28)], Annotated[int, Field(gt=0, le=28)]] = (1, 28, 28)
    """Shape of one picture (channels, height, width), at most 28x28 pixels; uint8 or float32."""
    classes: Several = 10
    """Number of classes; the form of 1998 has drawings of the ten digits, for at most ten."""
    variant: Literal["modern", "1998"] = "modern"
    """The form in common use, or the paper's with trainable sub-sampling, a sparse C3 and RBF units."""
    activation: Annotated[Literal["tanh", "relu"], INVISIBLE] = "tanh"
    """Non-linearity of the modern form: tanh, or ReLU."""
    pool: Literal["max", "mean"] = "mean"
    """Sub-sampling of the modern form: the maximum, or the mean (the paper's without its trainable coefficient)."""
    margin: AmountOrZero = 1.0
    """J of equation 9: the squared distance beyond which the drawings of other classes are left alone."""

    def __post_init__(self) -> None:
        if self.variant == "1998" and (self.activation, self.pool) != ("tanh", "mean"):
            raise ValueError("the form of 1998 has its own units: leave out activation and pool, or set variant")
        if self.variant == "1998" and self.classes > 10:
            raise ValueError("the form of 1998 has drawings of ten digits: use at most 10 classes, or variant: modern")


class LeNet(Classifier):
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3", "tensor", "pipeline"})
    tensor_plan = {"c1": "gather", "c3": "gather", "c5": "gather", "f6": "gather", "head": "gather"}
    act: nn.Module
    s2: nn.Module
    s4: nn.Module
    head: nn.Module

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        modern = config.variant == "modern"
        self.c1 = nn.Conv2d(config.image[0], 6, 5, padding=2 if modern else 0)
        self.c3 = nn.Conv2d(6, 16, 5) if modern else SparseConv(SEEN)
        self.c5 = nn.Linear(16 * 5 * 5, 120)
        self.f6 = nn.Linear(120, 84)
        if modern:
            self.act = nn.Tanh() if config.activation == "tanh" else nn.ReLU()
            self.s2 = self.s4 = nn.AvgPool2d(2) if config.pool == "mean" else nn.MaxPool2d(2)
            self.head = nn.Linear(84, config.classes)
        else:
            self.act = ScaledTanh()
            self.s2, self.s4 = SubSampling(6), SubSampling(16)
            self.head = Drawings(config.classes)
            for layer in (self.c1, self.c5, self.f6):  # C3 has seen to its own
                nn.init.uniform_(layer.weight, *within(layer.weight[0].numel()))
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"image": Column.sample(config.image), "label": Column.label(config.classes)}

    def inputs(self, batch: Batch) -> Tensor:
        x = to_unit(batch["image"])  # (B, C, H, W)
        if x.shape[-2:] != (SIDE, SIDE):
            x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
        if self.config.variant == "1998":
            x = PAPER + (INK - PAPER) * F.pad(x, (2, 2, 2, 2))  # (B, C, 32, 32)
        return x

    def layers(self) -> list[Layer]:
        return [
            Layer("C1 and S2", lambda x: self.s2(self.act(self.c1(x))), (self.c1, self.s2)),  # (B, 6, 14, 14)
            Layer("C3 and S4", lambda x: self.s4(self.act(self.c3(x))), (self.c3, self.s4)),  # (B, 16, 5, 5)
            Layer("C5", lambda x: self.act(self.c5(x.flatten(1))), (self.c5,)),  # (B, 120)
            Layer("F6 and output", lambda x: self.head(self.act(self.f6(x))), (self.f6, self.head)),  # (B, K)
        ]

    def losses(self, output: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        if self.config.variant == "modern":
            return super().losses(output, batch)
        label = batch["label"]
        far = F.pad(output, (0, 1), value=-self.config.margin)  # equation 9: an eleventh class, at the distance J
        return F.cross_entropy(far, filled(label), reduction="none"), {"accuracy": accuracy(output, label)}


# -- the layers of 1998 ------------------------------------------------------------------------------------------------

SEEN = (  # table I: the maps of S2 that each map of C3 sees
    *((i, (i + 1) % 6, (i + 2) % 6) for i in range(6)),
    *((i, (i + 1) % 6, (i + 2) % 6, (i + 3) % 6) for i in range(6)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)

DRAWINGS = """
.XXXXX. ..XX... .XXXXX. XXXXXXX ....XX.
XX...XX .XXX... XX...XX .....XX ...XXX.
XX...XX XXXX... XX...XX ....XX. ..XXXX.
XX..XXX ..XX... .....XX ...XX.. .XX.XX.
XX.XXXX ..XX... ....XX. ..XXXX. XX..XX.
XXXX.XX ..XX... ...XX.. .....XX XX..XX.
XXX..XX ..XX... ..XX... .....XX XXXXXXX
XX...XX ..XX... .XX.... .....XX ....XX.
XX...XX ..XX... XX..... .....XX ....XX.
XX...XX ..XX... XX..... XX...XX ....XX.
XX...XX ..XX... XX...XX XX...XX ....XX.
.XXXXX. XXXXXX. XXXXXXX .XXXXX. ....XX.

XXXXXXX ..XXXX. XXXXXXX .XXXXX. .XXXXX.
XX..... .XX.... .....XX XX...XX XX...XX
XX..... XX..... .....XX XX...XX XX...XX
XX..... XX..... ....XX. XX...XX XX...XX
XXXXXX. XX..... ....XX. .XX.XX. XX...XX
.....XX XXXXXX. ...XX.. ..XXX.. .XXXXXX
.....XX XX...XX ...XX.. .XX.XX. .....XX
.....XX XX...XX ..XX... XX...XX .....XX
.....XX XX...XX ..XX... XX...XX .....XX
XX...XX XX...XX .XX.... XX...XX .....XX
XX...XX XX...XX .XX.... XX...XX ....XX.
.XXXXX. .XXXXX. .XX.... .XXXXX. .XXXX..
"""  # in the manner of the paper's, which are characters of a screen font: digits that look alike have codes that are near


class ScaledTanh(nn.Module):
    """f(1) = 1 and f(-1) = -1: the targets lie where the curve bends most, and no unit need saturate to reach them."""

    def forward(self, a: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(2 / 3 * a)


class SubSampling(nn.Module):
    """The sum of 2x2 units times a coefficient plus a bias, both trainable and one for each map, through f."""

    parameter_kinds = {"coefficient": "gain"}

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.full((maps, 1, 1), 0.25))  # begins as the mean
        self.bias = nn.Parameter(torch.zeros(maps, 1, 1))
        self.act = ScaledTanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(4 * F.avg_pool2d(x, 2) * self.coefficient + self.bias)


class SparseConv(nn.Module):
    """A 5x5 convolution whose map i sees the maps seen[i] only: it is not symmetric, so maps extract different features."""

    place: Tensor

    def __init__(self, seen: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.shape = (len(seen), 1 + max(itertools.chain(*seen)), 5, 5)
        pairs = [(to, source) for to, sources in enumerate(seen) for source in sources]
        self.weight = nn.Parameter(torch.empty(len(pairs), 5, 5))  # one kernel for each pair of maps that are joined
        self.bias = nn.Parameter(torch.zeros(len(seen)))
        for i, (to, _) in enumerate(pairs):
            nn.init.uniform_(self.weight.data[i], *within(25 * len(seen[to])))
        self.register_buffer("place", torch.tensor([to * self.shape[1] + source for to, source in pairs]))

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.weight.new_zeros(self.shape[0] * self.shape[1], 5, 5).index_copy(0, self.place, self.weight)
        return F.conv2d(x, kernels.view(self.shape), self.bias)


class Drawings(nn.Module):
    """RBF units with fixed centres, negated as logits: -y (B, K)."""

    points: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        rows = [line.split() for line in DRAWINGS.splitlines() if line]  # 2 x 12 lines of five digits
        digits = ["".join(rows[12 * (k // 5) + i][k % 5] for i in range(12)) for k in range(classes)]
        self.register_buffer("points", torch.tensor([[1.0 if p == "X" else -1.0 for p in digit] for digit in digits]))

    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, None] - self.points).square().sum(-1)  # (B, 84), (K, 84) -> (B, K)


def within(inputs: int) -> tuple[float, float]:
    """Range of the initial weights of a unit, narrow enough that its sum lies where f is steep."""
    return -2.4 / inputs, 2.4 / inputs
