"""The sections `start:`, `augment:` and `way:`: what a run begins with, what it sees, and by which lesson it learns."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distdl.config.fields import OpenShare, Share
from distdl.config.section import Natural, Positive, PositiveFloat, Section


class LoRA(Section):
    """Low-rank adapters (Hu et al. 2021): weights that are carried over stay, and linear maps learn a correction B A."""

    rank: Positive = 8
    """Rows of A and columns of B."""
    alpha: Positive = 16
    """The correction is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ("*",)
    """Patterns of names of linear maps that get one, such as blocks.*.attn.*; *: all, but those that the loss looks at."""
    dropout: OpenShare = 0.0
    """Probability of dropping an input of A."""


class Start(Section):
    """What a new run begins with. A run that continues has its own checkpoint and reads no weights here."""

    weights: str | None = None
    """Run (its name or folder), checkpoint folder, folder of a model of transformers that the family is, or .safetensors
    file whose weights are carried over; null: fresh ones."""
    which: Literal["latest", "best"] = "latest"
    """Which checkpoint of the run."""
    fresh: tuple[str, ...] = ()
    """Patterns of names, such as head.*, that are not carried over: they begin fresh here, or have no place here."""
    freeze: tuple[str, ...] = ()
    """Patterns of names of parameters that do not learn; a module that is frozen whole computes as in evaluation."""

    lora: LoRA | None = None
    """Nothing of what is carried over learns, but adapters beside it do, and what begins `fresh`; null: all learns."""

    @model_validator(mode="after")
    def _read(self) -> Start:
        if self.weights is None and (self.fresh or self.which == "best"):
            raise ValueError("fresh and which say what is carried over, and weights names nothing to carry over")
        return self


class Augment(Section):
    """Random changes to each picture in training, another draw each time it is seen, the same on every layout.

    They come in the order of the keys. Pictures are (channels, height, width), uint8 or 0..1; places from outside are 0.
    """

    column: str = "image"
    """Column of the data set that holds the pictures."""
    shift_pixels: Natural = 0
    """Largest move to each side, in pixels."""
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest turn to each side, in degrees."""
    zoom: OpenShare = 0.0
    """Largest change of size: 0.1 is from 0.9 to 1.1 times."""
    flip: Literal["none", "horizontal", "vertical", "both"] = "none"
    """Mirror half of the pictures left to right, top to bottom, or each of the two for itself."""
    brightness: Share = 0.0
    """Largest brightness that is added or taken away."""
    contrast: OpenShare = 0.0
    """Largest change of the distances from the picture's mean: 0.2 is from 0.8 to 1.2 times."""
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Standard deviation of Gaussian noise."""
    erase: OpenShare = 0.0
    """Side of a square that is blanked out at a random place, as a share of the picture's (DeVries & Taylor 2017)."""
    torchvision: tuple[dict[str, dict[str, Any]], ...] = ()
    """Transforms of torchvision.transforms.v2 that come last, each {Name: {argument: value}}; needs `distdl[augment]`."""

    @model_validator(mode="after")
    def _does_something(self) -> Augment:
        if self == Augment.model_construct(column=self.column):
            raise ValueError("no change is asked for; give one, such as shift_pixels: 2, or augment: null")
        if any(len(transform) != 1 for transform in self.torchvision):
            raise ValueError(
                "write each of torchvision as {Name: {argument: value}}, such as {ColorJitter: {hue: 0.1}}"
            )
        return self


class Distill(Section):
    """Knowledge distillation (Hinton, Vinyals & Dean 2015): the soft answers of another run's model are targets, too."""

    name: Literal["distill"]
    teacher: str
    """Run (its name or folder), or one of its checkpoints, of a classifier with the same classes; any family, any size."""
    which: Literal["latest", "best"] = "latest"
    """Which of its checkpoints."""
    temperature: PositiveFloat = 4.0
    """What both models' logits are divided by before their answers are compared."""
    weight: Share = 0.9
    """Share of the teacher in the loss; the labels have the rest."""


class PseudoLabel(Section):
    """Pseudo-labels (Lee 2013): where there is no label, what the model is sure of is taken for one."""

    name: Literal["pseudo_label"]
    labelled: Natural | None = None
    """Rows of the training split, from the first, whose labels may be looked at; null: those that are not negative."""
    threshold: OpenShare = 0.95
    """Probability from which the model's own answer counts."""
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of a sample without a label, once the ramp is over; 0: they are not learned from."""
    from_step: Natural = 0
    """Steps before which only labelled samples count."""
    ramp_steps: Natural = 0
    """Steps over which the weight then rises in a straight line."""


class Contrastive(Section):
    """SimCLR (Chen et al. 2020): two views of a picture, made by `augment`, find each other among all of the batch.

    The model's outputs are the projections that are compared: `classes` is their size. No label is read.
    """

    name: Literal["contrastive"]
    temperature: PositiveFloat = 0.5
    """What the cosines are divided by."""


class Adversarial(Section):
    """Adversarial training (Goodfellow, Shlens & Szegedy 2015; with several steps Madry et al. 2018)."""

    name: Literal["adversarial"]
    column: str = "image"
    """Column that is attacked: uint8, or numbers in 0..1."""
    epsilon: PositiveFloat = 0.1
    """Largest change of a value, of 0..1."""
    steps: Positive = 1
    """Steps of the attack; 1: the fast gradient sign method."""
    weight: Share = 0.5
    """Share of the attacked samples in the loss; 0: they are only evaluated."""


Way = Annotated[Distill | PseudoLabel | Contrastive | Adversarial, Field(discriminator="name")]
