"""Multi-layer perceptron, by back-propagation (Rumelhart, Hinton & Williams 1986, Nature 323:533).

    h_0 = x,   h_l = dropout(act(norm(W_l h_{l-1} + b_l))),   out = W_L h_{L-1} + b_L

Trained by cross entropy against a class, by the squared error of a number, or by other losses (learner/classifier.py takes
their means). With no hidden layer that is softmax regression (logistic regression for two classes) or linear regression.
784-300-10 has 238,510 parameters, 784-300-100-10 has 266,610 and 784-512-512-10 has 669,706.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from distdl.config.fields import Activation, Counts, Init, Norm, OpenShare, Several, Shape
from distdl.config.marks import INVISIBLE, TRAINING_ONLY
from distdl.layout.noise import Dropout
from distdl.learner import Answer, Batch, Column, Layer
from distdl.learner.answers import CLASSES, SCORES, of_logits, of_scores
from distdl.learner.classifier import Classifier
from distdl.learner.labels import accuracy, filled
from distdl.learner.units import of_numbers
from distdl.metrics import Metrics
from distdl.nn import blocks
from distdl.nn.images import to_unit


@dataclass(frozen=True)
class Config:
    inputs: Shape = (1, 28, 28)
    """Shape of one sample; it is flattened."""
    column: str = "image"
    """Column of the data set that holds the sample: uint8 (scaled to 0..1) or float32."""
    hidden: Counts = (512, 512)
    """Units of each hidden layer; empty: softmax or linear regression."""
    target: Literal["class", "value"] = "class"
    """class: the column `label`, by cross entropy; value: a number in the column `y`, by mean squared error."""
    classes: Several = 10
    """Number of classes."""
    loss: Literal["default", "cross_entropy", "squared", "hinge", "absolute", "huber"] = "default"
    """What an answer costs. Of a class cross_entropy (default), squared or hinge; of a value squared (default), absolute or
    huber."""
    activation: Annotated[Literal[Activation, "softmax", "maxout", "linear"], INVISIBLE] = "relu"
    """Non-linearity of the hidden layers; a maxout takes the larger of two sums."""
    norm: Annotated[Literal[Norm, "rms"], INVISIBLE] = "none"
    """Normalise each hidden layer's sums before the non-linearity."""
    init: Init = "default"
    """How fresh weights are drawn; default: as torch does, uniform in +-1 / sqrt(inputs)."""
    dropout: Annotated[OpenShare, TRAINING_ONLY] = 0.0
    """Probability that a hidden unit is silenced in training."""

    def __post_init__(self) -> None:
        allowed = ("cross_entropy", "squared", "hinge") if self.target == "class" else ("squared", "absolute", "huber")
        if self.loss not in ("default", *allowed):
            raise ValueError(f"loss {self.loss} is not one of a {self.target}; choose {', '.join(allowed)}")


class MLP(Classifier):
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3", "tensor", "pipeline"})
    tensor_plan = {"net.*": "gather"}

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        default = "cross_entropy" if config.target == "class" else "squared"
        self.cost = default if config.loss == "default" else config.loss
        sizes = [math.prod(config.inputs), *config.hidden]
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise(sizes):
            sums = blocks.sums_of(n_out, config.activation)
            layers += [nn.Linear(n_in, sums), *blocks.normalisation(config.norm, sums)]
            layers.append(blocks.ACTIVATIONS[config.activation]())
            layers += [Dropout(config.dropout)] if config.dropout else []
        self.net = nn.Sequential(*layers, nn.Linear(sizes[-1], config.classes if config.target == "class" else 1))
        blocks.initialise(self.net, config.init)
        if config.norm == "batch":  # which takes every rank for one with other samples and all layers
            self.batch_coupled, self.layouts = True, type(self).layouts - {"pipeline", "tensor"}
        self.maps = [i for i, module in enumerate(self.net) if isinstance(module, nn.Linear)]
        self.labelled = config.target == "class"
        if not self.labelled:
            self.primary, self.better = "loss", "lower"

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        sample = {config.column: Column.sample(config.inputs)}
        if config.target == "class":
            return {**sample, "label": Column.label(config.classes)}
        return {**sample, "y": Column.numbers(meaning="value to tell")}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        if config.target == "value":
            return {"value": Answer("values", "the number that is asked for", of="y")}
        return CLASSES if config.loss in ("default", "cross_entropy") else SCORES

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        output = self.through(batch)
        if not self.labelled:
            return {"value": self.in_file_units(output.squeeze(1))}
        return of_logits(output) if self.cost == "cross_entropy" else of_scores(output)

    @staticmethod
    def shrunk(model: Mapping[str, Any]) -> dict[str, Any]:
        return {**model, "hidden": [min(units, 32) for units in model.get("hidden", (32, 32))]}

    def inputs(self, batch: Batch) -> Tensor:
        return to_unit(batch[self.config.column]).flatten(1)  # (B, D)

    def layers(self) -> list[Layer]:
        """Each linear map, with what follows it up to the next."""
        parts = [self.net[i:j] for i, j in itertools.pairwise([*self.maps, len(self.net)])]
        return [Layer(f"layer {n}", part, (part,)) for n, part in enumerate(parts, 1)]

    def losses(self, output: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        if not self.labelled:
            told = output.squeeze(1)
            metrics = {} if self.training else of_numbers(told, batch["y"], self.file_units)
            return blocks.value_losses(self.cost, told, batch["y"]), metrics
        label = batch["label"]
        return blocks.class_losses(self.cost, output, filled(label)), {"accuracy": accuracy(output, label)}
