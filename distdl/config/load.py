"""Loads a config: defaults < YAML < key=value, and finds every mistake at once.

1. The YAML is read into plain values and, beside them, the line of every key (`origins`; `yaml_file.py`).
2. `key=value` arguments are put on top (`yaml_file.py`, too).
3. The schema checks the whole (`check.py`): each mistake becomes a Problem with file:line, the value, what is allowed and
   the nearest valid key. All of them are raised together, before torch, ray or mlflow is imported.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distdl.config.check import UNIONS, Checker, variant
from distdl.config.schema import Config
from distdl.config.yaml_file import KeyPath, apply_override, plain, read_yaml
from distdl.errors import InputError, Problem

DEFAULT = "default"


@dataclass(frozen=True)
class Loaded:
    """A valid config, and where each of its values came from."""

    config: Config
    origins: dict[KeyPath, str]
    """Key path -> `file:line` or `argument 'key=value'`; keys that are absent have their default."""
    path: str
    """The YAML file."""

    def origin(self, path: KeyPath) -> str:
        """`file:line`, `argument 'key=value'`, or `default`."""
        return self.origins.get(path, DEFAULT)


def load_config(path: str, overrides: Sequence[str] = (), cut: Collection[str] = ()) -> Loaded:
    """Reads a YAML file and puts `key=value` arguments on top. Raises InputError with all problems.

    `cut`: axes that will be cut though the config does not say so, whose keys are read then.
    """
    values, origins = read_yaml(path)
    problems = _put_on_top(values, origins, overrides)
    return Loaded(_checked(values, Checker(origins, path, Path(path).parent, cut), problems), origins, path)


def load_values(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """The same for what a YAML file would hold, as a mapping; a family's file is relative to the working folder. Raises
    InputError."""
    given, origins = plain(values), dict[KeyPath, str]()
    problems = _put_on_top(given, origins, overrides)
    return _checked(given, Checker(origins, "the config", Path()), problems)


def config_from_dict(resolved: Mapping[str, Any], overrides: Sequence[str] = (), beside: Path = Path()) -> Config:
    """A config that was resolved before (a run folder's config.json), `key=value` arguments on top. Raises InputError.

    `beside`: the folder that it lies in, where its family may be a file.
    """
    values, origins = copy.deepcopy(dict(resolved)), dict[KeyPath, str]()
    problems = _put_on_top(values, origins, overrides)
    for section, (_, tag) in UNIONS.items():
        chosen = variant(section, (values.get(section) or {}).get(tag)) if (section, tag) in origins else None
        if chosen:  # another kind of it: what was resolved for the old one says nothing about the new one
            kept = {k: v for k, v in values[section].items() if k in chosen.model_fields or (section, k) in origins}
            values[section] = kept
    return _checked(values, Checker(origins, "config.json", beside), problems)


def _put_on_top(values: dict[str, Any], origins: dict[KeyPath, str], overrides: Sequence[str]) -> list[Problem]:
    """Changes the values as the arguments say; what is wrong with the arguments themselves."""
    return [p for p in (apply_override(values, origins, text) for text in overrides) if p]


def _checked(values: dict[str, Any], checker: Checker, problems: list[Problem]) -> Config:
    """The config of the values. Raises InputError with the problems that there were before, and all that are found."""
    config = checker.check(values)
    if problems or config is None:
        raise InputError(*problems, *checker.problems)
    return config
