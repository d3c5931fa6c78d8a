"""What a classifier's loss and metrics are made of, where some labels may be missing: a negative class number, -100 by
custom, means "no label".

Nothing is divided by what a micro-batch or a rank happens to hold. A batch of a data set with missing labels has beside the
column `label` one more, `label.share`: the part of the labels of the whole global batch that are there (data/source.py). So

    mean over the micro-batch of (loss where there is a label, else 0)  /  share

averages over micro-batches and ranks to the sum of the losses over the number of labels of the step, on every layout. A
global batch without any label gives 0. Where classes weigh (`train.class_weights`) a batch has `label.weight`, too, and the
share is the mean weight of the global batch: the sum of weight times loss over the sum of the weights, as torch has it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distdl.layout.axes import here
from distdl.learner.learner import Batch
from distdl.metrics import Mean, Metrics
from distdl.nn.watch import seen


def known(label: Tensor) -> Tensor:
    """Where there is a label."""
    return label >= 0


def filled(label: Tensor) -> Tensor:
    """Class numbers that can be looked up: 0 where there is no label, whose loss must then count nowhere."""
    return label.clamp(min=0)


def mean_loss(losses: Tensor, batch: Batch, column: str = "label") -> Tensor:
    """The scalar loss of a micro-batch of `losses` `(*label's shape, ...)`: of the values with a label.

    A batch that was not made by the source is taken for a global batch of its own.
    """
    there = _there(losses, batch[column])
    if (weight := batch.get(f"{column}.weight")) is not None:
        losses = losses * weight.to(losses.dtype).view(there.shape)
    return losses.masked_fill(~there, 0.0).mean() / share(losses, batch, column)


def share(losses: Tensor, batch: Batch, column: str = "label") -> Tensor:
    """The part of the global batch's labels that are there, or their mean weight: a scalar of the losses' type; 1 where
    none is."""
    told = batch.get(f"{column}.share")
    counts = batch.get(f"{column}.weight", known(batch[column])) if told is None else told[:1]
    part = counts.to(losses.dtype).mean()
    return part.where(part > 0, torch.ones_like(part))


def mean_of_counted(losses: Tensor, counts: Tensor, batch: Batch) -> Tensor:
    """The scalar loss of a micro-batch of a learner that has `counted` its places: the mean over those that count in
    the step's whole global batch. `losses` are 0 where `counts` is False. A batch that no engine made is a global batch
    of its own."""
    told = batch.get("mean_count")
    # A rank that holds a slice of each row has counted whole rows, as the others of its axis have.
    mean_count = counts.sum() if told is None else told[0] / here.sequence.size
    return losses.sum() / mean_count.clamp(min=1)


def mean_known(values: Tensor, label: Tensor) -> Mean:
    """The mean of `values` `(*label's shape, ...)` over those with a label, as a metric."""
    there = _there(values, label).expand_as(values)
    count = there.sum()
    total = values.detach().float().masked_fill(~there, 0.0).sum()
    return Mean(total, as_count(count))


def as_count(count: Tensor) -> float | Tensor:
    """Of a metric: a number where reading it costs nothing. A GPU would have to be waited for, and a graph be left."""
    return count if count.device.type != "cpu" or torch.compiler.is_compiling() else float(count)


def of_classes(logits: Tensor, label: Tensor) -> tuple[Tensor, Metrics]:
    """(B, K), (B,) -> the cross entropy of every sample (B,), and the share of right answers among those with a label."""
    return F.cross_entropy(logits, filled(label), reduction="none"), {"accuracy": accuracy(logits, label)}


def accuracy(logits: Tensor, label: Tensor) -> Mean:
    """(*, K), (*,) -> the share of right answers among those with a label."""
    seen("classes", logits, label)
    return mean_known((logits.argmax(-1) == label).float(), label)


def _there(values: Tensor, label: Tensor) -> Tensor:
    return known(label).view(*label.shape, *(1,) * (values.ndim - label.ndim))
