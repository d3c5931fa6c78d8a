"""How a family of ours is a model of Hugging Face's transformers: one file per model. The folder is the registry.

To add a family, add a file with its `DIALECT`; nothing else names it. A dialect says

    rules      which of our modules or tensors is which of theirs; * is the number of a block. The first rule is of a block,
               and a file is known by it. Several of theirs are one of ours, cut along the first dimension. `to_ours` and
               `to_theirs` change a tensor's form on the way; `when` says which models of the family have it
    choices    which models of the family are such: field of our config -> what it may say
    sizes      which field of our config is which key of config.json
    fixed      what config.json must say for our family to compute the same: the first value is written, and taken if absent
    to_config  what else config.json says
    to_model   what else our `model` section says, by config.json and the names of the tensors
    tied       tensors that are there or not, and must equal another one of theirs, where `ties` says so by config.json
    ignored    names that hold no weights

and gets a test in tests/families/, with a model of transformers on either side.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from distdl.checkpoint.stream import Lazy

Values = dict[str, Any]


def dialects() -> list[Dialect]:
    """Every family that has a Hugging Face model."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    found: list[Dialect] = [importlib.import_module(f"{__name__}.{name}").DIALECT for name in names]
    return sorted(found, key=lambda dialect: dialect.family != "gpt")


def same(tensor: Lazy) -> Lazy:
    """As it is."""
    return tensor


def transposed(tensor: Lazy) -> Lazy:
    """The transpose of a matrix, for their Conv1D, which computes x W; a vector as it is."""
    return tensor.t() if len(tensor.shape) == 2 else tensor


def flat(tensor: Lazy) -> Lazy:
    """(N, 1) -> (N,)"""
    return replace(tensor, shape=tensor.shape[:1], read=lambda: tensor.read().flatten())


def column(tensor: Lazy) -> Lazy:
    """(N,) -> (N, 1)"""
    return replace(tensor, shape=(*tensor.shape[:1], 1), read=lambda: tensor.read().unsqueeze(1))


@dataclass(frozen=True)
class Rule:
    """One of our modules (its weight and bias) or tensors, and what it is called there."""

    ours: str
    theirs: str | tuple[str, ...]
    to_ours: Callable[[Lazy], Lazy] = same
    to_theirs: Callable[[Lazy], Lazy] = same
    when: Callable[[Any], bool] = lambda ours: True
    """Whether a model with this config of our family has it."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Their names, one or several."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


@dataclass(frozen=True)
class Dialect:
    """How a family of ours is a model of theirs. The fields are explained at the top of this file."""

    family: str
    title: str
    """For people: GPT-2."""
    model_type: str
    prefix: str
    """What their names begin with, or not: a bare model is saved without."""
    rules: tuple[Rule, ...]
    sizes: Mapping[str, str]
    fixed: Mapping[str, tuple[Any, ...]]
    to_config: Callable[[Any], Values]
    to_model: Callable[[Values, Collection[str]], Values]
    tied: Mapping[str, str] = field(default_factory=dict)
    ties: Callable[[Values], bool] = lambda config: True
    ignored: str = "-"
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def unlike(self, ours: Any) -> list[str]:
        """What of our config says that it is no such model, in words."""
        wrong = {name: values for name, values in self.choices.items() if getattr(ours, name) not in values}
        return [f"{name}={getattr(ours, name)} (not {' or '.join(map(str, may))})" for name, may in wrong.items()]

    def to_theirs(self, name: str, ours: Any) -> tuple[Rule, list[str]] | None:
        """The rule of a tensor of ours in a model of this config, and its names there."""
        for rule in self.rules:
            if rule.when(ours) and (found := [_renamed(name, rule.ours, part) for part in rule.parts])[0]:
                return rule, [there for there in found if there]
        return None

    def to_ours(self, name: str) -> tuple[Rule, str, int] | None:
        """The rule of a tensor of theirs, its name here, and which part of ours it is."""
        for full in (name, self.prefix + name):
            for rule in self.rules:
                for index, part in enumerate(rule.parts):
                    if here := _renamed(full, part, rule.ours):
                        return rule, here, index
        return None

    def knows(self, names: Collection[str]) -> bool:
        """Whether a file with these names is such a model."""
        sign = self.rules[0].parts[0].replace("*", "0") + ".weight"
        return sign in names or sign.removeprefix(self.prefix) in names


def _renamed(name: str, pattern: str, other: str) -> str | None:
    """blocks.3.up.bias by blocks.*.up as h.*.c_fc: h.3.c_fc.bias. None: the pattern does not fit."""
    match = re.fullmatch(re.escape(pattern).replace(r"\*", r"(\d+)") + r"(?P<kind>\.weight|\.bias)?", name)
    if not match:
        return None
    return other.replace("*", match[1] if "*" in pattern else "*") + (match["kind"] or "")
