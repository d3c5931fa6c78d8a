"""The cat network of DistBelief: a deep locally connected autoencoder (Le et al. 2012, ICML; Dean et al. 2012, NIPS).

    a = W x     each output has weights of its own for `field` x `field` pixels of all maps: local, and not shared
    p = sqrt(eps + sum of a^2 over `pool` x `pool` neighbours in one map)                          L2 pooling
    g = p - G * p,   y = g / max(0.01, sqrt(G * g^2))    G: a Gaussian window, mean over maps      contrast normalisation
    loss = sum over stages of (|W^T W x - x|^2 + `sparsity` sum p) / values of x                   topographic RICA

All stages learn together, each to restore what it gets from the one below; `tied: false` decodes by a second matrix. A
picture enters with mean 0 and variance 1. No labels are learned from: `neuron` finds, afterwards, the single output of the
last stage that tells one class from the rest best, the way in which the cat was found.

Three stages of 8 maps, fields of 18 and pools of 5 over 3 x 200 x 200 pixels have 260,410,464 + 544,195,584 + 412,252,416 =
1,216,858,464 parameters, the paper's billion; `tied: false`, the paper's own form, has twice as many.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import AmountOrZero, Count, ImageShape
from distdl.learner import Answer, Batch, Column, Learner
from distdl.metrics import Metrics, mean
from distdl.nn.images import to_unit
from distdl.nn.watch import as_filters, shown


@dataclass(frozen=True)
class Config:
    image: ImageShape = (3, 200, 200)
    """Channels, height and width of a picture."""
    stages: Count = 3
    """Stages of filters, pooling and normalisation."""
    maps: Count = 8
    """Filters at each place."""
    field: Count = 18
    """Pixels of a side of what a filter sees."""
    stride: Count = 1
    """Pixels from one place to the next."""
    pool: Count = 5
    """Filters of a side that are pooled, one map at a time, at every place."""
    window: Count = 5
    """Outputs of a side whose contrast is normalised; odd."""
    sparsity: AmountOrZero = 0.1
    """Weight of the pooled outputs in the loss."""
    tied: bool = True
    """Restore by the filters themselves."""

    def __post_init__(self) -> None:
        if self.window % 2 == 0:
            raise ValueError(f"window is {self.window}; an odd one has a middle")
        side = min(self.image[1:])
        for stage in range(self.stages):
            side = ((side - self.field) // self.stride + 1 - self.pool + 1) if side >= self.field else 0
            if side < 1:
                raise ValueError(
                    f"nothing is left for stage {stage + 1}; choose fewer stages, or smaller fields or pools"
                )


EPS, FLOOR = 1e-4, 0.01


class Stage(nn.Module):
    """(B, C, H, W) -> (B, M, H', W'), with the squared error of the restored input and the sum of what is pooled, (B,)."""

    def __init__(self, config: Config, size: tuple[int, int, int]) -> None:
        super().__init__()
        self.config, self.size = config, size
        self.places = tuple((n - config.field) // config.stride + 1 for n in size[1:])
        seen, places = size[0] * config.field**2, math.prod(self.places)
        # Filters of this length make W^T W x about as large as x, however often they overlap.
        length = min(1.0, math.prod(size) / (config.maps * places)) ** 0.5
        self.weight = nn.Parameter(torch.randn(config.maps, seen, places) * length / seen**0.5)
        self.decoder = None if config.tied else nn.Parameter(self.weight.detach().clone())
        away = torch.arange(config.window) - config.window // 2
        bell = torch.exp(-(away**2) / (2 * (config.window / 4) ** 2))
        self.bell = nn.Buffer((bell[:, None] * bell / bell.sum() ** 2)[None, None], persistent=False)

    @property
    def out(self) -> tuple[int, int, int]:
        side = self.config.pool - 1
        return self.config.maps, self.places[0] - side, self.places[1] - side

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = self.filters(x)
        p = self.pooled(a)
        return self.normalised(p), (self.restore(a) - x).square().sum((1, 2, 3)), p.sum((1, 2, 3))

    def kernels(self) -> Tensor:
        """Those of the first place, as every place has its own: (M, C, field, field)."""
        field, places = self.config.field, math.prod(self.places)
        return as_filters(self.weight, (self.size[0], field, field, places))[..., 0]

    def filters(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, M, *places)."""
        seen = F.unfold(x, self.config.field, stride=self.config.stride)  # (B, D, L)
        return torch.einsum("bdl,mdl->bml", seen, self.weight).unflatten(-1, self.places)

    def restore(self, a: Tensor) -> Tensor:
        """(B, M, *places) -> (B, C, H, W): the filters, each times its output, added up where they overlap."""
        seen = torch.einsum("bml,mdl->bdl", a.flatten(2), self.weight if self.decoder is None else self.decoder)
        return F.fold(seen, self.size[1:], self.config.field, stride=self.config.stride)

    def pooled(self, a: Tensor) -> Tensor:
        """(B, M, *places) -> (B, M, H', W')."""
        side = self.config.pool
        return (F.avg_pool2d(a.square(), side, stride=1) * side**2 + EPS).sqrt()

    def around(self, p: Tensor) -> Tensor:
        """Weighted mean over the maps and the window, of which a part may lie outside: (B, M, H, W) -> (B, 1, H, W)."""
        edge = self.config.window // 2
        inside = F.conv2d(torch.ones_like(p[:1, :1]), self.bell, padding=edge)
        return F.conv2d(p.mean(1, keepdim=True), self.bell, padding=edge) / inside

    def normalised(self, p: Tensor) -> Tensor:
        g = p - self.around(p)
        return g / self.around(g.square()).sqrt().clamp(min=FLOOR)


