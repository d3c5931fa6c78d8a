"""One file per architecture family. The folder is the registry; `family_schema.py` reads it without importing torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from distdl.errors import InputError, did_you_mean
from distdl.family_schema import family_names, family_schema
from distdl.learner import Learner


def load_family(name: str) -> type[Learner]:
    """The learner class of a family. Raises InputError where there is no such file."""
    if name not in family_names():
        raise InputError(f"there is no family {name!r}", fix=did_you_mean(name, family_names()))
    module = importlib.import_module(f"distdl.families.{name}")
    learners = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Learner)]
    return next(c for c in learners if c.__module__ == module.__name__)


def model_config(model: Mapping[str, Any]) -> Any:
    """The family's Config, from a `model:` section that was checked before."""
    fields = {key: value for key, value in model.items() if key != "family"}
    fields = {key: _tuples(value) for key, value in fields.items()}
    return load_family(model["family"]).Config(**fields)


def build(model: Mapping[str, Any]) -> Learner:
    """A learner with fresh weights, drawn from torch's current generator."""
    return load_family(model["family"])(model_config(model))


def _tuples(value: Any) -> Any:
    """JSON has lists only; the frozen configs hold tuples."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


__all__ = ["build", "family_names", "family_schema", "load_family", "model_config"]
