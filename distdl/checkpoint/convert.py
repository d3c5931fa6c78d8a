"""Turns weights of one format into another, one tensor in memory at a time.

    distdl        a checkpoint folder of ours, or a run's folder: its latest sound one
    deepspeed     a folder of DeepSpeed's save_checkpoint, ZeRO 0-3, or a universal one
    safetensors   one file of weights and buffers under the model's names
    huggingface   a model of transformers that a family of ours equals (dialects/), or is (the family huggingface):
                  config.json and model.safetensors

A source becomes named tensors that are read when they are written; a target takes these. A target is published by one
rename: it is whole or it is not there.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distdl.checkpoint import huggingface
from distdl.checkpoint.adapters import merged
from distdl.checkpoint.deepspeed_folder import is_deepspeed, read_deepspeed, write_deepspeed
from distdl.checkpoint.layout import (
    FORMAT,
    MANIFEST,
    PREPARATION,
    STATE,
    VERSION,
    checksum,
    seal,
    step_folder,
)
from distdl.checkpoint.load import Checkpoint, latest_sound, refuse_other_model
from distdl.checkpoint.state import RunState
from distdl.checkpoint.stream import BLOCK, Lazy, open_safetensors, write_safetensors
from distdl.config.family import FamilyName, portable
from distdl.config.schema import Config
from distdl.engine.optimizers import make_optimizer
from distdl.errors import InputError, TrainingFailed
from distdl.families import build
from distdl.families.huggingface.hub import COMPANIONS
from distdl.files import publish, read_json, sync_folder, write_json

TARGETS = ("distdl", "safetensors", "huggingface", "deepspeed")
_TENSORS = "tensors-00000-00000.safetensors"


@dataclass
class Source:
    """What is converted. Names as in a checkpoint of ours: weights/NAME, averages/NAME, buffers/NAME,
    optimizer/KEY/NAME."""

    kind: str
    """For people: `DeepSpeed folder (ZeRO-2)`."""
    tensors: dict[str, Lazy] = field(default_factory=dict)
    step: int = 0
    model: Mapping[str, Any] | None = None
    """The `model` section, where the source has one."""
    state: RunState | None = None
    """state.json, of a checkpoint of ours."""
    preparation: Mapping[str, Any] | None = None
    """preparation.json, of a checkpoint of ours that has it."""

    def of(self, kind: str) -> dict[str, Lazy]:
        """NAME -> tensor of `weights`, `buffers` or `optimizer` (KEY/NAME)."""
        return {n.removeprefix(f"{kind}/"): t for n, t in self.tensors.items() if n.startswith(f"{kind}/")}


@dataclass
class Wish:
    """What is asked of a conversion."""

    to: str
    config: Config | None = None
    """Gives the model that names and shapes are checked against."""
    data_state: Callable[[Config, int], dict[str, Any]] | None = None
    """The data's position in a run of the config after that many steps, for a checkpoint that a run starts from."""
    weights_only: bool = False
    half: bool = False
    """Weights and buffers of single precision in half the bytes, for a checkpoint of ours that is only asked."""
    force: bool = False


def convert(source_path: Path, target: Path, wish: Wish) -> Source:
    """Writes `target`; returns what went into it. Raises InputError, DataCorrupt, or TrainingFailed for a full disk."""
    source = open_source(source_path)
    if wish.weights_only or wish.to != "distdl":
        source.tensors = {n: t for n, t in source.tensors.items() if not n.startswith("optimizer/")}
        averages = {f"weights/{name}": tensor for name, tensor in source.of("averages").items()}
        source.tensors = {n: t for n, t in source.tensors.items() if not n.startswith("averages/")} | averages
        source.state = None
    if wish.to == "distdl" and source.state is None and not source.of("optimizer"):
        source.step = 0  # a run that starts from these weights
    if wish.config is not None:
        refuse_other_model(source.model, wish.config, str(source_path))
        source.model = wish.config.model
        _fit(source, source_path, wish.config)
    _refuse_nested(source_path, target)
    write = {"distdl": _distdl, "safetensors": _safetensors, "huggingface": _huggingface, "deepspeed": _deepspeed}[
        wish.to
    ]
    with _published(target, wish.force) as draft:
        write(source, target, draft, wish)
    return source


# -- sources -----------------------------------------------------------------------------------------------------------


