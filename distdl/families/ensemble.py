"""Ensemble of a DNN, a CNN and an RNN whose posteriors are stacked (Deng & Platt 2014, Interspeech).

    y_m(x) = softmax of member m,   m = dnn, cnn, rnn                     each learns by cross entropy as if it were alone
    linear:      v = U^T [y_dnn; y_cnn; y_rnn; 1],     log-linear:  v = U^T [ln y_dnn; ln y_cnn; ln y_rnn; 1]
    U = argmin sum_x |v(x) - t(x)|^2 + ridge |U|^2 = (Z^T Z + ridge I)^-1 Z^T T,      answer = argmax v       (t one-hot)

Posteriors of the rows that members learned from would say too well of all of them: one row in `hold_out` teaches the stack
alone. Members change while it learns, so the sums Z^T Z and Z^T T forget: each step keeps the share `memory` of them.

The members read a recording of T frames of F log-mel features: the dnn all at once, the cnn as a picture (two 5x5
convolutions, each with 2x2 pooling), the rnn frame by frame (GRU, Cho et al. 2014, its state after the last frame).
80 frames of 40 features, 10 words: 887,818 + 77,258 + 40,714 = 1,005,790 parameters, and 310 in the stack.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.columns import recording
from distdl.config.fields import Amount, Count, Counts, OpenShare, Pair, Several
from distdl.learner import Answer, Batch, Column, Learner, Verbs
from distdl.learner.answers import SCORES, of_scores
from distdl.learner.labels import filled, known, mean_known, share
from distdl.metrics import Metrics
from distdl.nn.watch import seen

MEMBERS = ("dnn", "cnn", "rnn")
LEAST = -12.0  # ln of the smallest posterior that log-linear stacking sees: one miss must not outweigh all other rows


@dataclass(frozen=True)
class Config:
    steps: Annotated[int, Field(ge=4)] = 80
    """Frames T of a recording, padding included."""
    bands: Annotated[int, Field(ge=4)] = 40
    """Features F of a frame."""
    classes: Several = 10
    """Number of classes K."""
    hidden: Counts = (256, 256)
    """Units of the dnn's layers."""
    maps: Pair = (16, 32)
    """Feature maps of the cnn's two convolutions."""
    units: Count = 96
    """Units of the rnn."""
    stacking: Literal["linear", "log_linear"] = "log_linear"
    """Whether posteriors are stacked, or their logarithms."""
    hold_out: Annotated[int, Field(ge=2)] = 8
    """One row in so many (row numbers it divides) teaches the stack, the others the members."""
    ridge: Amount = 1.0
    """Weight of the squared size of the stack's coefficients."""
    memory: OpenShare = 0.98
    """Share of the stack's sums that a step keeps."""


class DNN(nn.Module):
    """Fully connected over all frames."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = [config.steps * config.bands, *config.hidden]
        layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.net = nn.Sequential(*layers, nn.Linear(sizes[-1], config.classes))

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        return self.net(x.flatten(1))


class CNN(nn.Module):
    """Convolutions over time and frequency."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        first, second = config.maps
        self.c1, self.c2 = nn.Conv2d(1, first, 5, padding=2), nn.Conv2d(first, second, 5, padding=2)
        self.head = nn.Linear(second * (config.steps // 4) * (config.bands // 4), config.classes)

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.c1(x[:, None])), 2)  # (B, C1, T/2, F/2)
        x = F.max_pool2d(torch.relu(self.c2(x)), 2)  # (B, C2, T/4, F/4)
        return self.head(x.flatten(1))


