"""Neural field: a picture, a volume or any signal as a network from coordinates to values.

    siren     h <- sin(omega (W h + b))                                    (Sitzmann et al. 2020, NeurIPS: SIREN)
              W uniform within +-1/D in the first layer, +-sqrt(6/H)/omega behind it, so that every sum is normal
    fourier   h = [cos 2 pi F x, sin 2 pi F x], F drawn from N(0, scale^2), then a ReLU perceptron   (Tancik et al. 2020)
    relu      the perceptron alone, which learns low frequencies only (Rahaman et al. 2019)
    loss      mean squared error over the values

SIREN 2-256x4-3, with its three maps from 256 to 256, has 198,915 parameters. Being smooth, it can be asked for its
derivatives, too (`gradient`). A sample is a point and its value.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from distdl.config.fields import Amount, Count
from distdl.learner import Answer, Batch, Column, Learner
from distdl.metrics import Mean, Metrics
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    network: Literal["siren", "fourier", "relu"] = "siren"
    """Sines, random Fourier features before a ReLU perceptron, or that perceptron alone."""
    inputs: Count = 2
    """Coordinates of a point, each from -1 to 1."""
    outputs: Count = 3
    """Values there, each from 0 to 1, such as a colour."""
    width: Count = 256
    """Units of a hidden layer."""
    layers: Count = 4
    """Hidden layers, the first included."""
    omega: Amount = 30.0
    """siren: frequency of the sines."""
    features: Count = 256
    """fourier: random frequencies; each gives a cosine and a sine."""
    scale: Amount = 10.0
    """fourier: standard deviation of the frequencies, in cycles over a length of 1."""


class NeuralField(Learner):
    primary, better = "mse", "lower"  # psnr = -10 log10(mse) dB
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3", "tensor"})
    tensor_plan = {"maps.*": "gather"}
    frequencies: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        first = 2 * config.features if config.network == "fourier" else config.inputs
        sizes = [first, *[config.width] * config.layers, config.outputs]
        maps = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        self.maps = nn.ModuleList(maps)
        if config.network == "siren":
            for i, linear in enumerate(maps):
                bound = math.sqrt(6 / linear.in_features) / config.omega if i else 1 / linear.in_features
                nn.init.uniform_(linear.weight, -bound, bound)
        elif config.network == "fourier":
            self.register_buffer("frequencies", config.scale * torch.randn(config.features, config.inputs))

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {
            "x": Column.numbers((config.inputs,), meaning="place"),
            "y": Column.numbers((config.outputs,), meaning="value there"),
        }

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"value": Answer("values", "of the field at the place", of="y")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return {"value": self.field(batch["x"]).float()}

    def field(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, K)"""
        h = x
        if self.config.network == "fourier":
            angles = 2 * math.pi * x @ self.frequencies.T  # (B, F)
            h = torch.cat([angles.cos(), angles.sin()], 1)
        *hidden, last = self.maps
        for linear in hidden:
            h = (self.config.omega * linear(h)).sin() if self.config.network == "siren" else linear(h).relu()  # (B, H)
        return last(h)

    def gradient(self, x: Tensor) -> Tensor:
        """Slopes of each value at points x: (B, D) -> (B, K, D)"""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            slopes = [torch.autograd.grad(y.sum(), x, create_graph=True)[0] for y in self.field(x).unbind(1)]
        return torch.stack(slopes, 1)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        return (self.field(batch["x"]).float() - batch["y"]).square().mean(), {}

    def evaluate(self, batch: Batch) -> Metrics:
        told = self.field(batch["x"]).float()
        shown("field", lambda: {"place": batch["x"], "told": told, "true": batch["y"]})
        errors = (told - batch["y"]).square().mean(1)
        return {"mse": Mean(errors.detach().sum(), float(len(errors)))}
