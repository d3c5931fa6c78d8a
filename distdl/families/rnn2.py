"""Second-order recurrent network, whose inputs choose the transition of its state (Giles et al. 1992, Neural Comp. 4:393).

    s_i(t+1) = g(sum_jk W_ijk s_j(t) x_k(t) + b_i),    s(0) = (1, 0, ..., 0)

With symbols as one-hot x, each symbol has a transition matrix of its own: the form of a finite automaton, which can be read
out of the trained network. Numbers (pixels, values) come with a constant 1 as a last input, whose matrix starts as the
identity, so that an empty row does not wipe out the state. N^2 K + N parameters, and a linear head, which reads the state
where the paper trains one of its units.

Strings are told by the state after their last symbol. The other tasks and their losses are in learner/sequence.py: the
class of the last state or the next token of each, by cross entropy, with their accuracy; or the next values, by their
squared error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Amount, Count, SequenceTask, Several
from distdl.config.marks import INVISIBLE, TRAINING_ONLY
from distdl.learner import Batch, Column
from distdl.learner.answers import of_logits
from distdl.learner.labels import of_classes
from distdl.learner.sequence import SequenceLearner
from distdl.metrics import Metrics
from distdl.nn.recurrence import over_time


@dataclass(frozen=True)
class Config:
    task: Literal["strings", SequenceTask] = "strings"
    """strings: whether a grammar accepts a string; rows: the class of a picture read row by row; tokens: the next of a
    text; values: the next of a series."""
    inputs: Count = 2
    """Symbols of an alphabet, pixels of a row, tokens of the vocabulary, or values of a step."""
    steps: Count = 30
    """Steps of a sample; of the longest string."""
    classes: Several = 2
    """Classes of the tasks strings and rows."""
    units: Count = 8
    """State units (N)."""
    activation: Annotated[Literal["logistic", "tanh"], INVISIBLE] = "logistic"
    """Non-linearity g: logistic as in the paper, or tanh."""
    scale: Amount = 1.0
    """Fresh W_ijk are normal with this deviation divided by the root of N."""
    frames: Annotated[bool, TRAINING_ONLY] = False
    """The data set's column `frames` says how many steps of a row count; what follows them is padding (tasks rows and
    values)."""

    def __post_init__(self) -> None:
        if self.frames and self.task in ("tokens", "strings"):
            raise ValueError(f"frames is true, but the task {self.task} counts its symbols otherwise: set it to false")


class SecondOrder(SequenceLearner):
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.units)
        if config.task == "strings":
            self.head = nn.Linear(config.units, config.classes)
            self.primary, self.better = "accuracy", "higher"
        numbers = config.task in ("rows", "values")
        N, K = config.units, config.inputs + numbers
        w = torch.randn(N, N, K) * config.scale / N**0.5
        if numbers:
            w[..., -1] = torch.eye(N)
        self.w = nn.Parameter(w)
        self.b = nn.Parameter(torch.zeros(N))

    @staticmethod
    def columns(config: Any) -> dict[str, Column]:
        if config.task == "strings":
            return {
                "tokens": Column.whole(0, config.inputs, (config.steps,), meaning="symbol (the next fills up)"),
                "length": Column.whole(0, None, meaning="length of a string", within="tokens"),
                "label": Column.label(config.classes),
            }
        return SequenceLearner.columns(config)

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return of_logits(self.accepted(batch)) if self.config.task == "strings" else super().answer(batch)

    def states(self, x: Tensor) -> Tensor:
        if self.w.shape[-1] > x.shape[-1]:
            x = torch.cat([x, torch.ones_like(x[..., :1])], -1)  # (B, T, K)
        return over_time(self.step, self.start(x), x)[0]

    def step(self, s: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
        sums = torch.einsum("ijk,bj,bk->bi", self.w, s, now) + self.b
        s = torch.sigmoid(sums) if self.config.activation == "logistic" else torch.tanh(sums)
        return s, s

    def start(self, x: Tensor) -> Tensor:
        """s(0): one unit on, the others off. (B, N)"""
        return F.one_hot(x.new_zeros(x.shape[0], dtype=torch.long), self.config.units).to(x.dtype)

    def losses(self, batch: Batch) -> tuple[Tensor, Metrics]:
        if self.config.task != "strings":
            return super().losses(batch)
        return of_classes(self.accepted(batch), batch["label"])

    def accepted(self, batch: Batch) -> Tensor:
        """Logits of a string's classes (B, K)."""
        symbols = batch["tokens"].long().clamp_max(self.config.inputs - 1)  # fillers are never looked at
        if not torch.compiler.is_exporting():
            symbols = symbols[:, : max(1, int(batch["length"].max()))]  # what is behind the end of all is not read
        x = self.encode(symbols)  # (B, T, K)
        states = torch.cat([self.start(x)[:, None], self.states(x)], 1)  # (B, 1 + T, N)
        return self.head(states[torch.arange(x.shape[0], device=x.device), batch["length"]]).float()
