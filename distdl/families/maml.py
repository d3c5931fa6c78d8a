"""Model-agnostic meta-learning: weights from which a few steps learn a new task (Finn, Abbeel & Levine 2017, ICML).

    theta_i = theta,  then `inner_steps` times   theta_i -= alpha grad L_i(support; theta_i)
    loss    = mean over tasks i of L_i(query; theta_i)                                          (equation 1)

L is the mean squared error. The gradient of the loss goes through the inner steps; `first_order` takes their gradients for
constants. With `inner_steps: 0` the network is trained on all tasks jointly, which is what it is compared with. A sample is
a task: points that are learned from, and points that are asked. 1-40-40-1 has 1,761 parameters.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from distdl.config.fields import Amount, Count, CountOrZero, Counts
from distdl.learner import Answer, Batch, Column, Learner
from distdl.metrics import Metrics, mean
from distdl.nn.watch import shown

Weights = list[tuple[Tensor, Tensor]]
"""Of each layer (T, out, in) and (T, out), of T tasks."""


@dataclass(frozen=True)
class Config:
    inputs: Count = 1
    """Numbers of a point."""
    outputs: Count = 1
    """Numbers that are told of it."""
    support: Count = 10
    """Points of a task that are learned from."""
    query: Count = 10
    """Points of a task that are asked afterwards."""
    hidden: Counts = (40, 40)
    """Units of each hidden layer (ReLU)."""
    inner_steps: CountOrZero = 1
    """Steps on a task's support in training; 0: learn all tasks jointly."""
    inner_lr: Amount = 0.01
    """alpha, the learning rate of those steps."""
    evaluate_steps: Count = 10
    """Steps on a new task's support in evaluations."""
    first_order: bool = False
    """Take the gradients of the inner steps for constants: no second derivatives."""


class MAML(Learner):
    targets = frozenset({"query_y"})
    learns = "back-propagation through steps of back-propagation"
    primary = "query_error"
    layouts = frozenset({"torch", "zero0", "zero1", "zero2"})  # zero3 has no whole weights outside a layer's own pass

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        sizes = itertools.pairwise([config.inputs, *config.hidden, config.outputs])
        self.maps = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in sizes)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        parts = {"support": config.support, "query": config.query}
        sizes = {"x": config.inputs, "y": config.outputs}
        return {
            f"{part}_{axis}": Column.numbers((points, size), meaning=f"{axis} of a point")
            for axis, size in sizes.items()
            for part, points in parts.items()
        }

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"query": Answer("values", "of each query point, learned from the row's support", of="query_y")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return {"query": told(self.adapted(batch, self.config.evaluate_steps, learn=False), batch["query_x"])}

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        weights = self.adapted(batch, self.config.inner_steps, learn=True)
        errors = self.errors(weights, batch, "query")
        return errors.mean(), {"query_error": mean(errors)}

    def evaluate(self, batch: Batch) -> Metrics:
        """`query_error` after the steps on the new tasks, `before` without any, `loss` after as many as in training."""
        after = {
            n: self.adapted(batch, n, learn=False) for n in {0, self.config.inner_steps, self.config.evaluate_steps}
        }
        shown("series: one task after its steps", lambda: self.of_first_task(after[self.config.evaluate_steps], batch))
        error = {n: mean(self.errors(weights, batch, "query")) for n, weights in after.items()}
        told = {"loss": self.config.inner_steps, "before": 0, "query_error": self.config.evaluate_steps}
        return {name: error[n] for name, n in told.items()}

    def of_first_task(self, weights: Weights, batch: Batch) -> dict[str, Tensor]:
        """Values told and true of its points, in the order of their first coordinate."""
        order = batch["query_x"][0, :, 0].argsort()
        return {"told": told(weights, batch["query_x"])[0][order], "true": batch["query_y"][0][order]}

    def adapted(self, batch: Batch, steps: int, learn: bool) -> Weights:
        """Each task's own weights after its steps; with `learn`, a gradient reaches the common ones through them."""
        tasks = batch["support_x"].shape[0]
        common = [(m.weight, m.bias) for m in cast(Iterable[nn.Linear], self.maps)]
        if torch.compiler.is_exporting():  # a graph has no gradients
            own: Weights = [(w.expand(tasks, *w.shape), b.expand(tasks, *b.shape)) for w, b in common]
            for _ in range(steps):
                downhill = slopes_of(own, batch["support_x"], batch["support_y"])
                own = [
                    (w - self.config.inner_lr * dw, b - self.config.inner_lr * db)
                    for (w, b), (dw, db) in zip(own, downhill)
                ]
            return own
        with torch.enable_grad():
            weights = [(_each(w, tasks), _each(b, tasks)) for w, b in common]
            for _ in range(steps):
                # tasks do not share weights: the gradient of the sum holds the gradient of each
                error = self.errors(weights, batch, "support").sum()
                flat = [tensor for pair in weights for tensor in pair]
                slopes = torch.autograd.grad(error, flat, create_graph=learn and not self.config.first_order)
                flat = [tensor - self.config.inner_lr * slope for tensor, slope in zip(flat, slopes)]
                weights = list(zip(flat[::2], flat[1::2]))
        return weights if learn else [(w.detach(), b.detach()) for w, b in weights]

    def errors(self, weights: Weights, batch: Batch, part: str) -> Tensor:
        """Mean squared error of each task's points (T,)."""
        return (told(weights, batch[f"{part}_x"]) - batch[f"{part}_y"]).square().mean((1, 2))


def told(weights: Weights, x: Tensor) -> Tensor:
    """What each task's own weights say of its points: (T, N, D) -> (T, N, out)."""
    for i, (w, b) in enumerate(weights):
        x = torch.baddbmm(b[:, None], x.relu() if i else x, w.mT)
    return x


def slopes_of(weights: Weights, x: Tensor, y: Tensor) -> Weights:
    """The gradient of each task's mean squared error with respect to its own weights, written out."""
    seen = []
    for i, (w, b) in enumerate(weights):
        seen.append(x.relu() if i else x)
        x = torch.baddbmm(b[:, None], seen[-1], w.mT)
    back = 2 * (x - y) / (y.shape[1] * y.shape[2])  # (T, N, out)
    found: Weights = []
    for (w, _), x in zip(reversed(weights), reversed(seen)):
        found.insert(0, (back.mT @ x, back.sum(1)))
        back = (back @ w) * (x > 0)
    return found


def _each(weight: Tensor, tasks: int) -> Tensor:
    """One for each task; those of a frozen layer learn within a task all the same."""
    copies = weight.expand(tasks, *weight.shape)
    return copies if copies.requires_grad else copies.detach().requires_grad_()
