"""What the ways of learning have in common: each is put on top of a classifier's class and changes how it learns."""

from __future__ import annotations

from typing import Any, ClassVar

from distdl.config.schema import Config
from distdl.errors import InputError
from distdl.learner.classifier import Classifier


class Way(Classifier):
    """Stands before a family's class in the order of inheritance: names, layers and evaluation stay the family's."""

    settings: ClassVar[Any]
    """The section `way:`."""
    proven: ClassVar[frozenset[str]] = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})
    """Layouts on which a test has shown this way equal to one process, with a family that has them, too."""

    def ready(self, config: Config) -> None:
        """Fetches what the way needs beside the data, before the first step. Raises InputError."""

    @classmethod
    def others_read(cls, config: Config) -> dict[str, dict[str, Any]]:
        """Who else reads columns of the data set -> the columns. Raises InputError where the way cannot be gone."""
        return {}


def refuse_other_loss(config: Config) -> None:
    """Raises InputError where the family would be told a loss that a way with a cross entropy of its own does not take."""
    loss = config.model.get("loss", "default")
    if loss not in ("default", "cross_entropy"):
        assert config.way is not None
        what = f"way {config.way.name} takes the cross entropy, and model.loss is {loss!r}"
        raise InputError(what, fix="model.loss: default")
