"""Sheet of Hebbian units whose plasticity may travel as a wave (Shrager & Johnson 1996, Neural Networks 9:1119).

Each unit i hears both inputs u = (A, B), and K units j drawn at random around it, a share of them inhibitory (s_j = -1):

    h_i = a_i . u + sum_j s_j w_ij y_j - theta_i,    y_i <- (y_i + sigmoid(gain h_i)) / 2,  `settle` times from y = 0
    a_i  += rate p_i(t) cov(y_i, u),    0 <= a <= afferent_limit           covariances over the samples of the step
    w_ij += rate p_i(t) cov(y_i, y_j),  0 <= w <= lateral_limit            Hebb's rule, for both kinds of synapse
    theta_i += threshold_rate p_i(t) (mean(y_i) - target)                  holds each unit near its usual activity
    wave      p_i(t) = exp(-(column_i - c(t))^2 / 2 width^2),   c goes from 3 widths before the sheet to 3 behind it
    uniform   p_i(t) = the mean of that over the wave's time: every synapse gets as much plasticity, but all at once

Plasticity p, the "trophic factor", is over after `duration` steps. Then each unit is one of the 16 Boolean functions of
A and B (y > 1/2), whose order is 0 for a constant, 1 for A, B and their negations, 2 for the eight of the kind of AND and
OR, and 3 for XOR and its negation. The paper's finding: with the wave, more units come to be of a higher order.

The paper's are the sheet of 30 x 30, the two inputs to all units, random short-range connections of both signs, a local
Hebbian rule, the wave, and the count by orders; its exact equations are not claimed here. Ours, after the papers around
it (Kerszberg, Dehaene & Changeux 1992, Neural Networks 5:403; Elman et al. 1996, Rethinking Innateness), are the form
of the rule: covariance, limits, a threshold that follows activity; and every number below. In this form the gain is
found over the whole sheet, in its late half as in its early one, and nearly all of it is of order 2. Of four sheets
0.79 of the units are of a higher order after the wave and 0.32 after uniform plasticity; 0.39 if all units have the
wave's time course at once, and 0.62 if each has it at a random time: what counts is that neighbours mature one after
the other. A wave as wide as the connections are long gains less. The gain is not in every setting: with slower
thresholds, a lower target or half the time, uniform plasticity does nearly as well.

900 units of 2 + 12 synapses and a threshold are 13,500 numbers (at the border some synapses have nobody to hear).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from distdl.config.fields import Amount, AmountOrZero, Count, Several, Share
from distdl.learner import Answer, Batch, Column, Learner, Verbs
from distdl.metrics import Mean, Metrics, mean
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    grid: tuple[Several, Several] = (30, 30)
    """Rows and columns of units; the wave travels over the columns."""
    plasticity: Literal["uniform", "wave"] = "wave"
    """wave: one column after the other learns; uniform: all units, all the time, as much in total."""
    duration: Count = 400
    """Steps until the wave has left the sheet, or uniform plasticity is over."""
    width: Amount = 1.0
    """Standard deviation of the wave, in columns."""
    synapses: Count = 12
    """Neighbours K that a unit hears."""
    radius: Annotated[float, Field(ge=1)] = 3.0
    """The farthest neighbour that a unit may hear, in units of the grid."""
    inhibitory: Share = 0.3
    """Share of the units that inhibit those who hear them."""
    rate: Amount = 1.6
    """Learning rate of the synapses."""
    threshold_rate: AmountOrZero = 0.3
    """Rate at which a threshold follows its unit's activity."""
    target: Share = 0.5
    """Mean activity that each threshold holds its unit to."""
    afferent_limit: Amount = 0.5
    """The strongest synapse from an input."""
    lateral_limit: Amount = 0.3
    """The strongest synapse from a neighbour."""
    gain: Amount = 8.0
    """Slope of the response."""
    settle: Count = 6
    """Iterations in which the units answer each other."""


