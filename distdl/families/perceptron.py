"""Perceptron, threshold units that learn from their errors alone (Rosenblatt 1958, Psych. Rev. 65:386).

    a = [W x >= 0]  (association units, W fixed and random, +1 or -1),   s = V a + v,   V_k += y_k a  where  y_k s_k <= 0

y_k is +1 for the unit of the right class and -1 for the others. The rule is gradient descent on sum_k max(0, -y_k s_k) with
`optimizer: {name: sgd, lr: 1}`, one sample at a time; with B samples at a time it takes the mean of their B corrections.
From weights of zero the rate only scales the weights. The default is the size of the Mark I: 400 photocells, 512
association units, 8 response units, 4,104 trainable parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import CountOrZero, Several, Shape
from distdl.learner import Answer, Batch, Column, Learner
from distdl.learner.answers import SCORES, of_scores
from distdl.learner.labels import filled, mean_known, mean_loss
from distdl.metrics import Metrics
from distdl.nn.images import to_unit
from distdl.nn.watch import seen


@dataclass(frozen=True)
class Config:
    inputs: Shape = (1, 20, 20)
    """Shape of one sample; it is flattened."""
    column: str = "image"
    """Column of the data set that holds the sample: uint8 (scaled to 0..1) or float32."""
    association: CountOrZero = 512
    """Association units, whose wiring is random and stays; 0: the response units see the sample itself."""
    classes: Several = 8
    """Number of classes, a response unit for each."""
    rule: Literal["one_vs_rest", "multiclass"] = "one_vs_rest"
    """one_vs_rest: each unit on its own; multiclass: the right unit up and the largest wrong one down, if larger."""
    average: bool = False
    """Decide by the mean of all weights passed through rather than by the last (Freund & Schapire 1999)."""


class Perceptron(Learner):
    learns = "error correction"
    primary, better = "accuracy", "higher"
    class_column = "label"
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})
    wiring: Tensor
    mean_weight: Tensor
    mean_bias: Tensor
    averaged_steps: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        cells = math.prod(config.inputs)
        if config.association:
            self.no_slope = "its association units fire or not, at a threshold; model.association: 0 has a slope"
            self.register_buffer("wiring", torch.randint(0, 2, (config.association, cells)) * 2.0 - 1)
        self.response = nn.Linear(config.association or cells, config.classes)
        nn.init.zeros_(self.response.weight)
        nn.init.zeros_(self.response.bias)
        if config.average:
            self.register_buffer("mean_weight", torch.zeros_like(self.response.weight))
            self.register_buffer("mean_bias", torch.zeros_like(self.response.bias))
            self.register_buffer("averaged_steps", torch.tensor(0))

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {config.column: Column.sample(config.inputs), "label": Column.label(config.classes)}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return SCORES

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        a = self.stimulus(batch)
        return of_scores(F.linear(a, self.mean_weight, self.mean_bias) if self.config.average else self.response(a))

    def stimulus(self, batch: Batch) -> Tensor:
        """What the response units see."""
        cells = batch[self.config.column].flatten(1)  # (B, D)
        if not self.config.association:
            return to_unit(cells)
        # Sums of whole pixels are exact. Scaled ones that cancel would leave a rounding of either sign, which depends on
        # how many samples are multiplied at once: other units would fire on another number of workers.
        with torch.autocast(cells.device.type, enabled=False):
            return (F.linear(cells.to(self.wiring.dtype), self.wiring) >= 0).to(self.wiring.dtype)  # (B, A)

    def errors(self, s: Tensor, label: Tensor) -> Tensor:
        """(B,) surrogate of each sample. The slope of clamp at zero is 1: a sum of exactly zero counts as an error."""
        label = filled(label)
        right = F.one_hot(label, self.config.classes)  # (B, K)
        if self.config.rule == "one_vs_rest":
            return (-(2 * right - 1) * s).clamp(min=0).sum(1)
        wrong = s.masked_fill(right.bool(), -math.inf).amax(1)
        return (wrong - s.gather(1, label[:, None]).squeeze(1)).clamp(min=0)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        s, label = self.response(self.stimulus(batch)), batch["label"]  # (B, K), (B,)
        if self.config.average:
            self._average(step)
        accuracy = mean_known((s.argmax(1) == label).float(), label)
        return mean_loss(self.errors(s, label), batch), {"accuracy": accuracy}

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """Running mean of the weights that met each batch; the micro-batches of one step count once."""
        new = step >= self.averaged_steps
        self.averaged_steps += new
        self.mean_weight += (self.response.weight - self.mean_weight) * new / self.averaged_steps
        self.mean_bias += (self.response.bias - self.mean_bias) * new / self.averaged_steps

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        a, label = self.stimulus(batch), batch["label"]
        s = last = self.response(a)  # (B, K)
        if self.config.average:
            s = F.linear(a, self.mean_weight, self.mean_bias)
        answers = {"accuracy": s, "accuracy_of_last": last} if self.config.average else {"accuracy": s}
        seen("classes", s, label)
        metrics = {name: mean_known((answer.argmax(1) == label).float(), label) for name, answer in answers.items()}
        return {"loss": mean_known(self.errors(s, label), label), **metrics}
