"""Spiking network of leaky integrate-and-fire units, by surrogate gradients (Zenke & Ganguli 2018; Neftci et al. 2019).

    u_t = beta u_{t-1} + I_t - theta s_{t-1}          membrane potential; I_t = W s_t^below + b, and u_0 = s_0 = 0
    s_t = H(u_t - theta)                              a spike, 0 or 1, which costs the potential theta at the next step
    reset: zero    u_t = beta (1 - s_{t-1}) u_{t-1} + I_t

A step has no useful derivative. Backwards, H' is replaced by one that is 1 at the threshold and fades with the distance
x = u - theta (the reset counts as a constant):

    arctan          k/2 / (1 + (pi/2 k x)^2)          Fang et al. 2021; k = 2
    fast_sigmoid    1 / (1 + k |x|)^2                 SuperSpike, Zenke & Ganguli; k = 25

A picture enters as a constant current, or as spikes with its pixels' probabilities. The output units integrate without
firing, and the mean of their potential over time is the logit, or they fire, and the number of spikes is;
trained by cross entropy (learner/classifier.py).
784-256-10 has 203,530 parameters, as the perceptron of that shape.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distdl.config.fields import Amount, AmountOrZero, Count, Counts, Several, Shape, Share
from distdl.layout.noise import bernoulli
from distdl.learner import Batch, Column, Layer
from distdl.learner.classifier import Classifier
from distdl.nn.images import to_unit
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    inputs: Shape = (1, 28, 28)
    """Shape of one sample; it is flattened."""
    column: str = "image"
    """Column of the data set that holds the sample: uint8 (scaled to 0..1) or float32."""
    code: Literal["current", "rate"] = "current"
    """current: the sample is a constant input current; rate: its values, 0..1, are the probabilities of input spikes."""
    hidden: Counts = (256,)
    """Spiking units of each hidden layer."""
    classes: Several = 10
    """Number of classes."""
    steps: Count = 15
    """Time steps that a sample is shown for (T)."""
    beta: Share = 0.9
    """Share of the potential that is left after a step; 1: no leak."""
    threshold: Amount = 1.0
    """Potential above which a unit fires (theta)."""
    reset: Literal["subtract", "zero"] = "subtract"
    """What a spike does to the potential at the next step: takes the threshold from it, or all that is left of it."""
    surrogate: Literal["arctan", "fast_sigmoid"] = "arctan"
    """Derivative that stands in for that of the step."""
    sharpness: AmountOrZero = 0.0
    """How fast the derivative fades (k); 0: the 2 (arctan) or 25 (fast_sigmoid) of the papers' code."""
    readout: Literal["potential", "spikes"] = "potential"
    """Logits: the mean potential of output units that never fire, or the number of spikes of those that do."""


class Spike(torch.autograd.Function):
    """H(x), with the derivative of something smooth."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: str, k: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate, ctx.k = surrogate, k
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,), k = ctx.saved_tensors, ctx.k
        if ctx.surrogate == "arctan":
            return grads[0] * (k / 2) / (1 + (math.pi / 2 * k * x).square()), None, None
        return grads[0] / (1 + k * x.abs()).square(), None, None


class Neurons(nn.Module):
    """A layer of units over time: currents in, spikes out, or the potentials of units that never fire."""

    def __init__(self, config: Config, fires: bool = True) -> None:
        super().__init__()
        self.config, self.fires = config, fires
        self.sharpness = config.sharpness or {"arctan": 2.0, "fast_sigmoid": 25.0}[config.surrogate]

    def forward(self, current: Tensor) -> Tensor:
        """(B, T, N), or (B, 1, N) for a constant current -> (B, T, N)."""
        config = self.config
        u = s = torch.zeros_like(current[:, 0])  # (B, N)
        out = []
        for now in current.expand(-1, config.steps, -1).unbind(1):
            if config.reset == "subtract":
                u = config.beta * u + now - config.threshold * s.detach()
            else:
                u = config.beta * (1 - s.detach()) * u + now
            if self.fires:
                s = Spike.apply(u - config.threshold, config.surrogate, self.sharpness)
            out.append(s if self.fires else u)
        over_time = torch.stack(out, 1)
        if self.fires:
            shown("spikes", lambda: {"spikes": over_time[0]})
        return over_time


class SNN(Classifier):
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3", "tensor", "pipeline"})
    tensor_plan = {"maps.*": "gather"}

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        sizes = [math.prod(config.inputs), *config.hidden, config.classes]
        self.maps = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in itertools.pairwise(sizes))
        fires = [*(True for _ in config.hidden), config.readout == "spikes"]
        self.neurons = nn.ModuleList(Neurons(config, fire) for fire in fires)
        if config.code == "rate":
            self.no_slope = "its input is the probability of spikes that are drawn; model.code: current has a slope"

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {config.column: Column.sample(config.inputs), "label": Column.label(config.classes)}

    @staticmethod
    def shrunk(model: Mapping[str, Any]) -> dict[str, Any]:
        hidden = [min(units, 32) for units in model.get("hidden", (32,))]
        return {**model, "hidden": hidden, "steps": min(model.get("steps", 15), 6)}

    def inputs(self, batch: Batch) -> Tensor:
        x = to_unit(batch[self.config.column]).flatten(1)[:, None]  # (B, 1, D)
        if self.config.code == "current":
            return x
        return bernoulli(x.expand(-1, self.config.steps, -1).clamp(0, 1))  # (B, T, D)

    def layers(self) -> list[Layer]:
        """Linear map and units of each layer, for all time steps at once: a layer needs nothing from those above it."""
        *pairs, last = zip(self.maps, self.neurons)
        hidden = [Layer(f"layer {i}", nn.Sequential(*pair), pair) for i, pair in enumerate(pairs, 1)]
        return [*hidden, Layer("readout", lambda x: self.readout(nn.Sequential(*last)(x)), last)]  # (B, K)

    def readout(self, output: Tensor) -> Tensor:
        """Potentials or spikes of the output units, (B, T, K) -> (B, K)."""
        return output.sum(1) if self.config.readout == "spikes" else output.mean(1)
