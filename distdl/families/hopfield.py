"""Hopfield network, an associative memory that falls into stored patterns (Hopfield 1982, PNAS 79:2554).

    W = 1/N sum_p xi^p (xi^p)^T,  w_ii = 0          (Hebb's rule)
    s_i <- sign(sum_j w_ij s_j),  one unit at a time;   E(s) = -1/2 s^T W s never rises

N units have N (N - 1) / 2 different weights. They hold about 0.138 N random patterns; beyond, recall breaks down (Amit,
Gutfreund & Sompolinsky 1985). Learning is one pass over the patterns: the sum is exact, in any order, over any number of
workers. A pass more doubles every weight and changes no sign, hence no recall.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distdl.config.fields import Count, Several, Share
from distdl.layout import noise
from distdl.learner import Answer, Batch, Column, Learner, Verbs
from distdl.metrics import Metrics, mean
from distdl.nn.recurrence import over_time
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    units: Several = 500
    """Units of the network, which are the bits of a pattern."""
    flipped: Share = 0.1
    """Probability that a bit is turned over in the cue that a pattern is recalled from."""
    sweeps: Count = 50
    """Most updates of each unit in a recall; it ends as soon as nothing changes."""


class Hopfield(Learner):
    learns = "Hebb's rule, one pass"
    primary, better = "overlap", "higher"
    layouts = frozenset({"torch"})  # there is no optimizer that ZeRO could shard
    products: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("products", torch.zeros(config.units, config.units))  # sums of +1 and -1: exact in fp32

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"x": Column.numbers((config.units,), meaning="bit, on above 0")}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"recalled": Answer("values", "the pattern that the row falls into, of 1 and -1", of="x")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return {"recalled": self.recall(signs(batch["x"]))}

    @property
    def weights(self) -> Tensor:
        """(N, N), symmetric, nothing on the diagonal."""
        return (self.products - self.products.diag().diag()) / self.config.units

    @torch.no_grad()
    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        patterns = signs(batch["x"])  # (B, N)
        self.products += engine.all_sum(patterns.T @ patterns)
        return {"loss": mean(self.energy(patterns))}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        patterns = signs(batch["x"])
        cue = patterns * (1 - 2 * noise.bernoulli(torch.full_like(patterns, self.config.flipped)))
        recalled = self.recall(cue)
        shown("reconstructions", lambda: {"given": patterns, "damaged": cue, "told": recalled})
        overlap = (recalled * patterns).mean(-1)  # (B,), 1: every bit is right, 0: as good as chance
        return {"loss": mean(self.energy(patterns)), "overlap": mean(overlap)}

    def energy(self, state: Tensor) -> Tensor:
        """(B, N) -> (B,), the energy of a unit: E / N."""
        return -0.5 * ((state @ self.weights) * state).mean(-1)

    def recall(self, state: Tensor) -> Tensor:
        """The fixed point that each state falls into, or where it is after `sweeps`. (B, N) -> (B, N)"""
        weights = self.weights
        for _ in range(self.config.sweeps):
            drawn = noise.uniform(*state.shape, device=state.device)
            # A graph has no stable order; two draws of 2^23 are rarely equal.
            order = drawn.argsort(-1) if torch.compiler.is_exporting() else drawn.argsort(dim=-1, stable=True)
            before, state = state, updated(state, weights, order)
            if not torch.compiler.is_exporting() and torch.equal(state, before):
                break
        return state


def signs(x: Tensor) -> Tensor:
    """+1 or -1, float32."""
    return torch.where(x > 0, 1.0, -1.0)


def updated(state: Tensor, weights: Tensor, order: Tensor) -> Tensor:
    """The state after one unit at a time, `order` (B, K) of them, has taken the sign of its field; 0 changes nothing."""
    if torch.compiler.is_exporting():
        return over_time(lambda state, unit: (one_updated(state, weights, unit), unit), state, order)[1]
    state = state.clone()
    for unit in order.T:  # (B,)
        field = (weights[unit] * state).sum(-1, keepdim=True)  # (B, 1)
        old = state.gather(1, unit[:, None])
        state.scatter_(1, unit[:, None], torch.where(field == 0, old, field.sign()))
    return state


def one_updated(state: Tensor, weights: Tensor, unit: Tensor) -> Tensor:
    """The state after one unit of each row (B,) has done so, as a new tensor."""
    field = (weights[unit] * state).sum(-1, keepdim=True)
    old = state.gather(1, unit[:, None])
    return state.scatter(1, unit[:, None], torch.where(field == 0, old, field.sign()))
