"""Hierarchical recurrent network: slow units above fast ones (Schmidhuber 1992; El Hihi & Bengio 1996).

Form `chunks`: a fast network reads chunks of k steps, a slow one reads what the fast one has made of each chunk, so that
an error reaches T steps back through T/k + k steps (GRU: Cho et al. 2014, as in torch.nn.GRU):

    low_t  = GRU(x_t, low_{t-1}),              started from zeros at the first step of each chunk
    high_j = GRU(low_{jk}, high_{j-1}),        one step for each whole chunk, high_0 = 0
    h_t    = [low_t, high_{floor(t/k)}]        t = 1, 2, ..., T: it never looks ahead

Form `clockwork` (Koutník et al. 2014): one layer of tanh units in groups of the periods 1, 2, 4, ...; a group moves only
at the steps that its period divides, and hears itself and slower groups only:

    h_t[g] = tanh(W x_t + b + sum over slower and own groups s of U[g, s] h_{t-1}[s])   if t mod period_g = 0
    h_t[g] = h_{t-1}[g]                                                                 otherwise

28 inputs and 128 units a level: 60,672 + 99,072 parameters of the two GRUs (159,744), and 2,570 of the head.

The three tasks and their losses are in learner/sequence.py: the class of the last state or the next token of each, by cross
entropy, with their accuracy; or the next values, by their squared error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Count, SequenceTask, Several
from distdl.config.marks import TRAINING_ONLY
from distdl.learner.sequence import SequenceLearner
from distdl.nn.recurrence import over_time


@dataclass(frozen=True)
class Config:
    task: SequenceTask = "rows"
    """rows: classify a picture read row by row; tokens: predict the next token; values: predict the next numbers."""
    inputs: Count = 28
    """Pixels of a row, tokens of the vocabulary (256 for bytes), or numbers of a step."""
    steps: Count = 28
    """Length of a sequence."""
    classes: Several = 10
    """Number of classes (task rows)."""
    form: Literal["chunks", "clockwork"] = "chunks"
    """chunks: a fast and a slow network; clockwork: groups of units that move every 1, 2, 4, ... steps."""
    units: Count = 128
    """Hidden units of each of the two levels, or of all groups together."""
    chunk: Count = 7
    """Steps of a chunk (form chunks); must divide `steps`."""
    groups: Count = 4
    """Groups of units (form clockwork); must divide `units`."""
    frames: Annotated[bool, TRAINING_ONLY] = False
    """The data set's column `frames` says how many steps of a row count; what follows them is padding (tasks rows and
    values)."""

    def __post_init__(self) -> None:
        if self.form == "chunks" and self.steps % self.chunk:
            raise ValueError(
                f"{self.steps} steps are no whole chunks of {self.chunk}; choose a chunk that divides them"
            )
        if self.form == "clockwork" and self.units % self.groups:
            raise ValueError(f"{self.units} units cannot be split into {self.groups} groups; choose a divisor")
        if self.frames and self.task == "tokens":
            raise ValueError("frames is true, but rows of tokens are full: set it to false")


class Chunks(nn.Module):
    """A fast GRU over the steps of a chunk, a slow one over the chunks."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.chunk = config.chunk
        self.low = nn.GRU(config.inputs, config.units, batch_first=True)
        self.high = nn.GRU(config.units, config.units, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        B, given, D = x.shape
        x = F.pad(
            x, (0, 0, 0, -given % self.chunk)
        )  # what fills up a last chunk that is no whole one is never looked at
        T = x.shape[1]
        low, _ = self.low(x.reshape(-1, self.chunk, D))  # (B*T/k, k, H): no chunk waits for another
        low = low.reshape(B, T, -1)  # (B, T, H)
        high, _ = self.high(low[:, self.chunk - 1 :: self.chunk])  # (B, T/k, H)
        high = high.repeat_interleave(
            self.chunk, 1
        )  # (B, T, H): high_j at the steps of chunk j, k - 1 of them too early
        high = F.pad(high, (0, 0, self.chunk - 1, 0))[:, :T]  # delayed to the last step of chunk j
        return torch.cat([low, high], -1)[:, :given]  # (B, T, 2H)


class Clockwork(nn.Module):
    """Groups of tanh units with the periods 1, 2, 4, ..."""

    period: Tensor
    hears: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.units = config.units
        self.weight_ih = nn.Parameter(torch.empty(config.units, config.inputs))  # W
        self.weight_hh = nn.Parameter(torch.empty(config.units, config.units))  # U
        self.bias = nn.Parameter(torch.empty(config.units))  # b
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(config.units**-0.5), config.units**-0.5)
        period = 2 ** torch.arange(config.groups).repeat_interleave(config.units // config.groups)  # (H,)
        self.register_buffer("period", period)
        self.register_buffer("hears", (period[None, :] >= period[:, None]).float())  # (H, H): no unit a faster one

    def forward(self, x: Tensor) -> Tensor:
        sums = F.linear(x, self.weight_ih, self.bias)  # (B, T, H): all steps at once
        U = self.weight_hh * self.hears

        def step(state: tuple[Tensor, Tensor], sums_t: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
            h, t = state
            h = torch.where(t % self.period == 0, torch.tanh(sums_t + F.linear(h, U)), h)
            return (h, t + 1), h

        first = (
            x.new_zeros(x.shape[0], self.units),
            torch.ones_like(self.period[:1]),
        )  # (B, H), the number of the step
        return over_time(step, first, sums)[0]  # (B, T, H)


class HRNN(SequenceLearner):
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__(config, width=(2 if config.form == "chunks" else 1) * config.units)
        self.net = Chunks(config) if config.form == "chunks" else Clockwork(config)

    def states(self, x: Tensor) -> Tensor:
        return self.net(x)
