"""In how many bits a model computes: `train.precision`. Its weights stay in the type in which they were built.

fp16, bf16   matrix products in 16 bits, by autocast (Micikevicius et al. 2018)
fp8          the same as bf16, and products of linear layers in 8 bits (Micikevicius et al. 2022), by torchao
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from distdl.errors import InputError

FP8_MULTIPLE = 16
"""Both sides of an 8-bit matrix product are multiples of this, or the layer stays as it is."""


def autocast(precision: str, device: str) -> torch.autocast:
    """Within it, what can be computed in 16 bits is, where the precision says so."""
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device, half, enabled=precision not in ("fp32", "fp64"))


def lower_forward(nets: Iterable[nn.Module], precision: str, device: str) -> None:
    """Makes each network's forward pass one in 16 bits, where the precision says so, in place."""
    if precision not in ("fp32", "fp64"):
        for net in nets:
            net.forward = autocast(precision, device)(net.forward)


def lower_linear(learner: nn.Module, precision: str) -> None:
    """Replaces the linear layers of a learner by ones that multiply in 8 bits, where the precision says so, in place."""
    if precision != "fp8":
        return
    try:
        from torchao.float8 import convert_to_float8_training
    except ImportError:
        raise InputError("train.precision is fp8 and torchao is not installed", fix="pip install torchao") from None

    def fits(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and all(side % FP8_MULTIPLE == 0 for side in module.weight.shape)

    convert_to_float8_training(learner, module_filter_fn=fits)
