"""Ways of learning that any classifier can go, and what a run begins with: the sections `way`, `augment` and `start`.

A way is a class that is put before the family's in the order of inheritance. So the model keeps its names: the weights of
a run that learned without labels start one that has some, and a student's checkpoint is that of any model of its family.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from distdl.config.schema import Config
from distdl.config.ways import Augment
from distdl.errors import InputError, line_in
from distdl.families import load_family, model_config
from distdl.learner import Learner
from distdl.learner.classifier import Classifier
from distdl.ways import start
from distdl.ways.adversarial import Adversarial
from distdl.ways.augment import Augmentation
from distdl.ways.contrastive import Contrastive
from distdl.ways.distill import Distill
from distdl.ways.pseudo_label import PseudoLabel
from distdl.ways.way import Way

WAYS: dict[str, type[Way]] = {
    "adversarial": Adversarial,
    "contrastive": Contrastive,
    "distill": Distill,
    "pseudo_label": PseudoLabel,
}
"""The names of config/ways.py."""


def learner_class(config: Config) -> type[Learner]:
    """The family's class, the way before it. Raises InputError where the family cannot go that way."""
    family = load_family(config.model["family"])
    if config.way is None:
        return family
    if not issubclass(family, Classifier) or "label" not in family.columns(model_config(config.model)):
        what = f"way.name = {config.way.name!r} is a way for classifiers, and this {config.family} is none"
        raise InputError(what, fix="way: null, or a family with classes, such as cnn, mlp, lenet5, vit")
    way = WAYS[config.way.name]
    name = f"{way.__name__}{family.__name__}"
    attributes = {
        "settings": config.way,
        "layouts": family.layouts & way.proven,
        "Config": family.Config,
        # As of a class statement here: whoever meets the class in a message finds where it is made, and of what.
        "__module__": __name__,
        "__qualname__": f"learner_class.<locals>.{name}",
        "__doc__": f"{_place(way)} before {_place(family)} in the order of inheritance.",
    }
    return type(name, (way, family), attributes)


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def assemble(config: Config) -> Learner:
    """A learner with fresh weights, drawn from torch's current generator; its frozen parts are frozen."""
    learner = _built(config)
    if config.way and WAYS[config.way.name].batch_coupled:
        learner.batch_coupled = True  # whatever the family says of itself
    if config.augment:
        learner.augment(Augmentation(config.augment))
    for key in ("freeze", "lora"):
        if config.start and getattr(config.start, key) and type(learner).update is not Learner.update:
            what = f"start.{key}: a step of the family {config.family} is more than one loss and one optimizer"
            raise InputError(what, fix=f"start.{key}: {'[]' if key == 'freeze' else 'null'}")
    if config.start and config.start.freeze:
        start.freeze(learner, config.start.freeze)
    if config.start and config.start.lora:
        start.adapt(learner, config.start)
    return learner


def _built(config: Config) -> Learner:
    """A learner as its constructor leaves it. Raises InputError where that of a user's own family fails."""
    kind = learner_class(config)
    if not config.family_name.own:
        return kind(model_config(config.model))
    forgotten = "does not call super().__init__(), which must come first: it makes the place for layers and parameters"
    fix = f"super().__init__() as the first line of {kind.__name__}.__init__"
    try:
        learner = kind(model_config(config.model))
    except InputError:
        raise
    except Exception as error:
        where, code = line_in(error, config.family_name.source())
        if isinstance(error, AttributeError) and "__init__() call" in str(error):
            raise InputError(f"{kind.__name__}.__init__ {forgotten}", where=where, fix=fix) from error
        what = f"{kind.__name__}.__init__ fails: {type(error).__name__}: {error}"
        what += f"\n    in the line `{code}`" if code else ""
        raise InputError(what, where=where, fix="mend it; docs/custom_family.md") from error
    if "_parameters" not in vars(learner):
        raise InputError(f"{kind.__name__}.__init__ {forgotten}", where=str(config.family_name.source()), fix=fix)
    return learner


def columns_read(config: Config, others: bool = True) -> dict[str, dict[str, Any]]:
    """Who reads columns of the data set -> the columns; `others`: whom the way brings along, too. Raises InputError where
    the way cannot be gone."""
    cls = learner_class(config)
    try:
        mine = dict(cls.columns(model_config(config.model)))
    except Exception as error:
        if not config.family_name.own or isinstance(error, InputError):
            raise
        where, _ = line_in(error, config.family_name.source())
        what = f"`columns` of the family {config.family} fails: {type(error).__name__}: {error}"
        raise InputError(what, where=where, fix="mend it; docs/custom_family.md") from error
    if issubclass(cls, Contrastive):
        del mine["label"]
    if issubclass(cls, PseudoLabel):  # whatever is negative is no label
        mine["label"] = dataclasses.replace(mine["label"], low=None)
    if config.augment and len(getattr(mine.get(config.augment.column), "shape", ())) != 3:
        pictures = ", ".join(name for name, column in mine.items() if len(column.shape) == 3)
        what = f"augment changes pictures, and the column {config.augment.column!r} of this {config.family} is none"
        raise InputError(what, allowed=pictures or "none of its columns is", fix="augment.column, or augment: null")
    if config.augment and _moves(config.augment):
        shaped = [name for name, column in mine.items() if column.shape and name != config.augment.column]
        if shaped:
            what = f"augment would move the pictures and leave {', '.join(map(repr, shaped))} of this {config.family}"
            fix = "brightness, contrast, noise and erase only"
            raise InputError(f"{what} where they are, and those may tell places", fix=fix)
    brought = cls.others_read(config) if others and issubclass(cls, Way) else {}
    return {f"the family {config.family}": mine, **brought}


def _moves(augment: Augment) -> bool:
    """Whether places in a picture may change."""
    moved = augment.shift_pixels or augment.rotate_degrees or augment.zoom or augment.torchvision
    return bool(moved) or augment.flip != "none"
