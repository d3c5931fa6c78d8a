"""Adversarial training (Goodfellow, Shlens & Szegedy 2015, ICLR, section 6; several steps: Madry et al. 2018, ICLR).

    x' = x + epsilon sign(grad_x CE(z(x), label))                    one step: the fast gradient sign method
    x' = the projection onto |x' - x| <= epsilon of x' + 2.5 epsilon / steps sign(grad)          several: PGD
    loss = (1 - w) CE(z(x), label) + w CE(z(x'), label)

`robust_accuracy` is that under the same attack, made against the model that is evaluated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distdl.config.schema import Config
from distdl.errors import InputError
from distdl.families import model_config
from distdl.learner import Batch
from distdl.learner.labels import mean_known
from distdl.metrics import Metrics
from distdl.nn.images import to_unit
from distdl.ways.way import Way, refuse_other_loss


class Adversarial(Way):
    primary: str = "robust_accuracy"
    better = "higher"
    # ZeRO-3 lets go of the weights after the forward pass, and the attack goes back through them within it.
    proven = frozenset({"torch", "zero0", "zero1", "zero2"})

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        clean, metrics = self.criterion(self.logits(batch), batch)
        w = self.settings.weight
        if w == 0:
            return clean, metrics
        attacked, robust = self.criterion(self.logits(self.attacked(batch)), batch)
        return (1 - w) * clean + w * attacked, {**metrics, "robust_accuracy": robust["accuracy"]}

    def evaluate(self, batch: Batch) -> Metrics:
        guess, label = self.logits(self.attacked(batch)).argmax(-1), batch["label"]
        return {**super().evaluate(batch), "robust_accuracy": mean_known((guess == label).float(), label)}

    @classmethod
    def others_read(cls, config: Config) -> dict[str, dict[str, Any]]:
        refuse_other_loss(config)
        mine = cls.columns(model_config(config.model))
        if cls.settings.column not in mine:
            what = f"way.column = {cls.settings.column!r} is no column that the model reads"
            raise InputError(what, allowed=", ".join(name for name in mine if name != "label"))
        return {}

    def attacked(self, batch: Batch) -> Batch:
        """The batch with its column changed by at most epsilon, still within 0..1."""
        column, epsilon, steps = self.settings.column, self.settings.epsilon, self.settings.steps
        x = to_unit(batch[column]).detach()
        size, changed = (epsilon if steps == 1 else 2.5 * epsilon / steps), x
        for _ in range(steps):
            with torch.enable_grad():
                at = changed.clone().requires_grad_()
                loss = F.cross_entropy(self.logits({**batch, column: at}), batch["label"], reduction="sum")
                (slope,) = torch.autograd.grad(loss, at)
            changed = (x + (changed + size * slope.sign() - x).clamp(-epsilon, epsilon)).clamp(0, 1)
        return {**batch, column: changed}
