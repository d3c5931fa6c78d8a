"""Restricted Boltzmann machine (Smolensky 1986), by contrastive divergence (Hinton 2002; "A Practical Guide", 2010).

    E(v, h) = -h W v - a v - b h,     P(h=1|v) = s(W v + b),     P(v=1|h) = s(h W + a),     s = logistic function
    F(v) = -log sum_h exp(-E(v, h)) = -a v - sum_j log(1 + exp(W v + b)_j)                (free energy)

CD-k is the update <h v>_data - <h v>_k, where k steps of Gibbs sampling lead from the data to v_k. That difference is
minus the gradient of mean[F(v) - F(v_k)] with the samples held fixed, so it is learned like any other scalar loss. But
this loss is no measure of progress: v_k moves with the weights, and a gap near 0 only says that a few steps do not leave
the data. Watch `reconstruction` or `pseudo_likelihood` instead. Momentum is the optimizer's.
784 visible and 500 hidden units have 393,284 parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Count, CountOrZero, Shape
from distdl.errors import InputError
from distdl.layout.noise import bernoulli, uniform
from distdl.learner import Answer, Batch, Column, Learner, Verbs
from distdl.learner.answers import Kind
from distdl.metrics import Metrics, mean
from distdl.nn.images import to_unit
from distdl.nn.watch import FEW, as_filters, shown


@dataclass(frozen=True)
class Config:
    inputs: Shape = (1, 28, 28)
    """Shape of one sample; it is flattened into visible units."""
    column: str = "image"
    """Column that holds the sample: uint8 (scaled to 0..1) or float32 in 0..1, the probability of a unit to be on."""
    hidden: Count = 500
    """Hidden units."""
    k: Count = 1
    """Steps of Gibbs sampling between the data, or the chain, and the model's sample."""
    chains: CountOrZero = 0
    """Persistent chains, at least train.global_batch (Tieleman 2008); 0: sampling starts at the data."""
    sample_visible: bool = False
    """Draw visible units as 0 or 1 while sampling; false: use their probabilities (less noise, Hinton 2010, section 3)."""


SWEEPS = 1000  # steps of Gibbs sampling from chance to a sample of the model


class RBM(Learner):
    primary, better = "reconstruction", "lower"  # squared error of a pixel
    learns = "contrastive divergence"
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    chains: Tensor
    moved_in: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.visible_units = math.prod(config.inputs)
        self.weight = nn.Parameter(0.01 * torch.randn(config.hidden, self.visible_units))  # (H, V)
        self.visible_bias = nn.Parameter(torch.zeros(self.visible_units))
        self.hidden_bias = nn.Parameter(torch.zeros(config.hidden))
        if config.chains:
            self.register_buffer("chains", torch.zeros(config.chains, self.visible_units))
            self.register_buffer("moved_in", torch.full((config.chains,), -1))  # the last step of each chain

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {config.column: Column.sample(config.inputs, 0, 1)}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        kind: Kind = "picture" if len(config.inputs) == 3 else "values"
        restored = Answer(kind, "one way up and down again, without sampling", of=config.column)
        return {"restored": restored, "embedding": Answer("embedding", "probabilities of the hidden units to be on")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        h = self.hidden(self.samples(batch))
        return {"restored": self.visible(h).view(-1, *self.config.inputs), "embedding": h}

    def draw(self, n: int) -> Tensor:
        v = bernoulli(torch.full((n, self.visible_units), 0.5, device=self.weight.device, dtype=self.weight.dtype))
        for _ in range(-(-SWEEPS // self.config.k)):
            v = self.gibbs(v)
        return v.view(-1, *self.config.inputs)

    def hidden(self, v: Tensor) -> Tensor:
        """P(h=1|v): (B, V) -> (B, H)."""
        return torch.sigmoid(F.linear(v, self.weight, self.hidden_bias))

    def visible(self, h: Tensor) -> Tensor:
        """P(v=1|h): (B, H) -> (B, V)."""
        return torch.sigmoid(h @ self.weight + self.visible_bias)

    def free_energy(self, v: Tensor) -> Tensor:
        """(B, V) -> (B,) nats."""
        return -(v @ self.visible_bias) - F.softplus(F.linear(v, self.weight, self.hidden_bias)).sum(-1)

    @torch.no_grad()
    def gibbs(self, v: Tensor) -> Tensor:
        """v after k steps of block Gibbs sampling, (B, V)."""
        for _ in range(self.config.k):
            v = self.visible(bernoulli(self.hidden(v)))
            v = bernoulli(v) if self.config.sample_visible else v
        return v

    @torch.no_grad()
    def errors(self, v: Tensor) -> Tensor:
        """Squared error of every visible unit after one way up and down without sampling, (B, V)."""
        told, inputs = self.visible(self.hidden(v)), self.config.inputs
        shown("reconstructions", lambda: {"given": v.view(-1, *inputs), "told": told.view(-1, *inputs)})
        return (v - told).square()

    @torch.no_grad()
    def pseudo_likelihood(self, v: Tensor, unit: Tensor) -> Tensor:
        """log P(v_i | all other units) of one visible unit i = `unit` (B,) of each sample, (B,) nats (Besag 1975)."""
        rows = torch.arange(len(v), device=v.device)
        flipped = v.clone()
        flipped[rows, unit] = 1 - flipped[rows, unit]
        return F.logsigmoid(self.free_energy(flipped) - self.free_energy(v))

    def samples(self, batch: Batch) -> Tensor:
        return to_unit(batch[self.config.column]).flatten(1).to(self.weight.dtype)  # (B, V)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        v = self.samples(batch)
        start = self.chains[batch["position"] % self.config.chains] if self.config.chains else v
        model = self.gibbs(start)
        if self.config.chains:
            self.ahead = model  # until `update` puts it into the chains of all ranks
        gap = (self.free_energy(v) - self.free_energy(model)).mean()
        return gap, {"reconstruction": mean(self.errors(v))}

    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        metrics = super().update(batch, engine, step)
        if self.config.chains:
            self.advance(batch["position"] % self.config.chains, self.ahead, engine, step)
        return metrics

    def advance(self, which: Tensor, states: Tensor, engine: Verbs, step: int) -> None:
        """Chain `which[i]` is now at `states[i]`. Each rank has moved those of its own samples; all ranks keep all."""
        moved = torch.zeros_like(self.moved_in).index_add_(0, which, torch.ones_like(which))  # (C,)
        new = torch.zeros_like(self.chains).index_add_(0, which, states.to(self.chains))  # (C, V)
        moved, new = engine.all_sum(moved), engine.all_sum(new)
        if ((moved + (self.moved_in == step)) > 1).any():
            what = f"{self.config.chains} persistent chains are fewer than the samples of a step"
            raise InputError(what, fix="model.chains = train.global_batch, or more")
        self.chains.copy_(torch.where(moved[:, None] > 0, new, self.chains))
        self.moved_in[moved > 0] = step

    def evaluate(self, batch: Batch) -> Metrics:
        v = self.samples(batch)
        unit = (uniform(len(v), device=v.device) * self.visible_units).long()  # one at random for each sample
        if len(self.config.inputs) == 3:
            shown("filters", lambda: {"filters": as_filters(self.weight, self.config.inputs)})
        if self.config.chains:
            shown("samples", lambda: {"made": self.chains[:FEW].view(-1, *self.config.inputs)})
        return {"reconstruction": mean(self.errors(v)), "pseudo_likelihood": mean(self.pseudo_likelihood(v, unit))}
