"""What a checkpoint holds, without its tensors; and whether everything it should hold is there and sound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from distdl.checkpoint.layout import MANIFEST, STATE, checkpoints, checksum
from distdl.checkpoint.load import read_manifest
from distdl.checkpoint.state import read_state
from distdl.checkpoint.stream import Lazy, open_safetensors
from distdl.trust import leads_out

_BLOCK = 1 << 22
"""Numbers that are looked at in one go, so that a tensor of any size needs little memory."""


def found_in(path: Path) -> list[Path]:
    """The checkpoints that `path` means, oldest first: itself, or those of the run's folder `path`."""
    return [folder for _, folder in checkpoints(path / "checkpoints") or checkpoints(path)] or [path]


def facts(path: Path) -> dict[str, Any]:
    """Step, family, model, sizes, optimizer, data position and tensors. Reads the two JSON files only.

    Raises InputError for what is no checkpoint of ours, DataCorrupt for a damaged manifest or state.
    """
    manifest = read_manifest(path)
    state = read_state(path)
    tensors, files = manifest["tensors"], manifest["files"]
    return {
        "path": str(path),
        "step": manifest["step"],
        "family": manifest.get("family"),
        "model": manifest.get("model"),
        "parameters": sum(math.prod(t["shape"]) for name, t in tensors.items() if name.startswith("weights/")),
        "bytes": sum(meta["bytes"] for meta in files.values()),
        "files": len(files),
        "optimizer": sorted({name.split("/")[1] for name in tensors if name.startswith("optimizer/")}),
        "optimizer_steps": state.optimizer_steps,
        "position": state.data.get("position"),
        "primary": state.primary,
        "tensors": {name: {"shape": t["shape"], "dtype": t["dtype"]} for name, t in tensors.items()},
    }


def problems(path: Path) -> list[str]:
    """Everything that is wrong with a checkpoint: a checksum, a missing tensor, a number that is not finite.

    Raises InputError for what is no checkpoint of ours, DataCorrupt for a damaged manifest.
    """
    manifest = read_manifest(path)
    files, tensors = manifest["files"], manifest["tensors"]
    wrong = {name: text for name in sorted(files) if (text := _file_problem(path, name, files[name]))}
    needed = {STATE} | {meta["file"] for meta in tensors.values()}
    found = list(wrong.values()) + [f"{name} has no checksum" for name in sorted(needed - files.keys())]
    sound = files.keys() - wrong.keys()
    have: dict[str, Lazy] = {}
    for name in sorted(needed & sound - {STATE}):
        have |= open_safetensors(path / name)[0]
    for name, meta in tensors.items():
        if meta["file"] in sound and (text := _tensor_problem(meta, have.get(name))):
            found.append(f"{meta['file']}: {name} {text}")
    return found + _incomplete(set(tensors))


def _file_problem(path: Path, name: str, meta: Mapping[str, Any]) -> str:
    file = path / name
    if file.parent != path:
        return f"{MANIFEST} names a file outside its folder: {name}"
    if leads_out(path, file):
        return f"{name} is a link to {file.resolve()}, outside the checkpoint"
    if not file.is_file():
        return f"{name} is missing"
    if file.stat().st_size != meta["bytes"]:
        return f"{name} has {file.stat().st_size:,} bytes, and {meta['bytes']:,} were written"
    return "" if checksum(file) == meta["xxh3"] else f"{name} is not what was written (its checksum differs)"


def _tensor_problem(meta: Mapping[str, Any], tensor: Lazy | None) -> str:
    if tensor is None:
        return "is missing"
    dtype = str(tensor.dtype).removeprefix("torch.")
    if (list(tensor.shape), dtype) != (meta["shape"], meta["dtype"]):
        return f"is {dtype} {list(tensor.shape)}, and the manifest says {meta['dtype']} {meta['shape']}"
    blocks = tensor.read().flatten().split(_BLOCK)
    count = sum(block.numel() - int(torch.isfinite(block).sum()) for block in blocks)
    return f"has {count:,} of {math.prod(tensor.shape):,} numbers that are not finite" if count else ""


def _incomplete(names: set[str]) -> list[str]:
    """Weights that have some of the optimizer's tensors and not all, and tensors of no weight."""
    weights = {name.removeprefix("weights/") for name in names if name.startswith("weights/")}
    state: dict[str, set[str]] = {}  # weight -> keys
    for name in names:
        if name.startswith("optimizer/"):
            _, key, weight = name.split("/", 2)
            state.setdefault(weight, set()).add(key)
    keys = set().union(*state.values())
    found = [f"optimizer/{min(state[name])}/{name} belongs to no weight" for name in sorted(state.keys() - weights)]
    for name in sorted(state.keys() & weights):
        found += [f"optimizer/{key}/{name} is missing" for key in sorted(keys - state[name])]
    return found + ([] if weights else ["it holds no weights"])
