"""Classes from anything: what every classifier does with its logits."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from distdl.learner import Batch, Learner
from distdl.metrics import Metrics, mean


class Classifier(Learner):
    """Cross entropy against the column `label`. A family overrides `logits`."""

    primary: str = "accuracy"
    better: Literal["higher", "lower"] = "higher"

    def logits(self, batch: Batch) -> Tensor:
        """(B, K) unnormalised log-probabilities of the classes."""
        raise NotImplementedError

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        return self.criterion(self.logits(batch), batch)

    def criterion(self, output: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        label = batch["label"]  # (B,)
        return F.cross_entropy(output, label), {"accuracy": mean((output.argmax(-1) == label).float())}

    def evaluate(self, batch: Batch) -> Metrics:
        logits, label = self.logits(batch), batch["label"]
        losses = F.cross_entropy(logits, label, reduction="none")  # (B,)
        return {"loss": mean(losses), "accuracy": mean((logits.argmax(-1) == label).float())}
