"""Elman's simple recurrent network, by back-propagation through time (Elman 1990, Cognitive Science 14:179).

    h_t = f(W x_t + b + U h_{t-1} + c),   h_0 = 0,   y_t = V h_t + d

The hidden units see their own last state, which the paper calls the context. f is the logistic function in the paper and
tanh in common use. Layers stack: the states of one are the inputs of the next. With one-hot words, the logistic function
and the task `tokens` it is the network of RNNLM (Mikolov et al. 2010).

A layer has H(I + H) + 2H parameters, the two biases as torch.nn.RNN counts them: 82,688 from 65 inputs to 256 units.

The three tasks and their losses are in learner/sequence.py: the class of the last state or the next token of each, by cross
entropy, with their accuracy; or the next values, by their squared error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Count, CountOrZero, SequenceTask, Several
from distdl.config.marks import INVISIBLE, TRAINING_ONLY
from distdl.learner.sequence import SequenceLearner
from distdl.nn.recurrence import over_time


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
    """Recurrent layers on top of each other; one in the paper."""
    activation: Annotated[Literal["relu", "tanh", "sigmoid"], INVISIBLE] = "tanh"
    """f: the paper has sigmoid, the logistic function."""
    frames: Annotated[bool, TRAINING_ONLY] = False
    """The data set's column `frames` says how many steps of a row count; what follows them is padding (tasks rows and
    values)."""

    def __post_init__(self) -> None:
        if self.embedding and self.task != "tokens":
            raise ValueError(f"embedding is {self.embedding}, but the task {self.task} has no tokens: set it to 0")
        if self.frames and self.task == "tokens":
            raise ValueError("frames is true, but rows of tokens are full: set it to false")


ACTIVATIONS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu}


class Layer(nn.Module):
    """One recurrent layer; parameters named and initialised as in torch.nn.RNN."""

    def __init__(self, inputs: int, units: int, activation: str) -> None:
        super().__init__()
        self.units, self.act = units, ACTIVATIONS[activation]
        self.weight_ih = nn.Parameter(torch.empty(units, inputs))  # W
        self.weight_hh = nn.Parameter(torch.empty(units, units))  # U
        self.bias_ih = nn.Parameter(torch.empty(units))  # b
        self.bias_hh = nn.Parameter(torch.empty(units))  # c
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(units**-0.5), units**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        sums = F.linear(x, self.weight_ih, self.bias_ih + self.bias_hh)  # (B, T, H): all steps at once
        return over_time(self.step, x.new_zeros(x.shape[0], self.units), sums)[0]  # (B, T, H)

    def step(self, h: Tensor, sums_t: Tensor) -> tuple[Tensor, Tensor]:
        h = self.act(sums_t + F.linear(h, self.weight_hh))
        return h, h


class Elman(SequenceLearner):
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.units, config.embedding)
        sizes = [config.embedding or config.inputs, *[config.units] * (config.layers - 1)]
        self.stack = nn.Sequential(*(Layer(size, config.units, config.activation) for size in sizes))

    def states(self, x: Tensor) -> Tensor:
        return self.stack(x)  # (B, T, H)
