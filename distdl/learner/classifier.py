"""The learner of a family with logits: which loss and which metrics it has. What those are is in `labels.py`."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from distdl.learner.answers import CLASSES, Answer, last_linear, of_logits
from distdl.learner.labels import mean_known, mean_loss, of_classes
from distdl.learner.learner import Batch, Learner
from distdl.metrics import Metrics, mean
from distdl.nn.watch import show_filters


class Classifier(Learner):
    """Cross entropy against the column `label`, -100 in which is no label. A family has `layers`, or overrides `logits`."""

    primary: str = "accuracy"
    better: Literal["higher", "lower"] = "higher"
    class_column = "label"
    labelled: bool = True
    """Whether answers are classes, which a row may lack. A family that can also tell numbers sets it in __init__."""

    def logits(self, batch: Batch) -> Tensor:
        """(B, K) unnormalised log-probabilities of the classes."""
        return self.through(batch)

    @staticmethod
    def tells(config: Any) -> dict[str, Answer]:
        return CLASSES

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return of_logits(self.logits(batch))

    def read_out(self) -> nn.Module | None:
        return last_linear(self)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        return self.criterion(self.logits(batch), batch)

    def losses(self, output: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss of every sample (B,), and what else is measured."""
        return of_classes(output, batch["label"])

    def criterion(self, output: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        losses, metrics = self.losses(output, batch)
        return (mean_loss(losses, batch) if self.labelled else losses.mean()), metrics

    def evaluate(self, batch: Batch) -> Metrics:
        losses, metrics = self.losses(self.logits(batch), batch)
        show_filters(self)
        return {"loss": mean_known(losses, batch["label"]) if self.labelled else mean(losses), **metrics}
