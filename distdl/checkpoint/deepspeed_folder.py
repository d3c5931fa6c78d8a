"""Checkpoint folders of DeepSpeed: reads ZeRO 0-3 and universal ones, writes the weights of one.

    FOLDER/latest                                               name of the newest tag
    FOLDER/TAG/mp_rank_00_model_states.pt                       weights as the model computes with them, buffers, step
    FOLDER/TAG/[bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt rank R's part of the fp32 weights and the optimizer state
    FOLDER/TAG/zero_pp_rank_R_mp_rank_00_model_states.pt        ZeRO-3: the shapes, and rank R's part of frozen weights
    FOLDER/TAG/zero/NAME/{fp32,exp_avg,...}.pt                  universal: one tensor a file

Per parameter group, ZeRO 1 and 2 lay all weights end to end and cut the whole into a part for each rank; ZeRO-3 cuts every
weight, padded to a multiple of the ranks, and each rank lays its parts end to end (deepspeed/utils/zero_to_fp32.py).

The files are pickles. They are read with `weights_only`, which runs no code: of DeepSpeed's own classes three are known,
and inert ones stand in for them.
"""

from __future__ import annotations

import math
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distdl.checkpoint.layout import refuse_link
from distdl.checkpoint.stream import Lazy, open_safetensors, whole, write_safetensors
from distdl.errors import DataCorrupt, InputError

_MODEL, _OPTIMIZER, _LATEST = "mp_rank_00_model_states.pt", "optim_states.pt", "latest"
_RANK = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_(?:model|optim)_states\.pt")


class _Inert:
    """Stands in for a class of DeepSpeed's; nothing of it is used."""

    def __init__(self, *args: Any) -> None: ...


_KNOWN: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Inert, "deepspeed.utils.tensor_fragment.fragment_address"),
    (_Inert, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Inert, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
]


@dataclass
class DeepSpeedFolder:
    """What a folder holds, under the model's names."""

    stage: str
    """`ZeRO-2`, `universal`."""
    step: int
    weights: dict[str, Lazy] = field(default_factory=dict)
    buffers: dict[str, Lazy] = field(default_factory=dict)
    optimizer: dict[str, Lazy] = field(default_factory=dict)
    """KEY/NAME -> its tensor; empty for ZeRO-0, whose file does not say which weight a state belongs to."""


def is_deepspeed(path: Path) -> bool:
    """A folder of checkpoints, or that of one tag."""
    return (path / _LATEST).is_file() or any(path.glob("*mp_rank_*_model_states.pt")) or (path / "zero").is_dir()


def read_deepspeed(path: Path) -> DeepSpeedFolder:
    """Opens a folder, or that of one tag. Raises InputError for what cannot be read, DataCorrupt for damage."""
    folder = _tag_folder(path)
    for pattern, what in {
        "*mp_rank_01_*": "cut by tensor parallelism",
        "layer_*": "cut into pipeline stages or experts",
        "expp_rank_*": "of a mixture of experts",
    }.items():
        if any(folder.glob(pattern)):
            fix = "save it from one tensor, pipeline and expert rank"
            raise InputError(f"{folder} is {what}, which cannot be converted", fix=fix)
    shards = _by_rank(folder, _OPTIMIZER)
    try:
        if (folder / "zero").is_dir():
            return _universal(folder)
        if not (folder / _MODEL).is_file():
            return _zero3(_by_rank(folder, "model_states.pt"), shards, folder)
        return _zero12(_load(folder / _MODEL), shards) if shards else _zero0(_load(folder / _MODEL))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{folder} is no checkpoint that DeepSpeed's save_checkpoint wrote ({error!r})") from None


def write_deepspeed(folder: Path, tensors: dict[str, Lazy], buffers: set[str], step: int) -> None:
    """Fills `folder` with what `load_checkpoint(load_module_only=True)` of a ZeRO 0-2 engine takes: no optimizer state."""
    tag, draft = f"global_step{step}", folder / ".draft.safetensors"
    (folder / tag).mkdir()
    write_safetensors(draft, tensors)  # torch.save wants all tensors at once: those of this file are only mapped
    mapped, _ = open_safetensors(draft)
    values: dict[str, Any] = {
        "module": OrderedDict((name, mapped[name].read()) for name in tensors),
        "buffer_names": sorted(buffers),
        "optimizer": None,
        "param_shapes": None,
        "frozen_param_shapes": None,
        "shared_params": None,
        "frozen_param_fragments": None,
        "lr_scheduler": None,
        "data_sampler": None,
        "random_ltd": None,
        "skipped_steps": 0,
        "global_steps": step,
        "global_samples": 0,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "ds_config": {},
        "ds_version": "0.19.8",
    }
    with (folder / tag / _MODEL).open("wb") as file:
        torch.save(values, file)
        file.flush()
        os.fsync(file.fileno())
    draft.unlink()
    (folder / _LATEST).write_text(tag, encoding="utf-8")


