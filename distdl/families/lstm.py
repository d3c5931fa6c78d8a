"""Long short-term memory (Hochreiter & Schmidhuber 1997, Neural Computation 9:1735; forget gate: Gers et al. 2000).

    i, f, o = sigmoid(W x_t + b + U h_{t-1} + c)     input, forget and output gate: a block of rows of W and U each
    g       = tanh(W x_t + b + U h_{t-1} + c)        candidate
    c_t     = f * c_{t-1} + i * g                    the cell: errors flow back through this sum
    h_t     = o * tanh(c_t)                          h_0 = c_0 = 0

`forget_gate: false` is the cell of 1997: f = 1, nothing is ever forgotten. Dropout stands on the connections between
layers only, never on the recurrent ones (Zaremba, Sutskever & Vinyals 2014).

A layer has 4(H(I + H) + 2H) parameters, as torch.nn.LSTM counts them: 330,752 from 65 inputs to 256 units. The default
config is Zaremba's medium word model of the Penn Treebank, 19,780,400 parameters.

The three tasks and their losses are in learner/sequence.py: the class of the last state or the next token of each, by cross
entropy, with their accuracy; or the next values, by their squared error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Count, CountOrZero, OpenShare, SequenceTask, Several
from distdl.config.marks import TRAINING_ONLY
from distdl.layout.noise import Dropout
from distdl.learner.sequence import SequenceLearner
from distdl.nn.recurrence import over_time


@dataclass(frozen=True)
class Config:
    task: SequenceTask = "tokens"
    """rows: classify a picture read row by row; tokens: predict the next token; values: predict the next numbers."""
    inputs: Count = 10000
    """Pixels of a row, tokens of the vocabulary (256 for bytes), or numbers of a step."""
    steps: Count = 35
    """Length of a sequence."""
    classes: Several = 10
    """Number of classes (task rows)."""
    embedding: CountOrZero = 650
    """Size of a token's trained vector; 0: tokens enter one-hot (and rows and values as they are)."""
    units: Count = 650
    """Memory cells of a layer."""
    layers: Count = 2
    """Recurrent layers on top of each other."""
    dropout: Annotated[OpenShare, TRAINING_ONLY] = 0.5
    """Probability of dropping what enters a layer or the output."""
    forget_gate: bool = True
    """false: the cell of 1997, without a forget gate."""
    frames: Annotated[bool, TRAINING_ONLY] = False
    """The data set's column `frames` says how many steps of a row count; what follows them is padding (tasks rows and
    values)."""

    def __post_init__(self) -> None:
        if self.embedding and self.task != "tokens":
            raise ValueError(f"embedding is {self.embedding}, but the task {self.task} has no tokens: set it to 0")
        if self.frames and self.task == "tokens":
            raise ValueError("frames is true, but rows of tokens are full: set it to false")


class Layer1997(nn.Module):
    """One layer of the cell without a forget gate, written out; the calling convention is that of torch.nn.LSTM."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.units = units
        self.weight_ih = nn.Parameter(torch.empty(3 * units, inputs))  # W: i, g, o
        self.weight_hh = nn.Parameter(torch.empty(3 * units, units))  # U
        self.bias_ih = nn.Parameter(torch.empty(3 * units))  # b
        self.bias_hh = nn.Parameter(torch.empty(3 * units))  # c
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(units**-0.5), units**-0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        sums = F.linear(x, self.weight_ih, self.bias_ih + self.bias_hh)  # (B, T, 3H): all steps at once
        h, c = x.new_zeros(x.shape[0], self.units), x.new_zeros(x.shape[0], self.units)  # (B, H) each
        return over_time(self.step, (h, c), sums)  # (B, T, H), (h, c)

    def step(self, state: tuple[Tensor, Tensor], sums_t: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        h, c = state
        i, g, o = (sums_t + F.linear(h, self.weight_hh)).chunk(3, -1)
        c = c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h, c), h


def layer(inputs: int, config: Config) -> nn.Module:
    """One recurrent layer. With the forget gate it is torch.nn.LSTM: the equations above in one fused kernel."""
    if config.forget_gate:
        return nn.LSTM(inputs, config.units, batch_first=True)
    return Layer1997(inputs, config.units)


class LSTM(SequenceLearner):
    one_graph = True
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.units, config.embedding)
        sizes = [config.embedding or config.inputs, *[config.units] * (config.layers - 1)]
        self.stack = nn.ModuleList(layer(size, config) for size in sizes)
        self.drop = Dropout(config.dropout)

    def states(self, x: Tensor) -> Tensor:
        for recurrent in self.stack:
            x, _ = recurrent(self.drop(x))  # (B, T, H)
        return self.drop(x)