class DistBeliefAutoencoder(Learner):
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        stages: list[Stage] = []
        for _ in range(config.stages):
            stages.append(Stage(config, stages[-1].out if stages else config.image))
        self.stages = nn.ModuleList(stages)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"image": Column.sample(config.image)}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"embedding": Answer("embedding", "outputs of the last stage")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return {"embedding": self.outputs(batch)}

    def picture(self, batch: Batch) -> Tensor:
        x = to_unit(batch["image"]).float()
        x = x - x.mean((1, 2, 3), keepdim=True)
        return x / x.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=FLOOR)  # (B, C, H, W)

    def measured(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss of each picture, (B,), and its parts in every stage, for each value."""
        y, losses = self.picture(batch), []
        shown("filters: of the first place", lambda: {"filters": cast(Stage, self.stages[0]).kernels()})
        parts: Metrics = {}
        for number, stage in enumerate(cast(Iterable[Stage], self.stages), 1):
            y, error, pooled = stage(y)
            losses.append((error + self.config.sparsity * pooled) / math.prod(stage.size))
            values = {"squared_error": error / math.prod(stage.size), "pooled": pooled / math.prod(stage.out)}
            parts |= {f"{name}_{number}": mean(value) for name, value in values.items()}
        return torch.stack(losses).sum(0), parts

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        losses, metrics = self.measured(batch)
        return losses.mean(), metrics

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        losses, metrics = self.measured(batch)
        return {"loss": mean(losses), **metrics}

    @torch.no_grad()
    def outputs(self, batch: Batch) -> Tensor:
        """What the neurons of the last stage say, (B, N)."""
        y = self.picture(batch)
        for stage in self.stages:
            y = stage(y)[0]
        return y.flatten(1)


def neuron(outputs: Tensor, wanted: Tensor) -> tuple[int, float]:
    """The neuron, and the threshold above which it says that a picture is wanted, that are right most often.

    `outputs` (n, N) of pictures, of which `wanted` (n,) says whether they are."""
    by_output, order = outputs.sort(0)  # (n, N) each
    below = torch.arange(1, len(order) + 1, device=order.device)[:, None]
    wanted_below = wanted[order].cumsum(0)
    right = below - wanted_below + wanted.sum() - wanted_below
    best = int(right.max(0).values.argmax())
    return best, float(by_output[right[:, best].argmax(), best])
