"""Weights by their names, the model's config and the preparation: what builds the same model anywhere.

from distdl.export.safetensors import load
learner = load(Path("exports/mnist-safetensors"))
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from distdl.checkpoint.stream import open_safetensors, whole, write_safetensors
from distdl.data.preparation import columns_of
from distdl.errors import InputError
from distdl.export.check import Arrays, Ask, as_tensors
from distdl.export.folder import PREPARATION
from distdl.families import build
from distdl.files import read_json
from distdl.learner.units import Units

if TYPE_CHECKING:
    from distdl.learner import Learner

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write(folder: Path, learner: Learner, precision: str) -> None:
    """The weights and buffers of a learner."""
    tensors = {**dict(learner.named_parameters()), **dict(learner.named_buffers())}
    kept = {name: whole(tensor.detach().contiguous()) for name, tensor in tensors.items()}
    if precision == "fp16":
        kept = {name: lazy.to(torch.float16) if lazy.dtype == torch.float32 else lazy for name, lazy in kept.items()}
    write_safetensors(folder / WEIGHTS, kept)


def load(folder: Path, model: Mapping[str, Any] | None = None) -> Any:
    """The learner of an export, in evaluation mode and in single precision. `model`: the section of a config that builds
    it, where not that of the folder. Raises InputError where it does not fit."""
    model = model or (read_json(folder / CONFIG) or {}).get("model")
    if not isinstance(model, Mapping):
        raise InputError(f"{folder / CONFIG} says no model", fix="give the folder of `distdl export --to safetensors`")
    learner: Any = build(model)
    tensors, _ = open_safetensors(folder / WEIGHTS)
    wanted = dict(learner.named_parameters())
    if any(name in tensors and tensors[name].dtype == torch.float64 for name in wanted):
        learner.double()
    wanted = {**dict(learner.named_parameters()), **dict(learner.named_buffers())}
    if other := sorted(wanted.keys() ^ tensors.keys()):
        raise InputError(f"{folder / WEIGHTS} holds another model than {CONFIG} says: {', '.join(other[:5])}")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name].read())
    record = read_json(folder / PREPARATION)
    if record:
        learner.file_units = Units.of({"columns": columns_of(record, str(folder / PREPARATION))})
    return learner.eval()


def ask(learner: Any) -> Ask:
    """A learner that was read back from the disk, as something that is asked."""

    def of(batch: Arrays) -> dict[str, np.ndarray]:
        return {name: tensor.numpy() for name, tensor in learner.predict(as_tensors(batch)).items()}

    return of
