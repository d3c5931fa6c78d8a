"""Low-rank adapters (Hu et al. 2021: LoRA): linear maps of a trained model stay as they are, and learn a small correction.

    y = W x + b + alpha/r B A drop(x),    A (r, inputs) drawn at random, B (outputs, r) zero at first

Names of the model stay: `blocks.0.up.weight` is W, and A, B and alpha lie beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.layout.noise import Dropout

A, B, ALPHA = "lora_a", "lora_b", "lora_alpha"
"""What a map has beside its weight."""


class LoRALinear(nn.Module):
    """A linear map and its correction."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: int, dropout: float) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        outputs, inputs = linear.weight.shape
        self.lora_a = nn.Parameter(linear.weight.new_empty(rank, inputs))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        # A whole number, which no engine rounds: with it a checkpoint can be merged without its config.
        self.register_buffer(ALPHA, torch.tensor(alpha, device=linear.weight.device))
        self.scale, self.drop = alpha / rank, Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(self.drop(x), self.lora_a)  # (..., r)
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(low, self.lora_b)

    def merged(self) -> nn.Linear:
        """One map that computes the same."""
        outputs, inputs = self.weight.shape
        linear = nn.Linear(inputs, outputs, self.bias is not None, device="meta")
        weight = self.weight.detach() + self.scale * (self.lora_b.detach() @ self.lora_a.detach())
        linear.weight = nn.Parameter(weight)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach())
        return linear


def is_adapter(name: str) -> bool:
    """Whether a tensor of this name is none of the model that was adapted."""
    return name.rpartition(".")[2] in (A, B, ALPHA)


def adapt(net: nn.Module, targets: Iterable[str], rank: int, alpha: int, dropout: float) -> dict[str, list[str]]:
    """Gives each linear map whose name fits a pattern an adapter, in place. Pattern -> the names that fit."""
    linear = {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    found = {pattern: [name for name in linear if fnmatchcase(name, pattern)] for pattern in targets}
    for name in linear:
        if any(name in names for names in found.values()):
            _put(net, name, LoRALinear(linear[name], rank, alpha, dropout))
    return found


def adapted(net: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Name -> map of all that have an adapter."""
    yield from ((name, module) for name, module in net.named_modules() if isinstance(module, LoRALinear))


def merge(net: nn.Module) -> None:
    """Makes plain linear maps of all that have an adapter, in place."""
    for name, module in list(adapted(net)):
        _put(net, name, module.merged())


def _put(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(net.get_submodule(parent), last, module)  # of a list or a sequence, too, which name theirs by numbers
