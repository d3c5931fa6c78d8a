"""Boltzmann machine with all lateral connections, learned by matching correlations (Ackley, Hinton & Sejnowski 1985).

    E(x) = -1/2 x W x - b x,   x = (v, h) in {0,1}^n,   W symmetric with a zero diagonal,   P(x) = exp(-E(x)) / Z
    d log P(v) / d W_ij = <x_i x_j>_{h|v} - <x_i x_j>_model

exact    the loss is the negative log-likelihood itself, with Z and the sum over h by enumeration: small machines only
sampled  both averages come from Gibbs sampling: hidden units with the data clamped, then all units run freely. The loss is
         mean[E(x_clamped) - E(x_free)] with the samples held fixed: its gradient is the rule, its value no progress

n units have n(n-1)/2 + n parameters: 91 for 9 visible and 4 hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Count, CountOrZero
from distdl.layout.noise import bernoulli
from distdl.learner import Answer, Batch, Column, Learner
from distdl.metrics import Metrics, mean
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    visible: Count = 9
    """Visible units: values of the column `x`, each 0 or 1."""
    hidden: CountOrZero = 4
    """Hidden units."""
    learning: Literal["exact", "sampled"] = "exact"
    """exact: enumerate all 2^n states (n up to 16); sampled: Gibbs sampling."""
    sweeps: Count = 5
    """Times that every unit is drawn anew in each of the two phases, where it is sampled."""

    def __post_init__(self) -> None:
        if self.learning == "exact" and self.visible + self.hidden > 16:
            raise ValueError(
                f"{self.visible} + {self.hidden} units have 2^{self.visible + self.hidden} states, too many to enumerate; "
                "use at most 16 units, or learning: sampled"
            )


SWEEPS = 1000  # of Gibbs sampling from chance to a sample of the model


class BoltzmannMachine(Learner):
    parameter_kinds = {"pairs": "matrix"}
    learns = "contrast of clamped and free correlations"
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.units = n = config.visible + config.hidden
        self.pairs = nn.Parameter(0.1 * torch.randn(n * (n - 1) // 2))  # W above its diagonal, row by row
        self.bias = nn.Parameter(torch.zeros(n))
        self.primary = "loss" if config.learning == "exact" else "surprise"  # nats of a sample; of a visible unit

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"x": Column.numbers((config.visible,), 0, 1, meaning="0 or 1")}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        told = Answer("values", "ln of the probability of the row, in nats")
        return {"log_probability": told} if config.learning == "exact" else {}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return {"log_probability": -self.nll(batch["x"].to(self.bias.dtype))}

    def draw(self, n: int) -> Tensor:
        start = bernoulli(torch.full((n, self.units), 0.5, device=self.bias.device, dtype=self.bias.dtype))
        for _ in range(-(-SWEEPS // self.config.sweeps)):
            start = self.gibbs(start, range(self.units))
        return start[:, : self.config.visible]

    def weights(self) -> Tensor:
        """W, symmetric with a zero diagonal: (n, n)."""
        row, column = torch.triu_indices(self.units, self.units, offset=1, device=self.bias.device)
        upper = self.bias.new_zeros(self.units, self.units).index_put((row, column), self.pairs)
        return upper + upper.T

    def energy(self, x: Tensor) -> Tensor:
        """(..., n) -> (...)."""
        return -0.5 * ((x @ self.weights()) * x).sum(-1) - x @ self.bias

    def every_state(self, units: int) -> Tensor:
        """All states of so many units: (2^units, units)."""
        number = torch.arange(2**units, device=self.bias.device)
        return (torch.bitwise_right_shift(number[:, None], torch.arange(units, device=number.device)) & 1).to(
            self.bias.dtype
        )

    def log_partition(self) -> Tensor:
        """log Z, by enumeration."""
        return (-self.energy(self.every_state(self.units))).logsumexp(0)

    def nll(self, v: Tensor) -> Tensor:
        """-log P(v) in nats, by enumeration: (B, V) -> (B,)."""
        hidden = self.every_state(self.config.hidden)  # (2^H, H)
        v = v[:, None].expand(-1, len(hidden), -1)
        x = torch.cat([v, hidden.expand(v.shape[0], -1, -1)], -1)  # (B, 2^H, n)
        return self.log_partition() - (-self.energy(x)).logsumexp(-1)

    @torch.no_grad()
    def gibbs(self, x: Tensor, units: range) -> Tensor:
        """Draws each of `units` given all others, one after the other, in so many sweeps: (B, n)."""
        x, W = x.clone(), self.weights()
        for _ in range(self.config.sweeps):
            for i in units:
                x[:, i] = bernoulli(torch.sigmoid(x @ W[i] + self.bias[i]))
        return x

    def clamped(self, batch: Batch) -> Tensor:
        """The data with hidden units drawn for them: (B, n)."""
        v = batch["x"].to(self.bias.dtype)
        start = F.pad(v, (0, self.config.hidden), value=0.5)
        return self.gibbs(start, range(self.config.visible, self.units))

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        if self.config.learning == "exact":
            return self.nll(batch["x"].to(self.bias.dtype)).mean(), {}
        clamped = self.clamped(batch)
        free = self.gibbs(clamped, range(self.units))
        return (self.energy(clamped) - self.energy(free)).mean(), {}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        shown("heat: weights between the units", lambda: {"values": self.weights()})
        if self.config.learning == "exact":
            return {"loss": mean(self.nll(batch["x"].to(self.bias.dtype)))}
        x, visible = self.clamped(batch), self.config.visible
        sums = (x @ self.weights() + self.bias)[:, :visible]  # each visible unit, given all others
        return {"surprise": mean(F.binary_cross_entropy_with_logits(sums, x[:, :visible], reduction="none"))}