# -- the stages --------------------------------------------------------------------------------------------------------


def _zero0(model: dict[str, Any]) -> DeepSpeedFolder:
    buffers = set(model["buffer_names"])
    out = DeepSpeedFolder("ZeRO-0", model["global_steps"])
    aliases = model.get("shared_params") or {}
    for name, tensor in model["module"].items():
        if name not in aliases:
            (out.buffers if name in buffers else out.weights)[name] = whole(tensor)
    return out


def _zero12(model: dict[str, Any], files: list[Path]) -> DeepSpeedFolder:
    out = _zero0(model)  # buffers, and frozen weights: they are not in the parts
    shards = _shards(files)
    out.stage = f"ZeRO-{shards[0]['zero_stage']}"
    groups = _flat(shards, "single_partition_of_fp32_groups", "base_optimizer_state")
    paddings = shards[0].get("param_alignment_paddings") or [[0] * len(shapes) for shapes in model["param_shapes"]]
    for index, (shapes, padding) in enumerate(zip(model["param_shapes"], paddings)):
        begin = 0
        for (name, shape), pad in zip(shapes.items(), padding):
            size = math.prod(shape)
            for key, parts in groups.items():
                flat = [rank[index] for rank in parts]
                _place(out, key, name, Lazy(tuple(shape), flat[0].dtype, partial(_cut, flat, [(begin, size)], shape)))
            begin += size + pad
        have = sum(rank[index].numel() for rank in groups[""])
        align = 2 * len(files)  # what DeepSpeed pads a group to
        if not begin <= have <= align * math.ceil(begin / align):
            raise DataCorrupt(f"{files[0].parent}: group {index} needs {begin:,} numbers and its files hold {have:,}")
    return out


def _zero3(models: list[Path], files: list[Path], folder: Path) -> DeepSpeedFolder:
    if not models or len(models) != len(files):
        raise InputError(
            f"{folder} is no whole DeepSpeed checkpoint: {len(models)} model and {len(files)} optimizer files"
        )
    first, world = _load(models[0]), len(files)
    out = DeepSpeedFolder("ZeRO-3", first["global_steps"])
    out.buffers = {name: whole(first["module"][name]) for name in first["buffer_names"]}
    groups = _flat(_shards(files), "fp32_flat_groups", "optimizer_state_dict")
    shapes = {name: shape for group in first["param_shapes"] for name, shape in group.items()}
    begin = 0
    for name, shape in shapes.items():
        size = math.ceil(math.prod(shape) / world)
        for key, parts in groups.items():
            rank_size = sum(flat.numel() for flat in parts[0])
            flats = [flat for rank in parts for flat in rank]
            cuts = [(rank * rank_size + begin, size) for rank in range(world)]
            _place(out, key, name, Lazy(tuple(shape), flats[0].dtype, partial(_cut, flats, cuts, shape)))
        begin += size
    if any((have := sum(flat.numel() for flat in rank)) != begin for rank in groups[""]):
        raise DataCorrupt(f"{folder}: a rank needs {begin:,} numbers and its file holds {have:,}")
    frozen = first.get("frozen_param_shapes") or {}
    fragments = [_load(path)["frozen_param_fragments"] for path in models] if frozen else []
    for name, shape in frozen.items():
        parts_of = [rank[name].flatten() for rank in fragments]
        cuts = [(0, sum(part.numel() for part in parts_of))]
        if cuts[0][1] < math.prod(shape):
            raise DataCorrupt(f"{folder}: the frozen weight {name} is not whole")
        out.weights[name] = Lazy(tuple(shape), parts_of[0].dtype, partial(_cut, parts_of, cuts, shape))
    return out


