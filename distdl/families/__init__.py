"""One file per architecture family: NAME.py, or NAME/NAME.py where it needs more than one. The folder is the registry;
`config/family.py` reads it without importing torch."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch

from distdl import trust
from distdl.config.family import DOCS, FamilyName, family_names, family_schema
from distdl.errors import InputError
from distdl.learner import Learner


def load_family(name: str) -> type[Learner]:
    """The learner class of a family. Raises InputError where there is no such family, or its file is not one."""
    family = FamilyName(name)
    path = family.source()
    module = _import_custom(family, path) if family.own else importlib.import_module(family.module)
    learners = {c: None for c in vars(module).values() if isinstance(c, type) and issubclass(c, Learner)}
    own = [c for c in learners if c.__module__ == module.__name__]
    if family.own and len(own) != 1:
        have = " and ".join(c.__name__ for c in own) or "none"
        fix = f"a family's file has one class that learns ({DOCS})"
        raise InputError(f"a family has one subclass of Learner, and this file has {have}", where=str(path), fix=fix)
    return own[0]


def _import_custom(family: FamilyName, path: Path) -> ModuleType:
    """The module of a user's own family. Raises InputError with the line where importing it fails, and where it came with a
    run and nobody has said yes to it."""
    trust.allow(path)
    family_schema(family.text)  # a file that does not parse, or has no Config
    try:
        return _import_file(path) if family.file else importlib.import_module(family.module)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}:{lines[-1]}" if lines else str(path)
        what = f"the family cannot be imported on {os.uname().nodename}: {type(error).__name__}: {error}"
        raise InputError(what, where=where) from error


def _import_file(path: Path) -> ModuleType:
    """A file as a module whose name tells its content: the same on every worker, wherever the file lies there."""
    name = f"distdl_custom_{path.stem}_{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path, loader=_Source(name, str(path)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: Learner looks its subclass's module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class _Source(SourceFileLoader):
    """Compiles the file as it is now: a cached one would be chosen by date and size, and lie in the user's folder."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def model_config(model: Mapping[str, Any]) -> Any:
    """The family's Config, from a `model:` section that was checked before."""
    fields = {key: value for key, value in model.items() if key != "family"}
    fields = {key: _tuples(value) for key, value in fields.items()}
    return load_family(model["family"]).Config(**fields)


def build(model: Mapping[str, Any]) -> Learner:
    """A learner with fresh weights, drawn from torch's current generator."""
    return load_family(model["family"])(model_config(model))


def facts_of(name: str) -> dict[str, Any]:
    """What `distdl families` tells of a family; `facts.json` holds it of ours. Raises InputError where a package that it
    needs is not installed."""
    family = load_family(name)
    with torch.device("meta"):
        learner = family(family.Config())
    return {
        "parameters": sum(p.numel() for p in learner.parameters() if p.requires_grad),
        "learns": family.learns,
        "players": list(family.players),
        "layouts": sorted(family.layouts),
        "needs": [],
    }


def _tuples(value: Any) -> Any:
    """JSON has lists only; the frozen configs hold tuples."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


__all__ = ["build", "facts_of", "family_names", "family_schema", "load_family", "model_config"]
