"""Perceptron on crossbars of analog devices: electrochemical RAM or memtransistors (Gokmen & Vlasov 2016; Sangwan 2018).

    a_l = W_l [h_{l-1}; 1]                        read: voltages in, currents out, through converters, with noise
    h_l = f(a_l),   d_L = onehot - softmax(a_L),   d_l = f'(a_l) W_{l+1}^T d_{l+1}        read the other way round
    W_l += rate d_l [h_{l-1}; 1]^T                by pulses: rows and columns send trains of them at random, as often as
                                                  x and d are large; where two meet, the device moves a step

No weight is ever written; a device is where its pulses have brought it (`devices.py` has their model). ECRAM: Fuller et
al. 2017, Tang et al. 2018; metal-oxide ECRAM: Kim et al. 2019; memtransistor: Sangwan et al. 2018, Nature 554:500.
`device: digital` is the same net in exact arithmetic, the measure of the others. 784-128-10 has 101,770 devices, biases
included: one line of each crossbar is always on.

A step takes the sum over its samples. The hardware learns one by one (`train.global_batch: 1`); with more, all read the
same weights, then come all pulses up and all pulses down. Their numbers add up over workers, whose replicas draw the
same noise of the devices: it is keyed by the step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Amount, AmountOrZero, Count, CountOrZero, Counts, Several, Shape
from distdl.config.marks import INVISIBLE
from distdl.families.analog.devices import DEVICES, Crossbar, Digital, Periphery
from distdl.learner import Answer, Batch, Column, Learner, Verbs
from distdl.learner.answers import CLASSES, of_logits
from distdl.learner.labels import filled, known, mean_known, of_classes
from distdl.metrics import Metrics
from distdl.nn.images import to_unit


@dataclass(frozen=True)
class Config:
    inputs: Shape = (1, 28, 28)
    """Shape of one sample; it is flattened."""
    column: str = "image"
    """Column of the data set that holds the sample: uint8 (scaled to 0..1) or float32."""
    hidden: Counts = (128,)
    """Units of each hidden layer."""
    classes: Several = 10
    """Number of classes."""
    activation: Annotated[Literal["relu", "tanh", "sigmoid"], INVISIBLE] = "relu"
    """Non-linearity of the hidden layers, a digital circuit."""
    device: Literal["ecram", "ecram_oxide", "memtransistor", "digital"] = "ecram"
    """What a weight is made of: lithium or metal-oxide electrochemical RAM, a memtransistor, or numbers."""
    gate: float = 0.0
    """Gate voltage of a memtransistor, in decades of conductance from the nominal one."""
    rate: Amount = 0.01
    """Learning rate of a single sample."""
    decay_steps: CountOrZero = 0
    """Steps over which the rate falls to 0, linearly: usually those of the run. 0: it stays."""
    pulses: Count = 31
    """Longest train of pulses of an update."""
    read_noise: AmountOrZero = 0.06
    """Standard deviation of the noise of an output, where the largest input is 1."""
    dac_bits: Several = 7
    """Resolution of a crossbar's inputs."""
    adc_bits: Several = 9
    """Resolution of its outputs."""

    def __post_init__(self) -> None:
        if self.gate and self.device != "memtransistor":
            raise ValueError(
                f"gate is {self.gate}, but {self.device} has no gate: set it to 0, or device: memtransistor"
            )


ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


def slope(activation: str, h: Tensor) -> Tensor:
    """Derivative of the non-linearity where its value is h."""
    if activation == "relu":
        return (h > 0).to(h.dtype)
    return 1 - h.square() if activation == "tanh" else h * (1 - h)


def with_one(x: Tensor) -> Tensor:
    """(B, I) -> (B, I + 1): the line of the biases."""
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)


class Analog(Learner):
    learns = "pulses on devices"
    primary, better = "accuracy", "higher"
    layouts = frozenset({"torch"})  # there is no optimizer that ZeRO could shard
    no_slope = "its converters know so many levels and no more: between two of them nothing changes"
    batch_coupled = True  # a second micro-batch would read weights that the first has moved
    key: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("key", torch.randint(2**31, ()))  # of the devices' noise, alike on every rank
        sizes = [math.prod(config.inputs), *config.hidden, config.classes]
        self.crossbars = nn.ModuleList(self.crossbar(n_in + 1, n_out) for n_in, n_out in itertools.pairwise(sizes))

    def crossbar(self, inputs: int, outputs: int) -> Crossbar | Digital:
        config = self.config
        if config.device == "digital":
            return Digital(inputs, outputs)
        periphery = Periphery(config.read_noise, config.dac_bits, config.adc_bits, pulses=config.pulses)
        return Crossbar(inputs, outputs, DEVICES[config.device].gated(config.gate), periphery)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {config.column: Column.sample(config.inputs), "label": Column.label(config.classes)}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return CLASSES

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return of_logits(self.read(batch)[1])

    def read(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """What each crossbar sees (B, I), and what the last one says (B, K), in fp64."""
        h = to_unit(batch[self.config.column]).flatten(1)
        seen = []
        for i, crossbar in enumerate(cast(Iterable[Crossbar | Digital], self.crossbars)):
            h = ACTIVATIONS[self.config.activation](h) if i else h
            seen.append(with_one(h))
            h = crossbar.read(seen[-1])
        return seen, h

    @torch.no_grad()
    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        decay, label = self.config.decay_steps, batch["label"]
        rate = self.config.rate * (max(0.0, 1 - step / decay) if decay else 1.0)
        seen, logits = self.read(batch)
        delta = F.one_hot(filled(label), self.config.classes) - logits.softmax(1)  # (B, K), down the cross entropy
        delta = delta.masked_fill(~known(label)[:, None], 0.0)
        generator = torch.Generator(logits.device).manual_seed((int(self.key) << 31) + step)
        for i in reversed(range(len(seen))):
            crossbar, x = cast(Crossbar | Digital, self.crossbars[i]), seen[i]
            demand = engine.all_sum(crossbar.demand(x, delta, rate))
            if i:  # before the devices move
                delta = crossbar.read_back(delta)[:, :-1] * slope(self.config.activation, x[:, :-1])
            crossbar.apply_pulses(demand, generator)
        return self.measured(logits, label)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        return self.measured(self.read(batch)[1], batch["label"])

    def measured(self, logits: Tensor, label: Tensor) -> Metrics:
        losses, metrics = of_classes(logits, label)
        return {"loss": mean_known(losses, label), **metrics}
