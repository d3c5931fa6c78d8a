"""McCulloch-Pitts nets, logic in threshold units of given weights (McCulloch & Pitts 1943, Bull. Math. Biophys. 5:115).

    y = 1  if  sum_{w_i > 0} w_i x_i >= theta  and  no x_i with w_i < 0 is active,   else 0

Inputs are 0 or 1, weights and thresholds whole numbers, and one active inhibitory input (a negative weight, of any size)
keeps the unit silent whatever else is active: absolute inhibition. Nothing is learned, so a run only checks the net against
the truth table. The half adder has 2 + 3 + 2 units and no trainable parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distdl.learner import Answer, Batch, Column, Learner, Verbs
from distdl.metrics import Metrics, mean
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    net: Literal["and", "or", "not", "xor", "half_adder", "given"] = "half_adder"
    """A net of the gallery in this file; given: the one in `layers`."""
    layers: tuple[tuple[tuple[tuple[int, ...], int], ...], ...] = ()
    """Layers of units of [weights, threshold], as in [[[[1, -1], 1], [[-1, 1], 1]], [[[1, 1], 1]]], which is xor."""
    targets: tuple[str, ...] = ()
    """Column of the truth table that each output of `layers` is checked against."""

    def __post_init__(self) -> None:
        if (self.net == "given") != bool(self.layers and self.targets):
            raise ValueError("net: given needs layers and targets, and only it may have them")
        sizes = [len(layer) for layer in self.layers]
        for n, layer in zip(sizes, self.layers[1:]):
            if any(len(weights) != n for weights, _ in layer):
                raise ValueError(f"a unit sees the {n} units of the layer below it; give it as many weights")
        if self.layers and (not self.layers[0] or len({len(weights) for weights, _ in self.layers[0]}) > 1):
            raise ValueError("the units of the first layer see the same inputs; give them equally many weights")
        if self.layers and sizes[-1] != len(self.targets):
            raise ValueError(f"the last layer has {sizes[-1]} units for {len(self.targets)} targets; name one for each")


ONE_ALONE = (((1, -1), 1), ((-1, 1), 1))  # the first input and not the second; the second and not the first
GALLERY = {  # net -> layers, targets
    "and": (((((1, 1), 2),),), ("and",)),
    "or": (((((1, 1), 1),),), ("or",)),
    "not": (((((-1,), 0),),), ("not",)),
    "xor": ((ONE_ALONE, (((1, 1), 1),)), ("xor",)),
    "half_adder": (((*ONE_ALONE, ((1, 1), 2)), (((1, 1, 0), 1), ((0, 0, 1), 1))), ("xor", "and")),  # sum, carry
}


class McCullochPitts(Learner):
    learns = "nothing: its weights are given"
    no_slope = "its units fire or not, at a threshold"
    primary, better = "accuracy", "higher"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        layers, self.targets_of = net_of(config)
        self.depth = len(layers)
        for i, layer in enumerate(layers):
            self.register_buffer(f"weight{i}", torch.tensor([weights for weights, _ in layer]))  # (units, inputs)
            self.register_buffer(f"threshold{i}", torch.tensor([threshold for _, threshold in layer]))  # (units,)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        layers, targets = net_of(config)
        return {
            "x": Column.numbers((len(layers[0][0][0]),), 0, 1, meaning="0 or 1"),
            **{name: Column.numbers((), 0, 1, meaning="answer, 0 or 1") for name in targets},
        }

    @classmethod
    def asked(cls, config: Config) -> dict[str, Column]:
        return {"x": cls.columns(config)["x"]}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {name: Answer("values", "0 or 1", of=name) for name in net_of(config)[1]}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return dict(zip(self.targets_of, self.outputs(batch["x"]).unbind(1)))

    def outputs(self, x: Tensor) -> Tensor:
        """0 and 1 (B, inputs) -> 0 and 1 (B, outputs)."""
        for i in range(self.depth):
            weight, threshold = self.get_buffer(f"weight{i}").to(x.dtype), self.get_buffer(f"threshold{i}")
            excitation, inhibition = x @ weight.clamp(min=0).T, x @ (weight < 0).to(x.dtype).T  # (B, units) each
            x = ((excitation >= threshold) & (inhibition == 0)).to(x.dtype)
        return x

    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        return self.evaluate(batch)

    def evaluate(self, batch: Batch) -> Metrics:
        """Rows of the truth table that are right in every output."""
        wanted = torch.stack([batch[name] for name in self.targets_of], 1)  # (B, outputs)
        told = self.outputs(batch["x"])
        shown("beside", lambda: {"told": told, "true": wanted})
        right = (told == wanted).all(1).float()
        return {"loss": mean(1 - right), "accuracy": mean(right)}


def net_of(config: Config) -> tuple[tuple, tuple[str, ...]]:
    """Layers and target columns."""
    return (config.layers, config.targets) if config.net == "given" else GALLERY[config.net]
