"""Fully recurrent network, every unit connected to every unit and input (Williams & Zipser 1989, Neural Comp. 1:270).

    y(t+1) = f(W z(t)),   z = [y; x; 1],   W (n, n + m + 1);   the first units are the outputs, the others are hidden
    loss = 1/2 sum_k (d_k - y_k)^2 for the output units, from the tick on at which the first answer is due

The gradient is either back-propagated through time, or carried forward with the network by real-time recurrent learning,
which keeps nothing of the past and costs n^4 a tick:

    p^k_ij(t+1) = f'(s_k) (sum_l w_kl p^l_ij(t) + [i = k] z_j(t)),   p = d y_k / d w_ij,   p(0) = 0

Both are the same gradient. n (n + m + 1) parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from distdl.config.fields import Amount, Count
from distdl.config.marks import INVISIBLE
from distdl.learner import Answer, Batch, Column, Learner
from distdl.metrics import Metrics, mean
from distdl.nn.recurrence import over_time
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    inputs: Count = 2
    """Input lines (m)."""
    units: Count = 8
    """Units, the output units among them (n)."""
    outputs: Count = 1
    """Units that have a target."""
    activation: Annotated[Literal["logistic", "tanh"], INVISIBLE] = "logistic"
    """Non-linearity f: logistic as in the paper, or tanh."""
    gradient: Literal["bptt", "rtrl"] = "bptt"
    """How the gradient is computed: back-propagation through time, or real-time recurrent learning."""
    scale: Amount = 1.0
    """Fresh weights are uniform between minus this and this."""

    def __post_init__(self) -> None:
        if self.outputs > self.units:
            raise ValueError(f"{self.outputs} of {self.units} units cannot be outputs; add units")


class FullyRecurrent(Learner):
    primary, better = "accuracy", "higher"
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        weight = torch.empty(config.units, config.units + config.inputs + 1)
        self.weight = nn.Parameter(weight.uniform_(-config.scale, config.scale))

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {
            "x": Column((None, config.inputs), "real", meaning="input of a tick", lengths="frames"),
            "y": Column.numbers((None, config.outputs), meaning="wanted activity, or NaN"),
        }

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"activity": Answer("values", "of the output units after each tick", of="y")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return {"activity": self.activities(batch["x"])[..., : self.config.outputs]}

    def tick(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (B, m) and activities (B, n) -> z (B, n + m + 1) and the activities a tick later."""
        z = torch.cat([y, x, torch.ones_like(x[:, :1])], -1)
        sums = z @ self.weight.T
        return z, torch.sigmoid(sums) if self.config.activation == "logistic" else torch.tanh(sums)

    def silence(self, x: Tensor) -> Tensor:
        """The activities before the first tick. (B, n)"""
        return x.new_zeros(x.shape[0], self.config.units)

    def activities(self, x: Tensor) -> Tensor:
        """(B, T, m) -> (B, T, n), after each tick."""

        def step(y: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
            _, y = self.tick(now, y)
            return y, y

        return over_time(step, self.silence(x), x)[0]

    def errors(self, batch: Batch) -> Tensor:
        """What the output units lack in the last ticks, those that have a target. (B, T, outputs)"""
        due = batch["y"].shape[1]
        return batch["y"] - self.activities(batch["x"])[:, -due:, : self.config.outputs]

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        if self.config.gradient == "bptt":
            errors = self.errors(batch)
            return squares(errors).mean(), measured(errors)
        with torch.no_grad():
            errors = self.errors(batch)
            gradient = self.rtrl(batch["x"], errors) / errors[..., 0].numel()
        # A term of no size whose gradient is the one that came forward.
        return squares(errors).mean() + ((self.weight - self.weight.detach()) * gradient).sum(), measured(errors)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        errors = self.errors(batch)
        shown("series", lambda: {"told": (batch["y"] - errors)[0], "true": batch["y"][0]})
        return {"loss": mean(squares(errors)), **measured(errors)}

    def rtrl(self, x: Tensor, errors: Tensor) -> Tensor:
        """d/dW of the sum of the losses of all samples and ticks, without looking back. (n, n + m + 1)"""
        n, first = self.config.units, x.shape[1] - errors.shape[1]
        y = self.silence(x)
        p = x.new_zeros(len(x), n, *self.weight.shape)  # (B, k, i, j): d y_k / d w_ij
        gradient = torch.zeros_like(self.weight)
        for t, now in enumerate(x.unbind(1)):
            z, y = self.tick(now, y)
            slope = y * (1 - y) if self.config.activation == "logistic" else 1 - y.square()  # f', (B, n)
            p = torch.einsum("kl,blij->bkij", self.weight[:, :n], p)
            p.diagonal(dim1=1, dim2=2).add_(z[:, :, None])  # w_ij with i = k acts on unit k at once; (B, j, i)
            p *= slope[:, :, None, None]
            if t >= first:
                gradient -= torch.einsum("bk,bkij->ij", errors[:, t - first], p[:, : self.config.outputs])
        return gradient


def squares(errors: Tensor) -> Tensor:
    """Half the squared length of the error of each tick. (B, T, outputs) -> (B, T)"""
    return 0.5 * errors.square().sum(-1)


def measured(errors: Tensor) -> Metrics:
    """A binary target is met where the output is nearer to it than to its opposite."""
    return {"accuracy": mean((errors.abs() < 0.5).float())}
