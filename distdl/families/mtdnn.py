"""Multi-task deep network for molecules and assays, with answers missing (Dahl, Jaitly & Salakhutdinov 2014, 1406.1231).

    h_0 = x,   h_l = dropout(act(W_l h_{l-1} + b_l)),   p(y_t = 1) = s(w_t h_L + b_t)     all tasks share the h_l
    loss = 1 / (B T present) sum over the answers that there are of -y ln p - (1 - y) ln (1 - p)

An answer that is neither 0 nor 1 is missing (255 and NaN are usual). A batch has now more answers and now fewer; the loss
is divided by the number to be expected, not by the number here, so that no rank or micro-batch weighs more than another.
The metric is the area under the ROC curve, mean over the tasks, of the whole held-out split on all ranks.

1024-1000-12 (Wu et al. 2018, MoleculeNet) has 1,037,012 parameters; the pyramid 1024-2000-100-259 of massively multitask
networks (Ramsundar et al. 2015, 1502.02072) 2,276,259. DeepTox (Mayr et al. 2016) is 12 tasks on larger layers with dropout
of the inputs, too, and `selu` makes it self-normalising (Klambauer et al. 2017): see configs/families/deeptox.yaml.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Count, CountOrZero, Counts, OpenShare, SomeShare
from distdl.config.marks import INVISIBLE, TRAINING_ONLY
from distdl.layout import noise
from distdl.layout.noise import Dropout
from distdl.learner import Answer, Batch, Column, Learner
from distdl.metrics import Mean, Metrics, mean
from distdl.nn.watch import seen


@dataclass(frozen=True)
class Config:
    inputs: Count = 1024
    """Values or bits of a sample."""
    packed: bool = True
    """The column `x` holds bits, eight in a byte, the highest first; false: the values themselves."""
    tasks: Count = 12
    """Answers of a sample in the column `y`."""
    chosen: tuple[CountOrZero, ...] = ()
    """Tasks that are learned and measured, by their numbers; none: all."""
    hidden: Counts = (1000,)
    """Units of each hidden layer, which all tasks share."""
    activation: Annotated[Literal["relu", "selu"], INVISIBLE] = "relu"
    """Non-linearity of the hidden layers; selu comes with its own start and its own dropout."""
    dropout: Annotated[OpenShare, TRAINING_ONLY] = 0.5
    """Probability that a hidden unit is silenced in training."""
    input_dropout: Annotated[OpenShare, TRAINING_ONLY] = 0.2
    """The same for an input."""
    present: SomeShare = 1.0
    """Share of the answers that is there in the whole training set, about: a run logs it as `present`."""

    def __post_init__(self) -> None:
        if self.packed and self.inputs % 8:
            raise ValueError(f"inputs is {self.inputs}, which is not a whole number of bytes; or say packed: false")
        if len(set(self.chosen)) < len(self.chosen) or max(self.chosen, default=0) >= self.tasks:
            raise ValueError(f"chosen is {list(self.chosen)}; it names different tasks from 0 to {self.tasks - 1}")


PER_LOGIT, BINS = 256, 8192
"""The areas are those of logits rounded to 1/256 and clipped at 16, which counts closer ones as equal."""


class AlphaDropout(nn.Module):
    """Sets units to what SELU tends to, and restores mean 0 and variance 1 (Klambauer et al. 2017, section 3)."""

    LOWEST = -1.7580993408473766

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        kept, q = noise.bernoulli(torch.full_like(x, 1 - self.p)), 1 - self.p
        scale = (q + self.LOWEST**2 * q * self.p) ** -0.5
        return scale * (x * kept + self.LOWEST * (1 - kept) - self.p * self.LOWEST)


class MultiTaskDNN(Learner):
    primary, better = "auc", "higher"
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.chosen = list(config.chosen) or list(range(config.tasks))
        if config.packed:
            self.no_slope = "it is bits, eight in a byte; values that are not (model.packed: false) have a slope"
        layers: list[nn.Module] = [Dropout(config.input_dropout)]
        for n_in, n_out in itertools.pairwise([config.inputs, *config.hidden]):
            layers.append(nn.Linear(n_in, n_out))
            layers += [nn.ReLU(), Dropout(config.dropout)] if config.activation == "relu" else []
            layers += [nn.SELU(), AlphaDropout(config.dropout)] if config.activation == "selu" else []
        self.trunk, self.heads = (
            nn.Sequential(*layers),
            nn.Linear([config.inputs, *config.hidden][-1], len(self.chosen)),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if config.activation == "relu" else "linear")
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.heads.weight, std=0.02)  # wide layers would be sure of every answer before they learn
        self._seen: tuple[Tensor, int] | None = None  # answers by logit, and rows, of the evaluation under way

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        packed = Column.whole(0, 255, (config.inputs // 8,), meaning="byte of eight bits")
        x = packed if config.packed else Column.numbers((config.inputs,))
        return {"x": x, "y": Column.answers((config.tasks,))}

    @staticmethod
    def shrunk(model: Mapping[str, Any]) -> dict[str, Any]:
        return {**model, "hidden": [min(units, 32) for units in model.get("hidden", (1000,))]}

    def logits(self, batch: Batch) -> Tensor:
        x, weight = batch["x"], self.heads.weight
        if self.config.packed:
            # Each bit by its own mask: torch's ONNX exporter makes signed numbers of bytes that are shifted.
            places = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], device=x.device, dtype=x.dtype)
            x = (x[..., None] & places).bool().flatten(1)
        return self.heads(self.trunk(x.to(weight.dtype))).float()  # (B, T)

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"tasks": Answer("chances", "that the answer to each task is 1", of="y")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return {"tasks": self.logits(batch).sigmoid()}

    def read_out(self) -> nn.Module | None:
        return self.heads

    def answers(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What is answered, and whether: (B, T) each."""
        y = batch["y"][:, self.chosen]
        return (y == 1).float(), (y == 0) | (y == 1)

    def losses(self, logits: Tensor, y: Tensor, present: Tensor) -> Tensor:
        """(B, T), zero where the answer is missing."""
        return F.binary_cross_entropy_with_logits(logits, y, reduction="none") * present

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        y, present = self.answers(batch)
        losses = self.losses(self.logits(batch), y, present)
        shown = Mean(losses.sum().detach(), float(present.sum()))  # per answer, as in evaluation
        return losses.mean() / self.config.present, {"loss": shown, "present": mean(present.float())}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        logits, (y, present) = self.logits(batch), self.answers(batch)
        seen("classes", torch.stack([torch.zeros_like(logits), logits], -1)[present], y[present].long())
        total = self.losses(logits, y, present).sum(dtype=torch.float64)
        return {"loss": Mean(total, float(present.sum())), "auc": self.ranked(batch["id"], logits, y, present)}

    def ranked(self, row: Tensor, logits: Tensor, y: Tensor, present: Tensor) -> Mean:
        """The mean area under the ROC curve, as what these rows add to it.

        An area is about pairs of rows, which may lie in two batches or on two ranks: it is no mean of the batches' areas.
        So the learner counts answers by their logit, and tells rows x area less what it has told. Row 0 begins anew.
        """
        first = not (dist.is_available() and dist.is_initialized() and dist.get_rank())
        begins, n = bool(row[0] == 0), len(row)
        filler = begins and not first  # a rank without rows of its own, which keeps in step
        bins = ((logits * PER_LOGIT).round() + BINS // 2).clamp(0, BINS - 1).long().T  # (T, B)
        counts = torch.zeros(2, len(bins), BINS, dtype=torch.int64, device=row.device)
        for answer in (0, 1) if not filler else ():
            counts[answer].scatter_add_(1, bins, (present & (y == answer)).T.long())
        told = torch.cat([counts.flatten(), row.new_tensor([0 if filler else n, begins and first])])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(told)
        counts, rows, anew = told[:-2].view_as(counts), int(told[-2]), bool(told[-1])
        before = 0.0
        if self._seen and not anew:
            before = self._seen[1] * area(self._seen[0])
            counts, rows = counts + self._seen[0], rows + self._seen[1]
        self._seen = counts, rows
        more = rows * area(counts) - before if first else 0.0  # the sum over ranks has it once
        return Mean(torch.tensor(more, dtype=torch.float64, device=row.device), float(n))


def area(counts: Tensor) -> float:
    """Mean over tasks of P(a positive scores above a negative) + P(as high) / 2; counts (2, T, bins), negative first.

    Tasks of which one answer has not come yet do not count; 0 where all are such."""
    negative, positive = counts.double()
    below = negative.cumsum(-1) - negative / 2
    pairs = negative.sum(-1) * positive.sum(-1)  # (T,)
    areas = ((positive * below).sum(-1) / pairs)[pairs > 0]
    return float(areas.mean()) if len(areas) else 0.0
