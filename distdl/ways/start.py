"""What a new run begins with: another run's weights, and which of them stay as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from distdl.checkpoint.adapters import merged
from distdl.checkpoint.huggingface import from_huggingface, is_folder
from distdl.checkpoint.layout import MANIFEST, checkpoints
from distdl.checkpoint.load import Checkpoint, latest_sound
from distdl.checkpoint.prune import best
from distdl.checkpoint.stream import Lazy
from distdl.config.family import family_schema
from distdl.config.marks import INVISIBLE
from distdl.config.schema import Config
from distdl.config.ways import Start
from distdl.engine.precision import head
from distdl.errors import InputError
from distdl.learner import Learner
from distdl.nn import lora as lora_maps
from distdl.parallel.birth import put
from distdl.run.folder import RunFolder, find_run


class Weights(NamedTuple):
    """Tensors by their names in a learner."""

    place: str
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    model: Mapping[str, Any]
    """The `model:` section that they were trained with; {} where a file does not tell."""


def located(config: Config, before: RunFolder | None = None, learns: bool = True) -> Config:
    """The config for workers that may start in another folder: what `start.weights` and `way.teacher` name, as absolute
    paths of checkpoints, chosen once for all of them. Raises InputError where one is not there.

    `before`: the run's folder, if it continues: it has left its start behind, and keeps its teacher as it was. Without
    `learns`, nobody asks the teacher.
    """
    start, way = config.start, config.way
    trained = before is not None and bool(checkpoints(before.checkpoints))
    if start and start.lora and not start.weights and not trained and learns:
        what = "start.lora corrects weights that are carried over, and start.weights names none"
        raise InputError(what, fix="start.weights: RUN, or start.lora: null")
    if start and start.weights:
        place = None if trained or not learns else _absolute(start.weights, config.runs, start.which)
        start = start.model_copy(update={"weights": place, "which": "latest", "fresh": start.fresh if place else ()})
    if way and way.name == "distill":
        planned = ((before.read("plan.json") or {}) if before and trained else {}).get("config", {}).get("way") or {}
        kept = planned.get("teacher", "")
        if not learns:
            way = None
        else:
            place = kept if (Path(kept) / MANIFEST).is_file() else _absolute(way.teacher, config.runs, way.which)
            way = way.model_copy(update={"teacher": place, "which": "latest"})
    return config.model_copy(update={"start": start, "way": way})


def _absolute(place: str, runs: str, which: str) -> str:
    """The checkpoint folder or file that a place names."""
    path = Path(place)
    direct = path.suffix == ".safetensors" or (path / MANIFEST).is_file() or is_folder(path)
    if direct and which != "latest":
        raise InputError(f"{place} is one checkpoint: there is no {which} of it", fix="which: latest, or name the run")
    return str((path if direct else checkpoint_of(find_run(place, runs), which)).absolute())


def carry_over(learner: Learner, config: Config) -> None:
    """Puts the weights that `start.weights` names into a learner with fresh ones. Raises InputError where they differ."""
    assert config.start and config.start.weights
    source = open_weights(config.start.weights, config.runs, config.start.which)
    _refuse_other_meaning(source, config)
    mine = _named(learner)
    names = carried(source, {name: tuple(t.shape) for name, t in mine.items()}, config.start)
    for name in names:
        put(mine[name], functools.partial(source.read, name))


def check(learner: Learner, config: Config) -> None:
    """Raises InputError where the weights do not fit, or where a pattern of `start` says nothing. Reads no tensor."""
    if config.start and config.start.weights:
        source = open_weights(config.start.weights, config.runs, config.start.which)
        _refuse_other_meaning(source, config)
        carried(source, {name: tuple(t.shape) for name, t in _named(learner).items()}, config.start)


def _refuse_other_meaning(source: Weights, config: Config) -> None:
    if source.model.get("family") != config.family_name.portable.text:
        return
    for key in sorted(family_schema(config.model["family"]).marked(INVISIBLE)):
        there, here = source.model.get(key), config.model.get(key)
        if there != here and key in source.model and key in config.model:
            what = f"start.weights: {source.place} was trained with model.{key}={there}, and here it is {here}"
            raise InputError(what, fix=f"model.{key}={there}")


def freeze(learner: Learner, patterns: Iterable[str]) -> None:
    """Parameters that fit a pattern learn no more; modules that are frozen whole are kept in evaluation mode."""
    named = dict(learner.named_parameters())
    names: set[str] = set()
    for pattern in patterns:
        found = [name for name in named if fnmatchcase(name, pattern)]
        if not found:
            raise InputError(f"start.freeze: no parameter fits {pattern!r}", allowed=_some(named))
        names.update(found)
    learner.freeze(names)
    if not any(p.requires_grad for p in named.values()):
        raise InputError("start.freeze: nothing is left to learn", fix="leave the last layer out")


def adapt(learner: Learner, start: Start) -> None:
    """Gives linear maps adapters; nothing else learns, but what is not carried over."""
    assert start.lora
    lora, last = start.lora, head(learner)
    named = {name: module for name, module in learner.named_modules() if isinstance(module, nn.Linear)}
    targets = [name for name in named if id(named[name]) not in last] if lora.targets == ("*",) else lora.targets
    found = lora_maps.adapt(learner, targets, lora.rank, lora.alpha, lora.dropout)
    if idle := [pattern for pattern, names in found.items() if not names]:
        raise InputError(f"start.lora.targets: no linear map fits {idle[0]!r}", allowed=_some(named))
    if not found:
        raise InputError("start.lora: this model has no linear map", fix="start.lora: null")
    kept = {name for name, _ in learner.named_parameters() if not lora_maps.is_adapter(name)}
    learner.freeze({name for name in kept if not any(fnmatchcase(name, pattern) for pattern in start.fresh)})


def carried(source: Weights, mine: Mapping[str, tuple[int, ...]], start: Start) -> list[str]:
    """The names that are carried over. Raises InputError where one has no counterpart and no pattern of `fresh` fits."""
    names = source.shapes.keys() | mine.keys()
    idle = [pattern for pattern in start.fresh if not any(fnmatchcase(name, pattern) for name in names)]
    if idle:
        raise InputError(f"start.fresh: no name fits {idle[0]!r}", allowed=_some(names))
    left = {name for name in names if any(fnmatchcase(name, pattern) for pattern in start.fresh)}
    problems = [f"{n} is in the model alone" for n in sorted(mine.keys() - source.shapes.keys() - left)]
    problems += [f"{n} is in the weights alone" for n in sorted(source.shapes.keys() - mine.keys() - left)]
    both = sorted((mine.keys() & source.shapes.keys()) - left)
    problems += [
        f"{n} is {list(source.shapes[n])} there and {list(mine[n])} in the model"
        for n in both
        if source.shapes[n] != mine[n]
    ]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        fix = "name what is not to be carried over: start.fresh: [head.*], for example"
        raise InputError(f"start.weights: {source.place} does not fit: {'; '.join(problems[:5])}{more}", fix=fix)
    if not both:
        raise InputError("start.fresh leaves nothing to carry over", fix="start.weights: null")
    return both


def open_weights(place: str, runs: str, which: str = "latest") -> Weights:
    """The weights of a run, a checkpoint folder, a folder of transformers or a .safetensors file. Raises InputError, or
    DataCorrupt."""
    path = Path(place)
    if is_folder(path):
        model, tensors = from_huggingface(path)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        return Weights(str(path), shapes, lambda name: tensors[name].read(), model or {})
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise InputError(f"start.weights: there is no file {path}")
        try:
            file = safe_open(str(path), framework="pt")
        except Exception as error:  # safetensors has an exception of its own that it does not export
            raise InputError(f"start.weights: {path} cannot be read: {error}") from None
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return _merged(Weights(str(path), shapes, file.get_tensor, {}))
    folder = path if (path / MANIFEST).is_file() else checkpoint_of(find_run(place, runs), which)
    checkpoint = Checkpoint(
        folder, verify=False
    )  # what is carried over is compared as it is read, on each rank its own
    names = sorted(checkpoint.tensors, key=lambda name: name.startswith("averages/"))  # which come last, and count
    kinds = {name.partition("/")[2]: name for name in names if not name.startswith("optimizer/")}
    shapes = {name: tuple(checkpoint.tensors[full]["shape"]) for name, full in kinds.items()}
    model = checkpoint.manifest.get("model") or {}
    return _merged(Weights(str(folder), shapes, lambda name: checkpoint.read(kinds[name]), model))


def _merged(weights: Weights) -> Weights:
    """Adapters that were trained before are part of the weights now."""
    if not any(map(lora_maps.is_adapter, weights.shapes)):
        return weights
    lazy = {n: Lazy(shape, torch.float32, partial(weights.read, n)) for n, shape in weights.shapes.items()}
    together = merged(lazy)
    shapes = {name: tensor.shape for name, tensor in together.items()}
    return weights._replace(shapes=shapes, read=lambda name: together[name].read())


def checkpoint_of(run: RunFolder, which: str) -> Path:
    """The latest sound checkpoint of a run, or the one with the best metric. Raises InputError, or DataCorrupt."""
    if not checkpoints(run.checkpoints):
        raise InputError(f"the run in {run.path} has no checkpoint yet", fix="train it first")
    if which == "best":
        if ((run.config_values() or {}).get("checkpoint") or {}).get("keep_best") == 0:
            what = f"the run in {run.path} keeps no best checkpoint (checkpoint.keep_best: 0)"
            raise InputError(what, fix="which: latest (--which latest); or train with checkpoint.keep_best=1")
        plan = run.read("plan.json") or {}
        ranked = best(run.checkpoints, plan.get("model", {}).get("better", "lower"))
        if not ranked:
            raise InputError(f"the run in {run.path} was never evaluated", fix="which: latest")
        return ranked[0]
    checkpoint = latest_sound(run.checkpoints)
    assert checkpoint is not None
    return checkpoint.path


def _named(learner: Learner) -> dict[str, Tensor]:
    """But for adapters, which always begin fresh."""
    named = {**dict(learner.named_parameters()), **dict(learner.named_buffers())}
    return {name: tensor for name, tensor in named.items() if not lora_maps.is_adapter(name)}


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return "names such as " + ", ".join(names[:6]) + (f" (of {len(names)})" if len(names) > 6 else "")
