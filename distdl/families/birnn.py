"""Bidirectional recurrent network (Schuster & Paliwal 1997); with LSTM cells and CTC, BLSTM-CTC (Graves et al. 2006, 2009).

    forward_t  = cell(x_t, forward_{t-1}),   backward_t = cell(x_t, backward_{t+1}),   h_t = [forward_t, backward_t]

The cells are torch.nn's RNN, LSTM or GRU; layers stack. Task `rows` classifies a picture by the two last states,
[forward_T, backward_1]. Task `ctc` reads a strip column by column and writes a string that is shorter than the strip,
without being told where each label stands (connectionist temporal classification, Graves et al. 2006): a softmax over
the K labels and a blank at each frame, and the loss

    -ln p(z | x) = -ln sum over the paths pi that become z of prod_t y_t[pi_t]

where a path becomes a string by merging repeats and then dropping blanks. The sum is over z' = - z_1 - z_2 - ... z_L - :

    alpha_t(s) = y_t[z'_s] (alpha_{t-1}(s) + alpha_{t-1}(s-1) + alpha_{t-1}(s-2) if z'_s is no blank and not z'_{s-2})

100 LSTM cells a direction on frames of 28 numbers have 104,000 parameters, 2(4(H(I + H) + 2H)), and the head 2,211.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from distdl.config.fields import Count, Several
from distdl.config.marks import INVISIBLE, TRAINING_ONLY
from distdl.learner import Answer, Batch, Column, Learner
from distdl.learner.answers import CLASSES, HEARD, last_real, of_logits
from distdl.learner.labels import mean_known, mean_loss, of_classes
from distdl.learner.sequence import of_steps, reverse
from distdl.metrics import Mean, Metrics, mean
from distdl.nn.ctc import best_path, ctc, edit_distance, heard, strings
from distdl.nn.images import to_unit
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    task: Literal["rows", "ctc"] = "ctc"
    """rows: classify a picture read row by row; ctc: read a strip, column by column, as a string."""
    cell: Annotated[Literal["rnn", "lstm", "gru"], INVISIBLE] = "lstm"
    """Recurrent cell of both directions."""
    inputs: Count = 28
    """Pixels of a row (task rows) or of a column (task ctc)."""
    steps: Count = 112
    """Rows of a picture, or columns of the widest strip."""
    frame: Count = 1
    """Neighbouring rows or columns that enter as one step; must divide `steps`."""
    classes: Several = 10
    """Number of classes or labels (the blank is one more)."""
    units: Count = 100
    """Cells of a layer in each direction."""
    layers: Count = 1
    """Bidirectional layers on top of each other."""
    frames: Annotated[bool, TRAINING_ONLY] = False
    """The data set's column `frames` says how many rows of a picture count; what follows them is padding (task rows)."""

    def __post_init__(self) -> None:
        if self.steps % self.frame:
            raise ValueError(
                f"{self.steps} steps are no whole frames of {self.frame}; choose a frame that divides them"
            )
        if self.frames and self.task == "ctc":
            raise ValueError("frames is true, but strips have their column width: set it to false")


CELLS: dict[str, type[nn.RNN] | type[nn.LSTM] | type[nn.GRU]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class BiRNN(Learner):
    class_column, targets = "label", frozenset({"label", "length"})
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        cell, H = CELLS[config.cell], config.units
        sizes = [config.frame * config.inputs, *[2 * H] * (config.layers - 1)]
        self.forwards = nn.ModuleList(cell(size, H, batch_first=True) for size in sizes)
        self.backwards = nn.ModuleList(cell(size, H, batch_first=True) for size in sizes)
        self.head = nn.Linear(2 * H, config.classes + (config.task == "ctc"))
        if config.task == "rows":
            self.primary, self.better = "accuracy", "higher"
        else:
            self.primary, self.better = "label_error", "lower"  # edit distance per label

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        if config.task == "rows":
            picture = of_steps(Column.sample((1, config.steps, config.inputs)), "image", config)
            return {**picture, "label": Column.label(config.classes)}
        strip = {
            "image": Column.sample((1, config.inputs, config.steps)),
            "width": Column.whole(1, config.steps, meaning="columns of a strip"),
        }
        return {**strip, **strings(config.classes)}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return CLASSES if config.task == "rows" else HEARD

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        out, frames = self.outputs(batch)
        return of_logits(out) if self.config.task == "rows" else {"string": heard(out, frames)}

    def states(self, x: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) and its lengths (B,) -> the states (B, T, H) of the two directions, in the order of the input."""
        for onward, back in zip(self.forwards, self.backwards, strict=True):
            ahead, behind = onward(x)[0], reverse(back(reverse(x, frames))[0], frames)
            x = torch.cat([ahead, behind], -1)  # (B, T, 2H)
        return ahead, behind

    def frames(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, T, D), and how many of the T are the sample's (B,)."""
        x, f = to_unit(batch["image"]).squeeze(1), self.config.frame  # (B, rows, columns)
        if self.config.task == "ctc":
            x = x.transpose(1, 2)
        x = x.reshape(x.shape[0], self.config.steps // f, f * self.config.inputs)
        if self.config.task == "ctc" or self.config.frames:
            return x, (batch["width" if self.config.task == "ctc" else "frames"] + f - 1) // f
        return x, x.new_full((x.shape[0],), x.shape[1], dtype=torch.int64)

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (B, K) of the picture, or log-probabilities (B, T, K + 1) of the frames; and the lengths (B,)."""
        x, frames = self.frames(batch)
        ahead, behind = self.states(x, frames)
        if self.config.task == "rows":
            return self.head(torch.cat([last_real(ahead, frames), behind[:, 0]], -1)).float(), frames
        return self.head(torch.cat([ahead, behind], -1)).float().log_softmax(-1), frames

    def losses(self, batch: Batch, decode: bool) -> tuple[Tensor, Metrics]:
        """The loss (B,) of every sample in nats, and what else is measured."""
        out, frames = self.outputs(batch)
        label = batch["label"]
        if self.config.task == "rows":
            return of_classes(out, label)
        shown("heat: labels over time", lambda: {"values": out[0].exp().mT})
        losses = ctc(out, frames, label, batch["length"])
        return losses, {"label_error": self.label_error(out, frames, batch)} if decode else {}

    def label_error(self, log_y: Tensor, frames: Tensor, batch: Batch) -> Mean:
        """Edit distance between best paths and labels, per label."""
        lengths = batch["length"].tolist()
        wanted = [row[:n] for row, n in zip(batch["label"].tolist(), lengths, strict=True)]
        edits = map(edit_distance, best_path(log_y, frames), wanted)
        return Mean(log_y.new_tensor(float(sum(edits))), float(sum(lengths)))

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        losses, metrics = self.losses(batch, decode=False)
        return (mean_loss(losses, batch) if self.config.task == "rows" else losses.mean()), metrics

    def evaluate(self, batch: Batch) -> Metrics:
        losses, metrics = self.losses(batch, decode=True)
        return {"loss": mean_known(losses, batch["label"]) if self.config.task == "rows" else mean(losses), **metrics}
