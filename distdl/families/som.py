"""Self-organising map, a grid of prototypes that keeps neighbours alike (Kohonen 1982, Biol. Cybern. 43:59).

    c = argmin_j |x - w_j|,   h_cj = exp(-|r_c - r_j|^2 / 2 sigma^2)                    winner, and who learns with it
    batch    w_j = sum_x h_cj x / sum_x h_cj
    online   w_j += eta h_cj (x - w_j)      is gradient descent on   1/2 sum_j h_cj |x - w_j|^2   with c and h held fixed
    sigma(t) = sigma / (1 + 2 t / T),   and eta alike

The batch rule (Kohonen 1990) is the main form: its sums over samples are exact on any number of workers, and it has no
learning rate. The online rule is its ancestor, one sample after the other (`train.global_batch: 1`); with more samples at a
time it takes their mean, as any gradient descent. 15 x 15 units for 64 pixels are 14,400 numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from distdl.config.fields import Amount, Count, OpenShare, Several, Shape
from distdl.learner import Answer, Batch, Column, Learner, Verbs
from distdl.metrics import Metrics, mean
from distdl.nn.images import to_unit
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    inputs: Shape = (1, 8, 8)
    """Shape of one sample; it is flattened."""
    column: str = "image"
    """Column of the data set that holds the sample: uint8 (scaled to 0..1) or float32."""
    grid: tuple[Several, Several] = (15, 15)
    """Rows and columns of units."""
    rule: Literal["batch", "online"] = "batch"
    """batch: weighted means of all samples at once, without an optimizer; online: steps of `optimizer: {name: sgd}`."""
    sigma: Amount = 3.0
    """Radius of the neighbourhood at the start, in units of the grid; it falls to a third."""
    decay_steps: Count = 30
    """Steps T over which the radius, and the online rule's rate, fall to a third: usually those of the run."""
    memory: OpenShare = 0.0
    """Share of the batch rule's earlier sums that is kept; 0 where a batch is the whole data set, more for smaller ones."""


class SOM(Learner):
    learns = "competition"
    primary, better = "quantisation_error", "lower"
    distance2: Tensor
    code: Tensor
    sum_hx: Tensor
    sum_h: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        rows, columns = config.grid
        code = torch.rand(rows * columns, math.prod(config.inputs)) * 2 - 1
        code /= code.norm(dim=1, keepdim=True)  # (N, D), unit vectors in any direction
        place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))  # (N, 2)
        self.register_buffer("distance2", (place[:, None] - place).square().sum(-1))  # (N, N), squared, on the grid
        if config.rule == "online":
            self.code = nn.Parameter(code)
        else:
            self.register_buffer("code", code)
            self.register_buffer("sum_hx", torch.zeros(code.shape, dtype=torch.float64))  # (N, D)
            self.register_buffer("sum_h", torch.zeros(len(code), dtype=torch.float64))  # (N,)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {config.column: Column.sample(config.inputs)}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"cell": Answer("cell", "of the nearest prototype"), "distance": Answer("values", "to it")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        distance, winner = self._apart(self.samples(batch)).min(1)
        columns = self.config.grid[1]
        return {"cell": torch.stack([winner // columns, winner % columns], 1), "distance": distance}

    def samples(self, batch: Batch) -> Tensor:
        return to_unit(batch[self.config.column]).flatten(1)  # (B, D)

    def decay(self, step: int) -> float:
        """1 at the first step, a third after `decay_steps`."""
        return 1 / (1 + step / (self.config.decay_steps / 2))

    @torch.no_grad()
    def distances(self, x: Tensor) -> Tensor:
        """To every prototype, in fp64: rounding must not choose the winner."""
        return self._apart(x)  # (B, N)

    def _apart(self, x: Tensor) -> Tensor:
        """The same, with a slope along x: learning asks for none."""
        return torch.cdist(x.double(), self.code.double())

    def neighbourhood(self, winner: Tensor, step: int) -> Tensor:
        sigma = self.config.sigma * self.decay(step)
        return torch.exp(self.distance2[winner].double() / (-2 * sigma**2))  # (B, N)

    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        if self.config.rule == "online":
            return super().update(batch, engine, step)
        x = self.samples(batch).double()
        distance = self.distances(x)
        h = self.neighbourhood(distance.argmin(1), step)
        self.sum_hx.mul_(self.config.memory).add_(engine.all_sum(h.T @ x))
        self.sum_h.mul_(self.config.memory).add_(engine.all_sum(h.sum(0)))
        reached = self.sum_h[:, None] > 0  # a unit too far from every winner stays where it is
        self.code.copy_(torch.where(reached, self.sum_hx / self.sum_h[:, None], self.code))
        return {"loss": mean((h * distance.square()).sum(1) / 2), "quantisation_error": mean(distance.amin(1))}

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """The online rule as a gradient; its rate is that of the optimizer, times the decay."""
        x = self.samples(batch)
        distance = self.distances(x)
        h = self.neighbourhood(distance.argmin(1), step).to(x.dtype)
        energy = (h * (x[:, None] - self.code).square().sum(-1)).sum(1) / 2  # (B,)
        return self.decay(step) * energy.mean(), {"quantisation_error": mean(distance.amin(1))}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        """Distance to the winner, and how often the two nearest prototypes are no neighbours on the grid (8 of them)."""
        nearest = self.distances(self.samples(batch)).topk(2, largest=False)
        first, second = nearest.indices.unbind(1)
        apart = self.distance2[first, second] > 2
        places = (*self.config.grid, *self.config.inputs)
        shown("map", lambda: {"prototypes": self.code.view(places), "winner": first})
        return {"quantisation_error": mean(nearest.values[:, 0]), "topographic_error": mean(apart.float())}
