"""Multi-layer perceptron, by back-propagation (Rumelhart, Hinton & Williams 1986, Nature 323:533).

    h_0 = x,   h_l = dropout(act(norm(W_l h_{l-1} + b_l))),   logits = W_L h_{L-1} + b_L

Trained by cross entropy against the class. With no hidden layer it is softmax regression. 784-300-10 has 238,510
parameters, 784-512-512-10 has 669,706.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from distdl.learner import Batch, Column
from distdl.nn.classifier import Classifier
from distdl.nn.images import to_unit
from distdl.nn.noise import Dropout


@dataclass(frozen=True)
class Config:
    inputs: tuple[Annotated[int, Field(gt=0)], ...] = (1, 28, 28)
    """Shape of one sample; it is flattened."""
    column: str = "image"
    """Column of the data set that holds the sample: uint8 (scaled to 0..1) or float32."""
    hidden: tuple[Annotated[int, Field(gt=0)], ...] = (512, 512)
    """Units of each hidden layer; empty: softmax regression."""
    classes: Annotated[int, Field(gt=1)] = 10
    """Number of classes."""
    activation: Literal["relu", "tanh", "sigmoid"] = "relu"
    """Non-linearity of the hidden layers."""
    layer_norm: bool = False
    """Normalise each hidden layer's sums before the non-linearity."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a hidden unit is silenced in training."""


ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


class MLP(Classifier):
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        sizes = [math.prod(config.inputs), *config.hidden]
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise(sizes):
            layers.append(nn.Linear(n_in, n_out))
            layers += [nn.LayerNorm(n_out)] if config.layer_norm else []
            layers.append(ACTIVATIONS[config.activation]())
            layers += [Dropout(config.dropout)] if config.dropout else []
        self.net = nn.Sequential(*layers, nn.Linear(sizes[-1], config.classes))

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {config.column: Column(config.inputs), "label": Column(())}

    def logits(self, batch: Batch) -> Tensor:
        x = to_unit(batch[self.config.column]).flatten(1)  # (B, D)
        return self.net(x)  # (B, K)