def open_source(path: Path) -> Source:
    """Finds out the format by what is there, and opens it. Raises InputError for none of them, DataCorrupt for damage."""
    if path.is_file() and path.suffix == ".safetensors":
        tensors, _ = open_safetensors(path)
        return _open_huggingface(path) if huggingface.is_known(tensors) else _open_safetensors(path, tensors)
    if (path / MANIFEST).is_file() or (path / "checkpoints").is_dir():
        return _open_distdl(path)
    if path.is_dir() and is_deepspeed(path):
        found = read_deepspeed(path)
        kinds = {"weights": found.weights, "buffers": found.buffers, "optimizer": found.optimizer}
        tensors = {f"{kind}/{name}": tensor for kind, part in kinds.items() for name, tensor in part.items()}
        return Source(f"DeepSpeed folder ({found.stage})", tensors, found.step)
    if any((path / name).is_file() for name in (huggingface.CONFIG, huggingface.WEIGHTS, huggingface.INDEX)):
        return _open_huggingface(path)
    allowed = (
        "a checkpoint of distdl or a run's folder, a checkpoint folder of DeepSpeed, "
        "a .safetensors file, a Hugging Face folder of GPT-2, Llama, Mistral, Qwen, BERT, ViT or Mamba"
    )
    raise InputError(
        f"{path} is of no format that is known" if path.exists() else f"there is no {path}", allowed=allowed
    )


def _open_distdl(path: Path) -> Source:
    if (path / MANIFEST).is_file():
        checkpoint: Checkpoint | None = Checkpoint(path, verify=False)  # whose bytes are compared as they are read
    else:
        checkpoint = latest_sound(path / "checkpoints")
    if checkpoint is None:
        raise InputError(f"the run in {path} has no checkpoint yet", fix="train it first")
    reader = checkpoint.reader
    tensors = {name: Lazy(reader.shape(name), reader.dtype(name), partial(reader.read, name)) for name in reader.names}
    model, state = checkpoint.manifest.get("model"), checkpoint.state
    preparation = read_json(checkpoint.path / PREPARATION) if PREPARATION in checkpoint.manifest["files"] else None
    return Source("checkpoint of distdl", tensors, checkpoint.step, model, state, preparation)


def _open_safetensors(path: Path, tensors: Mapping[str, Lazy]) -> Source:
    return Source(".safetensors file", {f"weights/{name}": tensor for name, tensor in tensors.items()})


def _open_huggingface(path: Path) -> Source:
    model, tensors = huggingface.from_huggingface(path)
    return Source("Hugging Face model", {f"weights/{name}": tensor for name, tensor in tensors.items()}, 0, model)


def _fit(source: Source, path: Path, config: Config) -> None:
    """Puts every tensor where the config's model has it. Raises InputError where names or shapes differ."""
    with torch.device("meta"):
        learner = build(config.model)
    wanted = {f"weights/{n}": tuple(p.shape) for n, p in learner.named_parameters()}
    wanted |= {f"buffers/{n}": tuple(b.shape) for n, b in learner.named_buffers()}
    found = {}
    for kind in ("weights", "buffers"):
        for name, tensor in source.of(kind).items():
            other = f"buffers/{name}" if f"buffers/{name}" in wanted else f"weights/{name}"
            found[other] = tensor
    problems = [f"the model has no {n}" for n in sorted(found.keys() - wanted.keys())]
    problems += [f"{path} has no {n}" for n in sorted(wanted.keys() - found.keys())]
    problems += [
        f"{n} is {list(found[n].shape)} in {path} and {list(wanted[n])} in the model"
        for n in sorted(found.keys() & wanted.keys())
        if found[n].shape != wanted[n]
    ]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise InputError(f"{path} holds another model than the config: {'; '.join(problems[:5])}{more}")
    kept = {f"{kind}/{n}": t for kind in ("averages", "optimizer") for n, t in source.of(kind).items()}
    source.tensors = found | kept


# -- targets -----------------------------------------------------------------------------------------------------------


def _distdl(source: Source, target: Path, draft: Path, wish: Wish) -> None:
    if re.fullmatch(r"step_\d+", target.name) and target.name != step_folder(source.step):
        fix = f"name it {step_folder(source.step)}, or start at step 0 with --weights-only"
        raise InputError(f"{target} is not the name of a checkpoint of step {source.step}", fix=fix)
    if source.state is None or wish.config:
        if wish.config is None or wish.data_state is None:
            fix = "give the YAML of the run that it starts with --config"
            raise InputError("a checkpoint of distdl from other weights needs a config to check them against", fix=fix)
        source.state = source.state or _first_state(source, wish.config, wish.data_state)
        _check_optimizer(source, wish.config)
    tensors = {n: t if n.startswith("buffers/") else t.to(torch.float32) for n, t in source.tensors.items()}
    if wish.half:
        tensors = {n: t.to(torch.float16) if t.dtype == torch.float32 else t for n, t in tensors.items()}
    draft.mkdir()
    sums = write_safetensors(draft / _TENSORS, tensors)
    write_json(draft / STATE, source.state.to_dict())
    if source.preparation is not None:
        write_json(draft / PREPARATION, dict(source.preparation))
    others = [path for path in sorted(draft.iterdir()) if path.name != _TENSORS]
    sizes = {
        name: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for name, t in tensors.items()
    }
    files = {path.name: {"bytes": path.stat().st_size, "xxh3": checksum(path)} for path in others}
    files[_TENSORS] = {"bytes": (draft / _TENSORS).stat().st_size, **sums._asdict()}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "family": FamilyName(source.model["family"]).label if source.model else None,
        "model": portable(dict(source.model)) if source.model else None,
        "step": source.step,
        "block": BLOCK,
        "files": files,
        "tensors": {name: {"file": _TENSORS, **size} for name, size in sizes.items()},
    }
    write_json(draft / MANIFEST, {**manifest, "xxh3": seal(manifest)})


