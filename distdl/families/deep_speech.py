"""Deep Speech: letters from sound by one simple recurrent network and CTC (Hannun et al. 2014, arXiv:1412.5567).

    h1_t = g(W1 [x_{t-c} .. x_{t+c}] + b1),   h2_t = g(W2 h1_t + b2),   h3_t = g(W3 h2_t + b3),   g(z) = min(max(0, z), 20)
    f_t  = g(W4 h3_t + U f_{t-1} + b4),       r_t = g(W4 h3_t + V r_{t+1} + b4),                  f and r share W4 and b4
    h5_t = g(W5 (f_t + r_t) + b5),            y_t = softmax(W6 h5_t + b6) over the letters and a blank

No LSTM: a step is one matrix product, and three of the five layers see all times at once. Dropout is on the layers that do
not recur. `stride` 2 lets the network step over every other frame, as in the paper. Strings are read off the best path, or
by a search over prefixes (`beam`); the paper's language model, a 5-gram of words, is left out.

81 features, 9 frames of context on either side, 5 layers of 2,048, 28 letters and a blank: 28,387,357 parameters =
3,153,920 + 2 x 4,196,352 + (4,196,352 + 2 x 4,194,304) + 4,196,352 + 59,421.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.columns import recording
from distdl.config.fields import Amount, Count, CountOrZero, OpenShare, Several
from distdl.config.marks import TRAINING_ONLY
from distdl.layout.noise import Dropout
from distdl.learner import Answer, Batch, Column, Learner
from distdl.learner.answers import HEARD, in_rows
from distdl.learner.sequence import reverse
from distdl.metrics import Mean, Metrics, mean
from distdl.nn.ctc import best_path, ctc, edit_distance, heard, prefix_beam, strings
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    inputs: Count = 81
    """Features of a frame."""
    context: CountOrZero = 9
    """Frames on either side that enter with a frame."""
    stride: Count = 1
    """Frames from one step of the network to the next; the paper has 2."""
    units: Count = 2048
    """Units of each of the five hidden layers."""
    classes: Several = 28
    """Labels, such as the blank between words, a to z and the apostrophe; CTC's blank is one more."""
    space: Annotated[int, Field(ge=-1)] = 0
    """Label that parts words; -1: each label is a word."""
    clip: Amount = 20.0
    """Largest activation, so that no activation explodes on its way through time."""
    dropout: Annotated[OpenShare, TRAINING_ONLY] = 0.05
    """Share of units dropped in the layers that do not recur; 0.05 to 0.1 in the paper."""
    beam: CountOrZero = 0
    """Prefixes that the search keeps in evaluations, which then measure `beam_error`, too; 0: best path alone."""


class DeepSpeech(Learner):
    targets = frozenset({"label", "length"})
    primary, better = "label_error", "lower"
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, H = config, config.units
        self.layer1 = nn.Linear((2 * config.context + 1) * config.inputs, H)
        self.layer2, self.layer3 = nn.Linear(H, H), nn.Linear(H, H)
        self.layer4 = BothWays(H, config.clip)
        self.layer5 = nn.Linear(H, H)
        self.head = nn.Linear(H, config.classes + 1)
        self.dropout = Dropout(config.dropout)
        if config.beam:
            self.no_graph = "a beam search keeps other strings for each row; model.beam: 0 hears by the best path"

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {**recording((None, config.inputs)), **strings(config.classes)}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return HEARD

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        """By the search where the config has one, else by the best path."""
        (log_y, frames), beam = self.log_y(batch), self.config.beam
        if not beam:
            return {"string": heard(log_y, frames)}
        found = [prefix_beam(row[:n], beam)[0] for row, n in zip(log_y, frames.tolist())]
        return {"string": in_rows(found, frames)}

    def log_y(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T, K + 1), and how many of the T are the sample's (B,)."""
        x, c, stride = batch["x"], self.config.context, self.config.stride
        windows = F.pad(x, (0, 0, c, c)).unfold(1, 2 * c + 1, stride)  # (B, T, D, 2c + 1)
        frames = (batch["frames"] + stride - 1) // stride
        h = windows.transpose(2, 3).flatten(2)
        for layer in (self.layer1, self.layer2, self.layer3):
            h = self.dropout(layer(h).clamp(0, self.config.clip))  # (B, T, H)
        h = self.layer4(h, frames)
        h = self.dropout(self.layer5(h).clamp(0, self.config.clip))
        return self.head(h).float().log_softmax(-1), frames

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        return ctc(*self.log_y(batch), batch["label"], batch["length"]).mean(), {}

    def evaluate(self, batch: Batch) -> Metrics:
        """Edit distances per label and per word, of the best path and of the search."""
        log_y, frames = self.log_y(batch)
        losses = ctc(log_y, frames, batch["label"], batch["length"])
        shown("heat: labels over time", lambda: {"values": log_y[0].exp().mT})
        wanted = [row[:n] for row, n in zip(batch["label"].tolist(), batch["length"].tolist())]
        told = best_path(log_y, frames)
        metrics = {"loss": mean(losses), "label_error": errors(told, wanted, losses)}
        if self.config.space >= 0:
            words = [[self.words(row) for row in rows] for rows in (told, wanted)]
            metrics["word_error"] = errors(words[0], words[1], losses)
        if self.config.beam:
            found = [prefix_beam(row[:n], self.config.beam)[0] for row, n in zip(log_y, frames.tolist())]
            metrics["beam_error"] = errors(found, wanted, losses)
        return metrics

    def words(self, string: list[int]) -> list[tuple[int, ...]]:
        """The string parted at spaces."""
        words: list[tuple[int, ...]] = [()]
        for label in string:
            if label == self.config.space:
                words.append(())
            else:
                words[-1] += (label,)
        return [word for word in words if word]


class BothWays(nn.Module):
    """The fourth layer: the sum of two simple recurrent networks in opposite directions, with the same input weights."""

    def __init__(self, units: int, clip: float) -> None:
        super().__init__()
        self.input, self.clip = nn.Linear(units, units), clip  # W4, b4
        self.recurrent = nn.Parameter(torch.empty(2, units, units).uniform_(-(units**-0.5), units**-0.5))  # U, V

    def forward(self, h: Tensor, frames: Tensor) -> Tensor:
        sums = self.input(h)  # (B, T, H): all times at once
        both = torch.stack([sums, reverse(sums, frames)])  # (2, B, T, H)
        weight = self.recurrent.transpose(1, 2)  # (2, H, H)
        state, states = torch.zeros_like(both[:, :, 0]), []  # (2, B, H)
        for now in both.unbind(2):
            state = torch.baddbmm(now, state, weight).clamp(0, self.clip)
            states.append(state)
        ahead, back = torch.stack(states, 2)  # (B, T, H) each
        return ahead + reverse(back, frames)


def errors(heard: list, wanted: list, like: Tensor) -> Mean:
    """Edit distance per label (or word) that was wanted, on the device of `like`."""
    edits = sum(edit_distance(a, b) for a, b in zip(heard, wanted))
    return Mean(like.new_tensor(float(edits)), float(sum(map(len, wanted))))
