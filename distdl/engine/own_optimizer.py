"""`optimizer.name: module:Class`: an optimizer of the user's own, and what a checkpoint keeps of it.

Whatever it keeps of a parameter in its `state` comes along: tensors as they are, numbers as tensors of one number. What it
keeps elsewhere, in its groups or in itself, would be lost: where its groups have changed by the first checkpoint, that is
refused.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from distdl import trust
from distdl.config.family import module_file
from distdl.config.optimizer import OwnOptimizer
from distdl.errors import InputError, TrainingFailed

NUMBER = ".number"
"""Ends the key of a state that is no tensor."""


def load(use: str) -> Callable[..., torch.optim.Optimizer]:
    """The class. Raises InputError where there is none."""
    place, _, name = use.partition(":")
    if code := module_file(place):
        trust.allow(code)
    try:
        found = getattr(importlib.import_module(place), name, None)
    except Exception as error:
        what = f"optimizer.name: {place} cannot be imported on {os.uname().nodename}: {type(error).__name__}: {error}"
        raise InputError(what, fix="a module that every worker can import: installed, or on PYTHONPATH") from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        have = "has no such class" if found is None else "is no subclass of torch.optim.Optimizer"
        raise InputError(f"optimizer.name: {use} {have}", fix="module:Class, with a class of torch's kind")
    return found


def make(section: OwnOptimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """One over these groups, which have their own `weight_decay`. Raises InputError where its constructor fails."""
    try:
        optimizer = load(section.use)(groups, lr=section.lr, **section.options)
    except InputError:
        raise
    except Exception as error:
        what = f"{section.use} cannot be made with lr={section.lr} and options {section.options}"
        raise InputError(f"optimizer: {what}: {type(error).__name__}: {error}", fix="optimizer.options") from error
    optimizer.distdl_groups = [_settings(group) for group in optimizer.param_groups]  # type: ignore[attr-defined]
    return optimizer


def kept(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """What it keeps of a parameter. Raises TrainingFailed where it has put anything else aside."""
    for before, group in zip(optimizer.distdl_groups, optimizer.param_groups):  # type: ignore[attr-defined]
        now = _settings(group)
        if changed := sorted(key for key in now if repr(now[key]) != repr(before.get(key))):
            what = f"the optimizer {type(optimizer).__name__} keeps {', '.join(changed)} in its parameter groups"
            fix = "keep it in `self.state[parameter]`"
            raise TrainingFailed(f"{what}, which no checkpoint holds\n    fix: {fix}")
    found: dict[str, Tensor] = {}
    for key, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor):
            found[key] = value
        elif isinstance(value, int | float):
            kind = torch.float64 if isinstance(value, float) else torch.int64
            found[key + NUMBER] = torch.tensor(value, dtype=kind)
        else:
            what = f"the optimizer {type(optimizer).__name__} keeps a {type(value).__name__} as {key!r}"
            raise TrainingFailed(f"{what}, which no checkpoint holds\n    fix: tensors and numbers only")
    return found


def keep(optimizer: torch.optim.Optimizer, parameter: nn.Parameter | Tensor, values: dict[str, Tensor]) -> None:
    """Gives it back what it has `kept`."""
    for key, value in values.items():
        if key.endswith(NUMBER):
            optimizer.state[parameter][key.removesuffix(NUMBER)] = value.item()
        else:
            place = "cpu" if value.ndim == 0 else parameter.device
            optimizer.state[parameter][key] = value.to(place, copy=True)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", "lr")}
