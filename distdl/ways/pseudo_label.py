"""Pseudo-labels for samples without one (Lee 2013, ICML workshop on challenges in representation learning).

    loss = mean over the batch of w_b CE(z_b, y_b)      w_b = 1 and y_b the label where there is one;
    else y_b = argmax z_b and w_b = weight(step) if its probability reaches the threshold, 0 otherwise

The threshold is that of Sohn et al. 2020 (FixMatch); 0 takes every answer, as in the paper.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distdl.config.schema import Config
from distdl.learner import Batch, labels
from distdl.metrics import Metrics, mean
from distdl.ways.way import Way, refuse_other_loss


class PseudoLabel(Way):
    class_column = ""  # its loss is its own

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        label = batch["label"]  # (B,)
        known = labels.known(label)
        if self.settings.labelled is not None:
            known = known & (batch["id"] < self.settings.labelled)
        logits = self.logits(batch)  # (B, K)
        probability, guess = logits.detach().softmax(-1).max(-1)
        trusted = ~known & (probability >= self.settings.threshold)
        weight = known.to(logits.dtype) + trusted * self.weight(step)
        losses = F.cross_entropy(logits, torch.where(known, label, guess), reduction="none")
        return (weight * losses).mean(), {"pseudo_labelled": mean(trusted.float())}

    @classmethod
    def others_read(cls, config: Config) -> dict[str, dict[str, Any]]:
        refuse_other_loss(config)
        return {}

    def weight(self, step: int) -> float:
        """Weight of a sample without a label at a step."""
        since, ramp = step - self.settings.from_step, self.settings.ramp_steps
        if since < 0:
            return 0.0
        return float(self.settings.weight * (min(1.0, since / ramp) if ramp else 1.0))
