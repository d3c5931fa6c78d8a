"""Building blocks by their names in a config: non-linearities, normalisations, initial weights, losses.

A family that leaves a choice lists the names that it allows in its Config, and asks here for what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.nn.batch_norm import BatchNorm


class Maxout(nn.Module):
    """The largest of k sums for each unit (Goodfellow et al. 2013): (B, k * D) -> (B, D); of maps (B, k * C, H, W)."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.pieces, -1)).amax(1)


MAXOUT_PIECES = 2
"""Linear maps before a maxout put out so many sums for each of its units."""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.01),  # Maas et al. 2013
    "elu": nn.ELU,  # Clevert et al. 2016
    "gelu": nn.GELU,  # Hendrycks & Gimpel 2016
    "silu": nn.SiLU,  # Elfwing et al. 2018
    "softmax": lambda: nn.Softmax(1),  # over the units, or the maps of a place
    "maxout": lambda: Maxout(MAXOUT_PIECES),
}


def sums_of(units: int, activation: str) -> int:
    """Sums that a linear map has to put out for so many units of an activation."""
    return units * (MAXOUT_PIECES if activation == "maxout" else 1)


class Dueling(nn.Module):
    """Values of actions as the value of the state and what each action adds to it (Wang et al. 2016, equation 9):

        Q(s, a) = V(s) + A(s, a) - mean over a' of A(s, a'),      (B, n) -> (B, actions)

    V and A have a hidden layer each.
    """

    def __init__(self, inputs: int, hidden: int, actions: int) -> None:
        super().__init__()
        self.value = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.advantage = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, actions))

    def forward(self, x: Tensor) -> Tensor:
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(-1, keepdim=True)


def normalisation(name: str, channels: int, groups: int = 8) -> list[nn.Module]:
    """The modules of a normalisation over the features of (B, D), or the maps of (B, C, H, W); [] for `none`.

    batch (Ioffe & Szegedy 2015), layer (Ba et al. 2016), group (Wu & He 2018; as many groups up to `groups` as divide the
    channels and leave four to each: of two alone only the order would be left), rms (Zhang & Sennrich 2019; of (B, D)).
    Over maps, layer is one group of all of them.
    """
    if name == "none":
        return []
    if name == "batch":
        return [BatchNorm(channels)]
    if name == "rms":
        return [nn.RMSNorm(channels, eps=1e-5)]
    fitting = [n for n in range(1, groups + 1) if channels % n == 0 and channels // n >= 4] or [1]
    n = 1 if name == "layer" else fitting[-1]
    return [nn.GroupNorm(n, channels)]


def initialise(module: nn.Module, name: str) -> None:
    """Draws the weights of linear maps and convolutions anew and clears their biases; `default`: leaves them to torch.

    glorot: variance 2 / (in + out) (Glorot & Bengio 2010); he: 2 / in (He et al. 2015); lecun: 1 / in (LeCun et al. 1998);
    orthogonal (Saxe et al. 2014).
    """
    if name == "default":
        return
    kind, _, shape = name.partition("_")
    for layer in module.modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        if kind == "orthogonal":
            nn.init.orthogonal_(layer.weight)
        else:
            fan_out, fan_in = layer.weight.shape[0], layer.weight[0].numel()
            fan_out *= layer.weight[0, 0].numel()
            std = math.sqrt({"glorot": 2 / (fan_in + fan_out), "he": 2 / fan_in, "lecun": 1 / fan_in}[kind])
            draw = nn.init.normal_ if shape == "normal" else nn.init.uniform_
            draw(layer.weight, 0.0, std) if shape == "normal" else draw(layer.weight, -std * 3**0.5, std * 3**0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def class_losses(name: str, logits: Tensor, label: Tensor) -> Tensor:
    """(B, K), (B,) -> (B,): what each sample's answer costs.

    cross_entropy; squared: |z - onehot|^2; hinge: sum over k of max(0, 1 - z_label + z_k) (Weston & Watkins 1999).
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if name == "cross_entropy":
        return F.cross_entropy(logits, label, reduction="none")
    if name == "squared":
        return (logits - F.one_hot(label, logits.shape[1])).square().sum(1)
    right = logits.gather(1, label[:, None])
    return F.relu(1 - right + logits).sum(1) - 1  # the right class itself costs 1


def value_losses(name: str, output: Tensor, target: Tensor) -> Tensor:
    """(B,), (B,) -> (B,): squared, absolute, or huber (quadratic up to an error of 1; Huber 1964)."""
    error = (output if output.dtype == torch.float64 else output.float()) - target
    if name == "squared":
        return error.square()
    return error.abs() if name == "absolute" else torch.where(error.abs() < 1, error.square() / 2, error.abs() - 0.5)
