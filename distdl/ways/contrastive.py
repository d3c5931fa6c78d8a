"""Contrastive learning of visual representations: SimCLR (Chen, Kornblith, Norouzi & Hinton 2020, ICML, equation 1).

    l(i, j) = -log( exp(cos(z_i, z_j) / T) / sum over k != i of exp(cos(z_i, z_k) / T) )

Each of N pictures is seen twice, z_i and z_j are the projections of its two views, and k goes over all 2N views of a
micro-batch of all ranks: without accumulation, of the global batch. `alignment`, the mean cosine of two views, is what is
evaluated; how good the representation is, shows when labels are learned from it (`start: {weights: RUN, fresh: [head]}`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distdl.config.schema import Config
from distdl.errors import InputError
from distdl.layout.gather import gathered, rank
from distdl.learner import Batch
from distdl.metrics import Metrics, mean
from distdl.ways.way import Way


class Contrastive(Way):
    primary: str = "alignment"
    better = "higher"
    class_column = ""
    batch_coupled = True

    def forward(self, batch: Batch, step: int, evaluate: bool = False) -> Any:
        return self.evaluate(batch) if evaluate else self.loss(batch, step)  # it makes its views itself

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        one, two = self.views(batch)  # (B, D)
        mine = torch.cat([one, two])  # (2B, D)
        everyones, first = gathered(mine), rank() * len(mine)  # (2N, D)
        with torch.autocast(mine.device.type, enabled=False):
            cosines = mine @ everyones.T / self.settings.temperature  # (2B, 2N)
        n, own = len(one), first + torch.arange(len(mine), device=mine.device)
        cosines = cosines.scatter(1, own[:, None], float("-inf"))  # not with itself
        partner = torch.cat([own[n:], own[:n]])
        return F.cross_entropy(cosines, partner), {"alignment": mean((one * two).sum(-1).detach())}

    def evaluate(self, batch: Batch) -> Metrics:
        one, two = self.views(batch)
        alignment = (one * two).sum(-1)
        return {"loss": mean(1 - alignment), "alignment": mean(alignment)}

    def views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The projections of two views, of length 1: (B, D) each."""
        assert self.augmentation is not None
        one, two = (self.logits(self.augmentation(batch)).float() for _ in range(2))
        return F.normalize(one, dim=-1), F.normalize(two, dim=-1)

    @classmethod
    def others_read(cls, config: Config) -> dict[str, dict[str, Any]]:
        if config.augment is None:
            fix = "augment: {shift_pixels: 2, rotate_degrees: 15, contrast: 0.3}, for example"
            raise InputError("way contrastive compares two random views of a picture, and augment is null", fix=fix)
        return {}