class CorticalArray(Learner):
    learns = "Hebb's rule under a wave of plasticity"
    primary, better = "higher_order", "higher"
    batch_coupled = True  # each micro-batch is a step of the rule, by its own covariances
    source: Tensor
    sign: Tensor
    linked: Tensor
    column: Tensor
    afferent: Tensor
    lateral: Tensor
    threshold: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        rows, columns = config.grid
        units = rows * columns
        place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))  # (N, 2)
        distance2 = (place[:, None] - place).square().sum(-1)  # (N, N)
        near = (distance2 > 0) & (distance2 <= config.radius**2)
        drawn = torch.where(near, torch.rand(units, units), 2.0).topk(min(config.synapses, units), largest=False)
        inhibits = torch.rand(units) < config.inhibitory
        self.register_buffer("source", drawn.indices)  # (N, K), whom each unit hears
        self.register_buffer("linked", drawn.values < 1)  # (N, K), false where the border left fewer than K
        self.register_buffer("sign", torch.where(inhibits, -1.0, 1.0)[drawn.indices].double())  # (N, K)
        self.register_buffer("column", place[:, 1].double())  # (N,)
        weak = 0.1  # of the limit: at first the inputs alone excite no unit, so that each is a constant
        self.register_buffer("afferent", weak * config.afferent_limit * torch.rand(units, 2).double())
        self.register_buffer(
            "lateral", weak * config.lateral_limit * torch.rand(drawn.values.shape).double() * self.linked
        )
        self.register_buffer("threshold", torch.full((units,), 0.3, dtype=torch.float64))

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"x": Column.numbers((2,), 0, 1, meaning="0 or 1")}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"activity": Answer("values", "of each unit, row by row, from 0 to 1")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return {"activity": self.respond(batch["x"])}

    def plasticity(self, step: int) -> Tensor:
        """p of each unit at a step. (N,)"""
        config, columns = self.config, self.config.grid[1]
        if step >= config.duration:
            return torch.zeros_like(self.column)
        way = columns + 6 * config.width
        if config.plasticity == "uniform":
            return torch.full_like(self.column, config.width * math.sqrt(2 * math.pi) / way)
        front = way * (step + 0.5) / config.duration - 3 * config.width - 0.5
        return torch.exp(-((self.column - front) ** 2) / (2 * config.width**2))

    def respond(self, x: Tensor) -> Tensor:
        """(B, 2) of 0 and 1 -> the units' activities (B, N), fp64: feedback would magnify what is rounded."""
        drive = x.double() @ self.afferent.T - self.threshold
        weights = self.sign * self.lateral
        y = torch.zeros_like(drive)
        for _ in range(self.config.settle):
            field = drive + torch.einsum("bnk,nk->bn", y[:, self.source], weights)
            y = (y + torch.sigmoid(self.config.gain * field)) / 2
        return y

    @torch.no_grad()
    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        config, units = self.config, len(self.column)
        x = batch["x"].double()
        y = self.respond(x)
        # Everything that a covariance needs, in sums over the samples of all workers.
        products = torch.einsum("bn,bnk->nk", y, y[:, self.source])
        parts = [y.new_tensor([len(y)]), x.sum(0), y.sum(0), (y.T @ x).flatten(), products.flatten()]
        n, *sums = engine.all_sum(torch.cat(parts)).split([part.numel() for part in parts])
        mean_x, mean_y, mean_yx, mean_yy = (total / n for total in sums)
        p = self.plasticity(step)
        with_inputs = mean_yx.view(units, 2) - mean_y[:, None] * mean_x
        with_neighbours = mean_yy.view_as(products) - mean_y[:, None] * mean_y[self.source]
        self.afferent.add_(config.rate * p[:, None] * with_inputs).clamp_(0, config.afferent_limit)
        self.lateral.add_(config.rate * p[:, None] * with_neighbours * self.linked).clamp_(0, config.lateral_limit)
        self.threshold.add_(config.threshold_rate * p * (mean_y - config.target))
        return {"loss": undecided(y)}

    @torch.no_grad()
    def functions(self) -> Tensor:
        """What each unit answers to (0, 0), (0, 1), (1, 0), (1, 1). (N, 4), bool"""
        table = torch.cartesian_prod(*torch.tensor([[0.0, 1.0], [0.0, 1.0]]).to(self.column.device))
        return (self.respond(table) > 0.5).T

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        """Shares of the units of each order, and of order 2 or 3 on the whole sheet and on the half that the wave reaches
        last. They do not depend on the samples, which only count."""
        order, n = orders(self.functions()), float(len(batch["x"]))
        higher = order >= 2
        shown("heat: order of the functions of the units", lambda: {"values": order.view(self.config.grid)})
        shares = {f"order{k}": order == k for k in range(4)}
        shares |= {"higher_order": higher, "late_higher_order": higher[self.column >= self.config.grid[1] // 2]}
        metrics = {name: Mean(chosen.double().mean() * n, n) for name, chosen in shares.items()}
        return {"loss": undecided(self.respond(batch["x"])), **metrics}


def orders(truth: Tensor) -> Tensor:
    """Order of Boolean functions by their answers to (0, 0), (0, 1), (1, 0), (1, 1). (..., 4) -> (...)"""
    ones = truth.long().sum(-1)
    of_two = torch.where(truth[..., 0] == truth[..., 3], 3, 1)  # XOR and XNOR; A, B and their negations
    return torch.where(ones % 2 == 1, 2, torch.where(ones == 2, of_two, 0))


def undecided(y: Tensor) -> Mean:
    """0 where all activities are 0 or 1, 1 where all are 1/2."""
    return mean(4 * y * (1 - y))
