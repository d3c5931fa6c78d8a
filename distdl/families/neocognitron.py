"""Neocognitron, features that organise themselves and forgive shifts (Fukushima 1980, Biol. Cybern. 36:193).

    v   = sqrt(sum c u_C^2)                                                   inhibition: contrast of the window, c fixed
    u_S = r phi((1 + sum a u_C) / (1 + r / (1 + r) b v) - 1)                  S-cells find a feature;  phi(x) = max(0, x)
    u_C = psi(sum d u_S),   psi(x) = phi(x) / (alpha + phi(x))                C-cells blur where it was, d fixed

All cells of a plane share a and b. Learning needs neither labels nor a gradient: the strongest cell of each S-column (the
cells of all planes around a place) is a candidate, the strongest candidate of each plane its representative, and the plane
is reinforced by what the representative sees: da = q c u_C, db = q v. After a few times u_S is phi((1 + r) s - r), where s
is the cosine between window and feature: cells answer above s = r / (1 + r), and what no plane answers to is left to a
fresh one.

A batch counts as one large picture: its samples lie side by side, so each plane has one representative in all of them, on
however many workers they are. Stages learn one after the other. The default is the net of 1980: U_S 16x16, 8x8, 2x2 and
U_C 10x10, 6x6, 1x1 of 24 planes each; 600 + 14,400 + 14,400 excitatory and 72 inhibitory weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Amount, Count, Counts, ImageShape
from distdl.learner import Answer, Batch, Column, Learner, Verbs
from distdl.metrics import Metrics, mean
from distdl.nn.images import to_unit
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    image: ImageShape = (1, 16, 16)
    """Shape of one picture (channels, height, width); uint8 (scaled to 0..1) or float32, bright strokes on black."""
    planes: Counts = (24, 24, 24)
    """Planes of each stage; the length says how many stages there are."""
    s_window: Counts = (5, 5, 5)
    """Side of the window that an S-cell sees, for each stage."""
    s_padding: tuple[int, ...] = (2, 1, 0)
    """Zeros around what the S-cells see, for each stage; a negative number cuts off."""
    c_window: Counts = (5, 5, 2)
    """Side of the window over which a C-cell blurs, for each stage."""
    c_padding: tuple[int, ...] = (-1, 1, 0)
    """Zeros around what the C-cells see, for each stage; a negative number cuts off."""
    c_stride: Counts = (1, 1, 1)
    """Every how manieth place has a C-cell, for each stage."""
    selectivity: tuple[Amount, ...] = (4.0, 1.5, 1.5)
    """r of each stage: its cells answer to windows whose cosine with their feature is above r / (1 + r)."""
    gain: tuple[Amount, ...] = (1.0, 16.0, 16.0)
    """q of each stage: how much one reinforcement adds."""
    column: Count = 5
    """Side of an S-column, an odd number."""
    saturation: Amount = 0.5
    """alpha, the C-cells' input at which they answer half."""
    steps_per_stage: Count = 100
    """Batches that each stage learns from before the next one begins."""

    def __post_init__(self) -> None:
        for name in ("s_window", "s_padding", "c_window", "c_padding", "c_stride", "selectivity", "gain"):
            if len(getattr(self, name)) != len(self.planes):
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries for {len(self.planes)} stages of planes"
                )
        if self.column % 2 == 0:
            raise ValueError(f"an S-column of side {self.column} has no middle; choose an odd number")


def gaussian(side: int) -> Tensor:
    """A bell over a square window that sums to 1, its standard deviation half the window's radius."""
    offset = torch.arange(side) - (side - 1) / 2
    bell = torch.exp(-(offset**2) / (2 * (side / 4) ** 2))
    window = bell[:, None] * bell  # (side, side)
    return window / window.sum()


