"""What every recurrent family does around its cell: steps in, a class or the next step out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.learner.answers import CLASSES, NEXT_TOKEN, Answer, last_real, of_logits
from distdl.learner.labels import accuracy, filled, mean_known, mean_loss
from distdl.learner.learner import Batch, Column, Learner
from distdl.metrics import Metrics, mean
from distdl.nn.images import to_unit


class SequenceLearner(Learner):
    """One of three tasks over (B, T, D). A family overrides `states`.

    rows    a picture read row by row; the state after the last row says its class (column `image`, `label`)
    tokens  one-hot or embedded tokens; every state says the next one (column `tokens` of T + 1 numbers)
    values  real numbers; every state says the next ones (column `x` of (T + 1, D))

    The family's Config has `task`, `inputs` (D: pixels of a row, tokens of the vocabulary, values of a step), `steps` (T)
    and `classes` (of the task rows).
    """

    class_column = "label"

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
            return {"image": Column.sample((1, config.steps, config.inputs)), "label": Column.label(config.classes)}
        if config.task == "tokens":
            return {"tokens": Column.tokens(config.inputs, (config.steps + 1,), key="inputs")}
        return {"x": Column.numbers((config.steps + 1, config.inputs), meaning="value of a series")}

    @staticmethod
    def tells(config: Any) -> dict[str, Answer]:
        of = {"tokens": NEXT_TOKEN, "values": {"next": Answer("values", "those of the next step", of="x")}}
        return of.get(config.task, CLASSES)

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        """The class, or what comes after the last step of a row: of all steps, or of the first `length` (B,)."""
        if self.config.task == "rows":
            return of_logits(self.outputs(self.rows(batch)))
        values = self.config.task == "values"
        states = self.states(batch["x"] if values else self.encode(batch["tokens"].long()))
        out = self.head(last_real(states, batch.get("length"))).float()
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

    def outputs(self, x: Tensor) -> Tensor:
        """(B, K) for rows, (B, T, D) for tokens (logits) and values."""
        states = self.states(x)
        return self.head(states[:, -1] if self.config.task == "rows" else states)

    def losses(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss of every prediction, and what else is measured."""
        x, target = self.inputs_and_targets(batch)
        out = self.outputs(x).float()
        if self.config.task == "values":
            return (out - target).square(), {}
        losses = F.cross_entropy(out.flatten(0, -2), filled(target.flatten()), reduction="none")  # nats
        return losses, {"accuracy": accuracy(out, target)}

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        losses, metrics = self.losses(batch)
        return (mean_loss(losses, batch) if self.labelled else losses.mean()), metrics

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        losses, metrics = self.losses(batch)
        return {"loss": mean_known(losses, batch["label"]) if self.labelled else mean(losses), **metrics}


def reverse(x: Tensor, frames: Tensor) -> Tensor:
    """(B, T, D) with the first `frames` (B,) of each sample in reverse order; what follows them stays."""
    t = torch.arange(x.shape[1], device=x.device)  # (T,)
    order = torch.where(t < frames[:, None], frames[:, None] - 1 - t, t)  # (B, T)
    return x.gather(1, order[:, :, None].expand_as(x))