class RNN(nn.Module):
    """Gated recurrent units, frame by frame."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.cell = nn.GRU(config.bands, config.units, batch_first=True)
        self.head = nn.Linear(config.units, config.classes)

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        states = self.cell(x)[0]  # (B, T, H)
        return self.head(states[torch.arange(x.shape[0], device=x.device), frames - 1])


class Ensemble(Learner):
    primary, better = "accuracy", "higher"
    learns = "back-propagation, and least squares for the stack"
    settled: Tensor | None = None
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})
    gram: Tensor
    cross: Tensor
    forgot_step: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.dnn, self.cnn, self.rnn = DNN(config), CNN(config), RNN(config)
        width = len(MEMBERS) * config.classes + 1
        self.register_buffer("gram", torch.zeros(width, width, dtype=torch.float64))  # Z^T Z
        self.register_buffer("cross", torch.zeros(width, config.classes, dtype=torch.float64))  # Z^T T
        self.register_buffer("forgot_step", torch.tensor(-1))

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {**recording((config.steps, config.bands)), "label": Column.label(config.classes)}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return SCORES

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        settled = self.settled if torch.compiler.is_exporting() else None
        return of_scores(self.stacked(self.members(batch)) @ (self.coefficients() if settled is None else settled))

    def settle(self) -> None:
        self.settled = self.coefficients()

    def members(self, batch: Batch) -> Tensor:
        """ln of the members' posteriors, (M, B, K)."""
        x, frames = batch["x"], batch["frames"]
        return torch.stack([getattr(self, name)(x, frames) for name in MEMBERS]).float().log_softmax(-1)

    def stacked(self, log_y: Tensor) -> Tensor:
        """What the stack sees: (M, B, K) -> (B, M * K + 1) in fp64."""
        y = log_y.double()
        y = y.exp() if self.config.stacking == "linear" else y.clamp(min=LEAST)
        return F.pad(y.transpose(0, 1).flatten(1), (0, 1), value=1.0)

    def coefficients(self) -> Tensor:
        """U, (M * K + 1, K)."""
        ridge = self.config.ridge * torch.eye(len(self.gram), dtype=torch.float64, device=self.gram.device)
        return torch.linalg.solve(self.gram + ridge, self.cross)

    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        metrics = super().update(batch, engine, step)
        if int(self.forgot_step) != step:  # once a step, however many micro-batches it has
            self.gram *= self.config.memory
            self.cross *= self.config.memory
            self.forgot_step.fill_(step)
        self.gram += engine.all_sum(self.held_out.T @ self.held_out)
        self.cross += engine.all_sum(self.held_out.T @ self.wanted)
        return metrics

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        log_y, label, every = self.members(batch), batch["label"], self.config.hold_out
        held_out = batch["id"] % every == 0
        taught = held_out & known(label)
        z = self.stacked(log_y[:, taught].detach())
        self.held_out, self.wanted = z, F.one_hot(label[taught], self.config.classes).double()  # for update
        losses = self.losses(log_y, label).masked_fill(held_out | ~known(label), 0.0)
        # Divided by the expected number of rows, not the number here: the sum over parts is then the same for all cuts.
        learned = len(label) * (1 - 1 / every) * share(losses, batch)
        right = (log_y.argmax(-1) == label).float()  # (M, B)
        return losses.sum() / learned, {"member_accuracy": mean_known(right.T, label)}

    def losses(self, log_y: Tensor, label: Tensor) -> Tensor:
        """Cross entropy of every sample (B,), summed over the members: none feels the others."""
        return sum(F.nll_loss(y, filled(label), reduction="none") for y in log_y)  # type: ignore[return-value]

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        """`accuracy` of the stack, of each member, their mean, and of the plain average of their posteriors."""
        log_y, label = self.members(batch), batch["label"]
        answers = {"accuracy": self.stacked(log_y) @ self.coefficients(), "averaged_accuracy": log_y.exp().mean(0)}
        seen("classes", answers["accuracy"], label)
        answers |= {f"accuracy_{name}": y for name, y in zip(MEMBERS, log_y)}
        metrics = {name: mean_known((answer.argmax(-1) == label).float(), label) for name, answer in answers.items()}
        right = (log_y.argmax(-1) == label).float()
        loss = mean_known(self.losses(log_y, label), label)
        return {"loss": loss, **metrics, "member_accuracy": mean_known(right.T, label)}