class Stage(nn.Module):
    """A layer of S-cells and a layer of C-cells."""

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor

    def __init__(self, config: Config, i: int, below: int) -> None:
        super().__init__()
        self.r, self.q, self.alpha = config.selectivity[i], config.gain[i], config.saturation
        self.s_padding, self.c_padding, self.c_stride = config.s_padding[i], config.c_padding[i], config.c_stride[i]
        side, planes = config.s_window[i], config.planes[i]
        c = gaussian(side).expand(1, below, side, side) / below
        d = gaussian(config.c_window[i]).expand(planes, 1, -1, -1)
        self.register_buffer("c", c.contiguous())  # (1, K_below, side, side), sums to 1
        self.register_buffer("d", d.contiguous())  # (K, 1, window, window)
        self.register_buffer(
            "a", 0.01 * torch.rand(planes, below, side, side) * c
        )  # small: a first preference, no more
        self.register_buffer("b", torch.zeros(planes))

    def s_cells(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K_below, H, W) -> answers (B, K, H', W') and the contrast v of their windows (B, 1, H', W')."""
        u = F.pad(u, [self.s_padding] * 4)
        v = F.conv2d(u.square(), self.c.to(u.dtype)).clamp(min=0).sqrt()
        inhibition = self.r / (1 + self.r) * self.b.to(u.dtype)[:, None, None] * v
        return self.r * F.relu((1 + F.conv2d(u, self.a.to(u.dtype))) / (1 + inhibition) - 1), v

    def c_cells(self, s: Tensor) -> Tensor:
        """(B, K, H, W) -> (B, K, H', W')."""
        s = F.pad(s, [self.c_padding] * 4)
        blurred = F.conv2d(s, self.d.to(s.dtype), stride=self.c_stride, groups=len(self.d))
        return blurred / (self.alpha + blurred)

    def forward(self, u: Tensor) -> Tensor:
        return self.c_cells(self.s_cells(u)[0])

    def windows(self, u: Tensor) -> Tensor:
        """What every S-cell of a plane sees: (B, K_below * side^2, H' * W')."""
        return F.unfold(F.pad(u, [self.s_padding] * 4), self.c.shape[-1])


class Neocognitron(Learner):
    learns = "reinforcement of the strongest"
    primary, better = "response", "higher"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        below = [config.image[0], *config.planes]
        self.stages = nn.ModuleList(Stage(config, i, below[i]) for i in range(len(config.planes)))

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"image": Column.sample(config.image)}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"embedding": Answer("embedding", "answers of the last C-cells")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return {"embedding": self.features(batch["image"])}

    def features(self, image: Tensor) -> Tensor:
        """(B, F): the last C-cells, in fp64 or fp32 as the picture."""
        u = to_unit(image)
        for stage in self.stages:
            u = stage(u)
        return u.flatten(1)

    @torch.no_grad()
    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        learning = min(step // self.config.steps_per_stage, len(self.stages) - 1)
        u = to_unit(batch["image"]).double()  # rounding must not choose the representatives
        for below in self.stages[:learning]:
            u = below(u)
        stage = cast(Stage, self.stages[learning])
        s, v = stage.s_cells(u)
        if step < self.config.steps_per_stage * len(self.stages):
            self._reinforce(stage, u, s, v, batch["position"], engine)
        response = s.amax(1)[v.squeeze(1) > 0]
        return {"loss": mean(1 - response), "response": mean(response)}

    def _reinforce(self, stage: Stage, u: Tensor, s: Tensor, v: Tensor, position: Tensor, engine: Verbs) -> None:
        """One reinforcement of each plane that has a representative in the whole batch."""
        strongest, cell = candidates(s, self.config.column).flatten(2).max(-1)  # (B, K) each
        samples = int(engine.all_sum(torch.tensor(len(s), device=s.device)))
        table = s.new_zeros(samples, s.shape[1])
        place = position % samples  # in the whole batch, whichever rank holds the sample
        table[place] = strongest
        table = engine.all_sum(table)  # (G, K): every sample's strongest candidate of every plane
        first = place[:, None] == table.argmax(0)  # (B, K): for each plane one sample on all ranks together
        sample, plane = (first & (strongest > 0)).nonzero(as_tuple=True)
        seen = u.new_zeros(stage.a.shape)  # (K, K_below, side, side)
        contrast = v.new_zeros(len(stage.b))  # (K,)
        seen[plane] = stage.windows(u)[sample, :, cell[sample, plane]].view(-1, *stage.a.shape[1:])
        contrast[plane] = v.flatten(1)[sample, cell[sample, plane]]
        stage.a += stage.q * stage.c * engine.all_sum(seen)
        stage.b += stage.q * engine.all_sum(contrast)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        """How strongly the best cell of the last stage answers, wherever there is something to see; 1: it knows it."""
        u = to_unit(batch["image"])
        for stage in self.stages[:-1]:
            u = stage(u)
        s, v = cast(Stage, self.stages[-1]).s_cells(u)
        shown("filters: what the first stage looks for", lambda: {"filters": cast(Stage, self.stages[0]).a})
        shown("heat: where the last stage knows the first picture", lambda: {"values": s[0].amax(0)})
        return {"response": mean(s.amax(1)[v.squeeze(1) > 0])}


def candidates(s: Tensor, column: int) -> Tensor:
    """The answers of the cells that are the strongest of their S-column, the others 0. (B, K, H, W)."""
    strongest = F.max_pool2d(s.amax(1, keepdim=True), column, stride=1, padding=column // 2)  # (B, 1, H, W)
    return s * (s == strongest)
