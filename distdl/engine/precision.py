"""In how many bits a model computes: `train.precision`. Its weights stay in the type in which they were built.

fp16, bf16   matrix products in 16 bits, by autocast (Micikevicius et al. 2018)
fp8          the same as bf16, and in training products of large linear layers in 8 bits (Micikevicius et al. 2022), by
             torchao; the head stays in 16, whose rounding would go straight into the loss, and so do evaluations
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.errors import InputError
from distdl.learner import Learner

FP8_MULTIPLE, FP8_SMALLEST = 16, 128
"""Both sides of an 8-bit matrix product are multiples of this and at least that, or the layer stays as it is: below, what
scaling and rounding take is more than the product saves."""


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
    """Replaces large linear layers of a learner, but for its head, by ones that multiply in 8 bits while they learn, where
    the precision says so, in place."""
    if precision != "fp8":
        return
    try:
        from torchao.float8 import convert_to_float8_training
    except ImportError:
        raise InputError("train.precision is fp8 and torchao is not installed", fix="pip install torchao") from None
    of_head, chosen = head(learner), set[str]()

    def fits(module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Linear) or id(module) in of_head:
            return False
        if all(side % FP8_MULTIPLE == 0 and side >= FP8_SMALLEST for side in module.weight.shape):
            chosen.add(name)
        return name in chosen

    convert_to_float8_training(learner, module_filter_fn=fits)
    for name in chosen:
        module = learner.get_submodule(name)
        module.forward = functools.partial(_in_8_bits_while_it_learns, module, module.forward)


def _in_8_bits_while_it_learns(module: Any, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return forward(x) if module.training else F.linear(x, module.weight, module.bias)


def head(learner: nn.Module) -> set[int]:
    """Linear layers (by id) that the loss looks at: those of a learner's last layer; of one without layers, the last."""
    layers = learner.layers() if isinstance(learner, Learner) else []
    modules = (
        [part for module in layers[-1].modules for part in module.modules()] if layers else list(learner.modules())
    )
    linear = [id(module) for module in modules if isinstance(module, nn.Linear)]
    return set(linear if layers else linear[-1:])
