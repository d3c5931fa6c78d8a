"""What every recurrent family does around its cell: steps in, a class or the next step out."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.learner.answers import CLASSES, NEXT_TOKEN, Answer, last_real, of_logits
from distdl.learner.labels import accuracy, filled, mean_known, mean_loss, mean_of_counted
from distdl.learner.learner import Batch, Column, Learner
from distdl.metrics import Mean, Metrics, mean
from distdl.nn.images import to_unit
from distdl.nn.watch import shown


class SequenceLearner(Learner):
    """One of three tasks over (B, T, D). A family overrides `states`.

    rows    a picture read row by row; the state after the last row says its class (column `image`, `label`)
    tokens  one-hot or embedded tokens; every state says the next one (column `tokens` of T + 1 numbers)
    values  real numbers; every state says the next ones (column `x` of (T + 1, D))

    The family's Config has `task`, `inputs` (D: pixels of a row, tokens of the vocabulary, values of a step), `steps` (T),
    `classes` (of the task rows) and `frames`: whether the column `frames` says how many of the T steps (with the task
    values: of T + 1 values) each row has; what follows them is in no loss and in no metric.
    """

    class_column = "label"
    any_length = frozenset({"tokens", "x"})
    washout = 0
    """First steps whose predictions do not count (task values)."""

    def __init__(self, config: Any, width: int, embedding: int = 0) -> None:
        """`width` H of a state; `embedding` D of a token's trained vector, 0: tokens enter one-hot."""
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.inputs, embedding) if embedding else None
        self.labelled = config.task not in ("tokens", "values")
        self.head = nn.Linear(width, config.classes if config.task == "rows" else config.inputs)
        if config.task == "rows":
            self.primary, self.better = "accuracy", "higher"

    @staticmethod
    def columns(config: Any) -> dict[str, Column]:
        if config.task == "rows":
            picture = of_steps(Column.sample((1, config.steps, config.inputs)), "image", config)
            return {**picture, "label": Column.label(config.classes)}
        if config.task == "tokens":
            return {"tokens": Column.tokens(config.inputs, (config.steps + 1,), key="inputs")}
        return of_steps(Column.numbers((config.steps + 1, config.inputs), meaning="value of a series"), "x", config)

    @staticmethod
    def tells(config: Any) -> dict[str, Answer]:
        of = {"tokens": NEXT_TOKEN, "values": {"next": Answer("values", "those of the next step", of="x")}}
        return of.get(config.task, CLASSES)

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        """The class, or what comes after the last step of a row: of all, or of its first `frames` or `length` (B,)."""
        if self.config.task == "rows":
            return of_logits(self.outputs(self.rows(batch), self.steps_of(batch)))
        values = self.config.task == "values"
        states = self.states(batch["x"] if values else self.encode(batch["tokens"].long()))
        out = self.head(last_real(states, batch.get("length", self.steps_of(batch)))).float()
        return {"next": out if values else out.softmax(-1)}

    def states(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, H): the state after each step, the first from a state of zeros."""
        raise NotImplementedError

    def encode(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        if self.embed is not None:
            return self.embed(tokens)
        return F.one_hot(tokens, self.config.inputs).to(self.head.weight.dtype)

    def rows(self, batch: Batch) -> Tensor:
        """The rows of pixels of a picture, (B, T, D)."""
        return to_unit(batch["image"]).squeeze(1)

    def inputs_and_targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, T, D), and classes (B,), next tokens (B, T) or next values (B, T, D)."""
        if self.config.task == "rows":
            return self.rows(batch), batch["label"]
        if self.config.task == "tokens":
            tokens = batch["tokens"].long()
            return self.encode(tokens[:, :-1]), tokens[:, 1:]
        return batch["x"][:, :-1], batch["x"][:, 1:]

    def outputs(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        """(B, K) for rows, (B, T, D) for tokens (logits) and values. `frames` (B,): the steps of each row; None: all."""
        states = self.states(x)
        return self.head(last_real(states, frames) if self.config.task == "rows" else states)

    def steps_of(self, batch: Batch) -> Tensor | None:
        """How many steps each row has (B,), where the config says that they differ."""
        return batch["frames"] if self.config.frames else None

    def predicted(self, batch: Batch) -> Tensor | None:
        """(B, T): which predictions of values count, where rows have padding; None: all of them."""
        if not self.config.frames or self.config.task != "values":
            return None
        t = torch.arange(self.washout, self.config.steps, device=batch["frames"].device)
        return t + 1 < batch["frames"][:, None]

    def counted(self, batch: Batch) -> Tensor | None:
        there = self.predicted(batch)
        return None if there is None else there.sum()

    def losses(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss of every prediction, and what else is measured."""
        x, target = self.inputs_and_targets(batch)
        out = self.outputs(x, self.steps_of(batch)).float()
        if self.config.task == "values":
            shown("series", lambda: {"told": out[0], "true": target[0]})
            losses, there = (out - target).square()[:, self.washout :], self.predicted(batch)
            return losses if there is None else losses.mean(-1).masked_fill(~there, 0.0), {}
        losses = F.cross_entropy(out.flatten(0, -2), filled(target.flatten()), reduction="none")  # nats
        if self.config.task == "tokens":
            shown("places", lambda: {"losses": losses.view(target.shape)})
        return losses, {"accuracy": accuracy(out, target)}

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        losses, metrics = self.losses(batch)
        if (there := self.predicted(batch)) is not None:
            return mean_of_counted(losses, there, batch), metrics
        return (mean_loss(losses, batch) if self.labelled else losses.mean()), metrics

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        losses, metrics = self.losses(batch)
        if (there := self.predicted(batch)) is not None:
            return {"loss": Mean(losses.sum(), there.sum()), **metrics}
        return {"loss": mean_known(losses, batch["label"]) if self.labelled else mean(losses), **metrics}


def of_steps(sample: Column, name: str, config: Any) -> dict[str, Column]:
    """The column of a row's steps, and where `frames` asks for it that of how many there are. Without it a data set whose
    rows have padding is refused: a recurrent network would read that as values."""
    if not config.frames:
        return {name: dataclasses.replace(sample, lengths="frames")}
    return {name: sample, "frames": Column.whole(1, sample.shape[-2], meaning="steps of a row")}


def reverse(x: Tensor, frames: Tensor) -> Tensor:
    """(B, T, D) with the first `frames` (B,) of each sample in reverse order; what follows them stays."""
    t = torch.arange(x.shape[1], device=x.device)  # (T,)
    order = torch.where(t < frames[:, None], frames[:, None] - 1 - t, t)  # (B, T)
    return x.gather(1, order[:, :, None].expand_as(x))
