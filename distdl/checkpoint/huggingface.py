"""Models as Hugging Face's transformers keeps them: config.json and model.safetensors, to and from our families.

The folder `dialects/` has one file per family that has such a model; how to add one is said there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from distdl.checkpoint.dialects import Dialect, Rule, Values, dialects
from distdl.checkpoint.stream import Lazy, open_safetensors
from distdl.errors import InputError
from distdl.families import build, model_config

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
OURS = "huggingface"
"""The family whose network is theirs, of any kind."""


# -- to them -----------------------------------------------------------------------------------------------------------


def to_huggingface(model: Mapping[str, Any], tensors: Mapping[str, Lazy]) -> tuple[Values, dict[str, Lazy]]:
    """(config.json, tensors under their names) of a model of ours. Raises InputError where it has no equal there."""
    of_family = [d for d in dialects() if d.family == model.get("family")]
    if not of_family:
        allowed = "the families " + ", ".join([*dict.fromkeys(d.family for d in dialects()), OURS])
        raise InputError(f"the family {model.get('family')} has no Hugging Face model", allowed=allowed)
    if any("experts" in name for name in tensors):
        raise InputError("a gpt with a mixture of experts has no Hugging Face model", allowed="gpt with dense blocks")
    ours, out = model_config(model), {}
    dialect = min(of_family, key=lambda d: len(d.unlike(ours)))
    if unlike := dialect.unlike(ours):
        what = f"this {dialect.family} has no Hugging Face model; the nearest is {dialect.title}, for which it has"
        raise InputError(f"{what} {', '.join(unlike)}", allowed=", ".join(d.title for d in of_family))
    for name, tensor in tensors.items():
        found = dialect.to_theirs(name, ours)
        if found is None:
            raise InputError(f"a {dialect.family} with {name} has no Hugging Face model")
        rule, names = found
        tensor = rule.to_theirs(tensor)
        for index, there in enumerate(names):
            out[there] = _part(tensor, index, len(names))
    sizes = {theirs: getattr(ours, field) for field, theirs in dialect.sizes.items()}
    fixed = {key: values[0] for key, values in dialect.fixed.items()}
    head = {"model_type": dialect.model_type, "torch_dtype": "float32"}
    return {**head, **sizes, **fixed, **dialect.to_config(ours)}, out


def write_theirs(model: Mapping[str, Any], tensors: Mapping[str, Lazy], folder: Path) -> None:
    """Writes a model of the family that is their network itself, as their library does. Raises InputError."""
    with torch.device("meta"):
        learner: Any = build(model)  # the family huggingface: it saves itself as their library does
    weights = {name: tensor.read() for name, tensor in tensors.items()}
    if missing := [name for name, _ in learner.named_parameters() if name not in weights]:
        raise InputError(f"the source has no {', '.join(missing[:5])}")
    learner.load_state_dict(weights, strict=False, assign=True)
    learner.save(folder)


def _part(tensor: Lazy, index: int, of: int) -> Lazy:
    """One of equal parts along the first dimension."""
    if of == 1:
        return tensor
    shape = (tensor.shape[0] // of, *tensor.shape[1:])
    return replace(tensor, shape=shape, read=lambda: tensor.read().chunk(of)[index])


# -- from them ---------------------------------------------------------------------------------------------------------


def is_known(names: Collection[str]) -> bool:
    """Whether these are the tensor names of a Hugging Face model that a family of ours is."""
    return any(dialect.knows(names) for dialect in dialects())


def is_folder(path: Path) -> bool:
    """Whether a model of theirs lies in this folder."""
    return (path / CONFIG).is_file() and any((path / name).is_file() for name in (WEIGHTS, INDEX))


def from_huggingface(path: Path) -> tuple[Values | None, dict[str, Lazy]]:
    """(`model` section, or None without a config.json; tensors under our names) of a folder or file. Raises InputError."""
    file = (path if path.is_dir() else path.parent) / CONFIG
    config = _read_json(file) if file.is_file() else None
    theirs: dict[str, Lazy] = {}
    for weights in _files(path):
        theirs |= open_safetensors(weights)[0]
    dialect = _dialect(config, theirs, path, file)
    model = None if config is None else _model(dialect, config, theirs, file)
    for name, other in dialect.tied.items() if dialect.ties(config or {}) else ():
        tensor, original = theirs.pop(name, None), theirs.get(other, theirs.get(other.removeprefix(dialect.prefix)))
        if tensor is not None and (original is None or not torch.equal(tensor.read(), original.read())):
            raise InputError(f"{path} has a head of its own ({name}); that of {dialect.family} is tied to {other}")
    parts: dict[str, tuple[Rule, dict[int, Lazy]]] = {}
    for name, tensor in theirs.items():
        found = dialect.to_ours(name)
        if found is not None:
            rule, ours, index = found
            parts.setdefault(ours, (rule, {}))[1][index] = tensor
        elif not re.fullmatch(dialect.ignored, name.removeprefix(dialect.prefix)):
            raise InputError(f"{path} holds {name}, which a {dialect.title} has not")
    return model, {name: rule.to_ours(_joined(path, name, rule, found)) for name, (rule, found) in parts.items()}


def _joined(path: Path, name: str, rule: Rule, found: dict[int, Lazy]) -> Lazy:
    """The parts one behind the other along the first dimension."""
    if missing := [part for index, part in enumerate(rule.parts) if index not in found]:
        raise InputError(f"{path} has no {', '.join(missing)}, which belongs to {name}")
    if len(found) == 1:
        return found[0]
    tensors = [found[index] for index in range(len(found))]
    shape = (sum(tensor.shape[0] for tensor in tensors), *tensors[0].shape[1:])
    return replace(tensors[0], shape=shape, read=lambda: torch.cat([tensor.read() for tensor in tensors]))


def _dialect(config: Values | None, names: Collection[str], path: Path, file: Path) -> Dialect:
    allowed = ", ".join(f"{d.model_type} for the family {d.family}" for d in dialects())
    for dialect in dialects():
        if dialect.knows(names) and (config is None or config.get("model_type") == dialect.model_type):
            return dialect
    if config is None:
        raise InputError(f"{path} holds a model that no family is", allowed=allowed)
    what = f"{file} describes a model of the type {config.get('model_type')!r}"
    if config.get("model_type") in {dialect.model_type for dialect in dialects()}:
        raise InputError(f"{what}, whose tensors are named otherwise than those in {path}")
    raise InputError(what, allowed=allowed)


def _model(dialect: Dialect, config: Values, names: Collection[str], file: Path) -> Values:
    """The `model` section of a config.json. Raises InputError for anything that our family does not compute exactly."""
    for key, values in dialect.fixed.items():
        if config.get(key, values[0]) not in values:
            allowed = " or ".join(map(str, values))
            what = f"{file}: {key} is {config[key]!r}, which the family {dialect.family} has not"
            raise InputError(what, allowed=allowed)
    try:
        sizes = {field: int(config[theirs]) for field, theirs in dialect.sizes.items()}
        return {"family": dialect.family, **sizes, **dialect.to_model(config, names)}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} is no config of a {dialect.title}: {error!r}") from None


def _files(path: Path) -> list[Path]:
    """The file of the weights, or the several that an index names."""
    if path.is_file():
        return [path]
    if not (path / INDEX).is_file():
        return [path / WEIGHTS]
    names = sorted({str(name) for name in _read_json(path / INDEX).get("weight_map", {}).values()})
    if outside := [name for name in names if Path(name).name != name]:
        raise InputError(f"{path / INDEX} names a file outside its folder: {outside[0]}")
    return [path / name for name in names]


def _read_json(path: Path) -> Values:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object")
    return value
