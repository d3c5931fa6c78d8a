"""Gated recurrent unit (Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder", EMNLP).

    r   = sigmoid(W_r x_t + b_r + U_r h_{t-1} + c_r)         reset gate
    z   = sigmoid(W_z x_t + b_z + U_z h_{t-1} + c_z)         update gate
    n   = tanh(W_n x_t + b_n + U_n (r * h_{t-1}) + c_n)      candidate: reset before the product, as in the paper
    n   = tanh(W_n x_t + b_n + r * (U_n h_{t-1} + c_n))      or after it (`reset_after`), as in torch.nn.GRU and cuDNN
    h_t = (1 - z) * n + z * h_{t-1},   h_0 = 0

Layers stack: the states of one are the inputs of the next. A layer has 3(H(I + H) + 2H) parameters, as torch.nn.GRU counts
them: 248,064 from 65 inputs to 256 units.

The three tasks and their losses are in learner/sequence.py: the class of the last state or the next token of each, by cross
entropy, with their accuracy; or the next values, by their squared error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Count, CountOrZero, SequenceTask, Several
from distdl.config.marks import TRAINING_ONLY
from distdl.learner.sequence import SequenceLearner
from distdl.nn.recurrence import over_time, own


@dataclass(frozen=True)
class Config:
    task: SequenceTask = "tokens"
    """rows: classify a picture read row by row; tokens: predict the next token; values: predict the next numbers."""
    inputs: Count = 65
    """Pixels of a row, tokens of the vocabulary (256 for bytes), or numbers of a step."""
    steps: Count = 64
    """Length of a sequence."""
    classes: Several = 10
    """Number of classes (task rows)."""
    embedding: CountOrZero = 0
    """Size of a token's trained vector; 0: tokens enter one-hot (and rows and values as they are)."""
    units: Count = 256
    """Hidden units of a layer."""
    layers: Count = 1
    """Recurrent layers on top of each other."""
    reset_after: bool = False
    """The reset gate acts after the recurrent product (torch's fused kernel) instead of before it (the paper)."""
    frames: Annotated[bool, TRAINING_ONLY] = False
    """The data set's column `frames` says how many steps of a row count; what follows them is padding (tasks rows and
    values)."""

    def __post_init__(self) -> None:
        if self.embedding and self.task != "tokens":
            raise ValueError(f"embedding is {self.embedding}, but the task {self.task} has no tokens: set it to 0")
        if self.frames and self.task == "tokens":
            raise ValueError("frames is true, but rows of tokens are full: set it to false")


class ResetBefore(nn.GRU):
    """One layer as in the paper; parameters and calling convention are those of torch.nn.GRU."""

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor
    bias_hh_l0: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gates = 2 * self.hidden_size  # torch keeps the rows of r, z and n below each other
        U, U_n = own(self.weight_hh_l0[:gates], self.weight_hh_l0[gates:])
        sums = F.linear(x, self.weight_ih_l0, self.bias_ih_l0 + self.bias_hh_l0)  # (B, T, 3H): all steps at once

        def step(h: Tensor, sums_t: Tensor) -> tuple[Tensor, Tensor]:
            r, z = (sums_t[:, :gates] + F.linear(h, U)).sigmoid().chunk(2, -1)
            n = (sums_t[:, gates:] + F.linear(r * h, U_n)).tanh()
            h = (1 - z) * n + z * h
            return h, h

        return over_time(step, x.new_zeros(x.shape[0], self.hidden_size), sums)  # (B, T, H), (B, H)


class GRU(SequenceLearner):
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.units, config.embedding)
        kind = nn.GRU if config.reset_after else ResetBefore
        sizes = [config.embedding or config.inputs, *[config.units] * (config.layers - 1)]
        self.stack = nn.ModuleList(kind(size, config.units, batch_first=True) for size in sizes)

    def states(self, x: Tensor) -> Tensor:
        for layer in self.stack:
            x, _ = layer(x)  # (B, T, H)
        return x