def _universal(folder: Path) -> DeepSpeedFolder:
    model = _load(folder / _MODEL) if (folder / _MODEL).is_file() else _load(_by_rank(folder, "model_states.pt")[0])
    buffers = {name: whole(model["module"][name]) for name in model["buffer_names"]}
    out = DeepSpeedFolder("universal", model["global_steps"], buffers=buffers)
    for path in sorted((folder / "zero").rglob("*.pt")):
        name, key = path.parent.relative_to(folder / "zero").as_posix(), path.stem
        content = _load(path) if key != "step" and name != "." else None
        tensor = content["param"] if isinstance(content, dict) else content
        if isinstance(tensor, Tensor):
            _place(out, "" if key == "fp32" else key, name, whole(tensor))
    return out


def _place(out: DeepSpeedFolder, key: str, name: str, tensor: Lazy) -> None:
    if key:
        out.optimizer[f"{key}/{name}"] = tensor
    else:
        out.weights[name] = tensor


# -- their parts -------------------------------------------------------------------------------------------------------


def _shards(files: list[Path]) -> list[dict[str, Any]]:
    """The optimizer part of every rank's file."""
    shards = [_load(path)["optimizer_state_dict"] for path in files]
    count = shards[0]["partition_count"]
    world = max(count) if isinstance(count, list) else count
    if world != len(files):
        raise DataCorrupt(f"{files[0].parent} was written by {world} ranks, and has the files of {len(files)}")
    return shards


def _flat(shards: list[dict[str, Any]], weights: str, optimizer: str) -> dict[str, list[list[Tensor]]]:
    """State key ("" = the fp32 weights) -> rank -> flat tensors, cut to the weights' lengths.

    ZeRO 1 and 2 save the weights without the padding behind the last rank's, and the state with it. A state that does not
    lie like the weights is left out.
    """
    out: dict[str, list[list[Tensor]]] = {"": [shard[weights] for shard in shards]}
    states = [shard[optimizer].get("state", {}) if isinstance(shard[optimizer], dict) else {} for shard in shards]
    keys = {key for state in states for values in state.values() for key in values if key != "step"}
    for key in sorted(keys):
        ranks = []
        for state, flats in zip(states, out[""]):
            found = [state.get(index, {}).get(key) for index in range(len(flats))]
            pairs = zip(found, flats)
            fits = all(isinstance(t, Tensor) and t.ndim == 1 and t.numel() >= flat.numel() for t, flat in pairs)
            ranks.append([t[: flat.numel()] for t, flat in zip(found, flats)] if fits else None)
        if all(rank is not None for rank in ranks):
            out[key] = [rank for rank in ranks if rank is not None]
    return out


def _cut(flats: Sequence[Tensor], cuts: Sequence[tuple[int, int]], shape: Sequence[int]) -> Tensor:
    """The (begin, size) pieces of `flats` laid end to end, joined, without the padding behind `shape`."""
    pieces = []
    for begin, size in cuts:
        for flat in flats:
            low, high = max(begin, 0), min(begin + size, flat.numel())
            if low < high:
                pieces.append(flat[low:high])
            begin -= flat.numel()
    return torch.cat(pieces)[: math.prod(shape)].view(tuple(shape)) if pieces else torch.empty(tuple(shape))


def _tag_folder(path: Path) -> Path:
    latest = path / _LATEST
    if not latest.is_file():
        return path
    tag = latest.read_text(encoding="utf-8").strip()
    if tag in ("", ".", "..") or Path(tag).name != tag or not (path / tag).is_dir():
        raise InputError(f"{latest} names {tag!r}, and {path} has no such folder")
    refuse_link(path, tag)
    return path / tag


def _by_rank(folder: Path, end: str) -> list[Path]:
    """zero_pp_rank_0…, zero_pp_rank_1…, … in the order of their ranks."""
    found = {int(match[1]): path for path in folder.glob(f"*{end}") if (match := _RANK.fullmatch(path.name))}
    if sorted(found) != list(range(len(found))):
        raise DataCorrupt(f"{folder} is not whole: it has the *_{end} of the ranks {sorted(found)} only")
    return [found[rank] for rank in sorted(found)]


def _load(path: Path) -> Any:
    """A file's content, its tensors mapped. Nothing in it runs; InputError where something would."""
    refuse_link(path.parent, path.name)
    try:
        with torch.serialization.safe_globals(_KNOWN):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        stranger = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds {stranger[1]}, which" if stranger else "holds something that"
        fix = "save weights, numbers and text only; client_state must hold no objects"
        raise InputError(f"{path} {what} is no tensor and could run code: it is not opened", fix=fix) from None
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise DataCorrupt(f"{path} is not a whole file of DeepSpeed: {str(error).splitlines()[0]}") from None
