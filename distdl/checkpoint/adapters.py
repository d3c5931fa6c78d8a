"""Adapters (nn/lora.py) that a checkpoint has beside the weights: taken together with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from distdl.checkpoint.stream import Lazy
from distdl.nn.lora import ALPHA, A, B, is_adapter


def merged(tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """Weights and buffers by their names in a model -> those of the model without adapters that computes the same."""
    return {name: _merged(name, tensor, tensors) for name, tensor in tensors.items() if not is_adapter(name)}


def _merged(name: str, weight: Lazy, tensors: Mapping[str, Lazy]) -> Lazy:
    module, _, last = name.rpartition(".")
    a, b, alpha = (tensors.get(f"{module}.{part}") for part in (A, B, ALPHA))
    if last != "weight" or a is None or b is None or alpha is None:
        return weight

    def read() -> Tensor:
        w, low, high = weight.read(), a.read(), b.read()
        return w + (float(alpha.read()) / low.shape[0] * (high @ low)).to(w.dtype)

    return replace(weight, read=read)
