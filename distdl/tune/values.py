"""The YAML of a trial: that of the search with other values, as a file that `distdl train` takes."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from distdl.config.schema import Config
from distdl.config.yaml_file import apply_override, read_yaml


def given(path: str, overrides: Sequence[str], config: Config) -> dict[str, Any]:
    """What a YAML file and the arguments say of a run, without the search. A family of the user's own is named by its whole
    path: the file that it was relative to is another."""
    values, origins = read_yaml(path)
    for text in overrides:
        apply_override(values, origins, text)
    values.pop("search", None)
    if config.family_name.own:
        values["model"]["family"] = config.model["family"]
    return values


def put(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with other values at dotted keys."""
    found = copy.deepcopy(dict(values))
    for key, value in changes.items():
        *above, last = key.split(".")
        section = found
        for part in above:
            if not isinstance(section.get(part), dict):
                section[part] = {}
            section = section[part]
        section[last] = copy.deepcopy(value)
    return found


def of_trial(values: Mapping[str, Any], config: Config, name: str, runs: Path, cpus: float) -> dict[str, Any]:
    """What a run of a search is told beside its values: its place, and that it is trained where the search puts it."""
    runtime = config.runtime
    found = put(values, {"name": name, "runs": str(runs)})
    found["runtime"] = {
        "kind": "local",
        "workers": runtime.workers,
        "timeout_s": runtime.timeout_s,
        "grace_s": runtime.grace_s,
    }
    if not config.train.threads_per_worker:  # of all cores, which the others want, too
        found = put(found, {"train.threads_per_worker": max(1, int(cpus / runtime.workers))})
    return found


def write_yaml(path: Path, values: Mapping[str, Any], about: Sequence[str]) -> None:
    """Writes a config. `about`: the lines of its comment. May raise OSError."""
    comment = "".join(f"# {line}\n" for line in about)
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=math.inf, default_flow_style=None)
    path.write_text(comment + text, encoding="utf-8")
    if read_yaml(str(path))[0] != values:  # a text that YAML 1.1 and 1.2 read differently, such as '1e-3'
        path.write_text(comment + json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