def _first_state(source: Source, config: Config, data: Callable[[Config, int], dict[str, Any]]) -> RunState:
    """The state of a run that starts from weights (step 0), or goes on where another program stopped."""
    with torch.device("meta"):
        players = build(config.model).players or ("learner",)
    taken = dict.fromkeys(players, source.step)
    return RunState(source.step, stopped=False, data=data(config, source.step), optimizer_steps=taken, hooks={})


def _check_optimizer(source: Source, config: Config) -> None:
    """Raises InputError where the config's optimizer keeps other things than the source has."""
    have = {name.split("/")[0] for name in source.of("optimizer")}
    if not have:
        return
    probe = torch.nn.Linear(1, 1)
    optimizer = make_optimizer(config, probe)
    for parameter in probe.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    keeps = {key for state in optimizer.state.values() for key in state if key != "step"}
    if have != keeps:
        what = (
            f"the optimizer {config.optimizer.name} keeps {', '.join(sorted(keeps)) or 'nothing'}, and the source has "
        )
        raise InputError(what + ", ".join(sorted(have)), fix="leave the optimizer's state behind with --weights-only")


def _safetensors(source: Source, target: Path, draft: Path, wish: Wish) -> None:
    model = {"model": json.dumps(source.model)} if source.model else {}
    write_safetensors(draft, source.of("weights") | source.of("buffers"), model)


def _huggingface(source: Source, target: Path, draft: Path, wish: Wish) -> None:
    if source.model is None:
        raise InputError("the source does not say what model it is", fix="give the YAML of its run with --config")
    draft.mkdir()
    if source.model.get("family") == huggingface.OURS:
        huggingface.write_theirs(source.model, merged(source.of("weights") | source.of("buffers")), draft)
        return
    weights = merged(source.of("weights") | source.of("buffers"))
    config, tensors = huggingface.to_huggingface(
        source.model, {n: weights[n] for n in source.of("weights") if n in weights}
    )
    write_safetensors(draft / huggingface.WEIGHTS, tensors)
    write_json(draft / huggingface.CONFIG, config)


def _deepspeed(source: Source, target: Path, draft: Path, wish: Wish) -> None:
    draft.mkdir()
    buffers = source.of("buffers")
    write_deepspeed(draft, source.of("weights") | buffers, set(buffers), source.step)


def _refuse_nested(source: Path, target: Path) -> None:
    a, b = source.resolve(), target.resolve()
    if a == b or b in a.parents or (a in b.parents and not (a / "checkpoints").is_dir()):
        raise InputError(f"the target {target} and the source {source} lie within each other", fix="write it elsewhere")


@contextlib.contextmanager
def _published(target: Path, force: bool) -> Iterator[Path]:
    """A path beside `target` to write a file or folder to, which then takes its place by a rename."""
    if target.exists() and not force:
        raise InputError(f"{target} exists", fix="give another TARGET, or replace it with --force")
    if target.is_dir() and not _is_ours_to_replace(target):
        raise InputError(
            f"{target} is a folder that holds no checkpoint; it is not replaced", fix="give another TARGET"
        )
    claimed: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        claimed = Path(tempfile.mkdtemp(prefix=f".converting-{target.name}-", dir=target.parent))  # nobody else's
        draft, old = claimed / target.name, claimed / "old"
        yield draft
        if not force and target.exists():
            raise InputError(
                f"{target} has come to exist meanwhile", fix="give another TARGET, or replace it with --force"
            )
        if target.is_dir():  # a file is replaced by the rename itself
            target.rename(old)
        try:
            if draft.is_dir():
                sync_folder(draft)
            publish(draft, target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    except OSError as error:
        what = f"{target} could not be written: {error.strerror or error}"
        raise TrainingFailed(f"{what}\n    fix: free space or rights there, then start again") from None
    finally:
        if claimed:
            shutil.rmtree(claimed, ignore_errors=True)


def _is_ours_to_replace(folder: Path) -> bool:
    """Empty, or a checkpoint and nothing else."""
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    files -= {PREPARATION}
    rest = files - {MANIFEST, STATE}
    return (
        not any(folder.iterdir())
        or (len(files - rest) == 2 and all(name.endswith(".safetensors") for name in rest))
        or files - {*COMPANIONS} == {huggingface.CONFIG, huggingface.WEIGHTS}
        or (
            len(files) == 2 and "latest" in files and any(name.endswith("mp_rank_00_model_states.pt") for name in files)
        )
    )
