"""Knowledge distillation (Hinton, Vinyals & Dean 2015, arXiv 1503.02531, equation 1 and section 2).

    loss = (1 - w) CE(z, label) + w T^2 KL(softmax(t / T) || softmax(z / T))      z student's, t teacher's logits

T^2 keeps the soft gradients in the size of the hard ones when the temperature changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distdl.checkpoint.layout import MANIFEST
from distdl.checkpoint.load import Checkpoint
from distdl.config.schema import Config
from distdl.errors import InputError
from distdl.families import build, load_family, model_config
from distdl.learner import Batch
from distdl.learner.classifier import Classifier
from distdl.metrics import Metrics, mean
from distdl.run.folder import find_run, saved_config
from distdl.ways.start import checkpoint_of
from distdl.ways.way import Way


class Distill(Way):
    _teacher: tuple[Any, ...] = ()
    """In a tuple, so that it is no part of the model: it is not trained, counted or saved."""

    def criterion(self, output: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        hard, metrics = super().criterion(output, batch)
        if not self.training:
            return hard, metrics
        T, w = self.settings.temperature, self.settings.weight
        theirs = self.teacher_logits(batch, output.device)
        ours = F.log_softmax(output.float() / T, -1)  # (B, K)
        soft = T * T * F.kl_div(ours, F.log_softmax(theirs / T, -1), reduction="batchmean", log_target=True)
        agree = (output.argmax(-1) == theirs.argmax(-1)).float()
        return (1 - w) * hard + w * soft, {**metrics, "agreement": mean(agree)}

    @torch.no_grad()
    def teacher_logits(self, batch: Batch, device: torch.device) -> Tensor:
        """(B, K)"""
        (teacher,) = self._teacher
        return teacher.to(device).logits(batch).float()

    def ready(self, config: Config) -> None:
        told, checkpoint = _teacher(config)
        teacher = build(told.model)
        Checkpoint(checkpoint).load_weights(teacher, averaged=True)
        self._teacher = (teacher.eval().requires_grad_(False),)

    @classmethod
    def others_read(cls, config: Config) -> dict[str, dict[str, Any]]:
        told, _ = _teacher(config)
        family, where = load_family(told.model["family"]), f"way.teacher = {cls.settings.teacher!r}"
        columns = family.columns(model_config(told.model))
        if (
            not issubclass(family, Classifier)
            or "label" not in columns
            or getattr(told.way, "name", "") == "contrastive"
        ):
            raise InputError(f"{where} is a {told.family}, which gives no classes", fix="the run of a classifier")
        theirs, ours = (getattr(model_config(c.model), "classes", None) for c in (told, config))
        if theirs != ours:
            raise InputError(f"{where} knows {theirs} classes and the model has {ours}", fix=f"model.classes={theirs}")
        return {f"the teacher, a {told.family},": columns}


def _teacher(config: Config) -> tuple[Config, Path]:
    """The config of the teacher's run and its checkpoint. Raises InputError."""
    assert config.way is not None and config.way.name == "distill"
    place = Path(config.way.teacher)
    if (place / MANIFEST).is_file():  # runs/NAME/checkpoints/step_N
        return saved_config(find_run(str(place.absolute().parent.parent), config.runs)), place
    run = find_run(config.way.teacher, config.runs)
    return saved_config(run), checkpoint_of(run, config.way.which)
