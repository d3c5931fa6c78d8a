"""What a checkpoint holds, without its tensors; and whether everything it should hold is there and sound."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from distdl.checkpoint.layout import MANIFEST, STATE, checkpoints, checksum, files_of
from distdl.checkpoint.load import read_manifest
from distdl.checkpoint.reader import Reader, Region
from distdl.checkpoint.state import read_state
from distdl.checkpoint.stream import Lazy, open_safetensors
from distdl.errors import DataCorrupt
from distdl.layout.boxes import Box
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
    files, tensors, reader = manifest["files"], manifest["tensors"], Reader(path, manifest)
    wrong = {name: text for name in sorted(files) if (text := _file_problem(path, name, files[name]))}
    needed = {STATE} | {file for meta in tensors.values() for file in files_of(meta)}
    found = list(wrong.values()) + [f"{name} has no checksum" for name in sorted(needed - files.keys())]
    sound = files.keys() - wrong.keys()
    have = {name: open_safetensors(path / name)[0] for name in sorted(needed & sound - {STATE})}
    for name in tensors:
        try:
            regions = reader.regions(name)
        except DataCorrupt as error:
            found.append(str(error))
            continue
        there = [(region, have[region.file].get(region.entry)) for region in regions if region.file in sound]
        found += [f"{region.file}: {region.entry} is missing" for region, part in there if part is None]
        found += _tensor_problems(reader, name, [(region, part) for region, part in there if part is not None])
        if twice := _twice([region.box for region in regions]):
            found.append(f"{name} has {twice} in two pieces")
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


def _tensor_problems(reader: Reader, name: str, pieces: list[tuple[Region, Lazy]]) -> Iterator[str]:
    bad = total = 0
    for region, part in pieces:
        dtype, said = str(part.dtype).removeprefix("torch."), str(reader.dtype(name)).removeprefix("torch.")
        if (part.shape, dtype) != (region.box.shape, said):
            what = f"is {dtype} {list(part.shape)}, and the manifest says {said} {list(region.box.shape)}"
            yield f"{region.file}: {region.entry} {what}"
            continue
        for block in part.read().flatten().split(_BLOCK):
            bad += block.numel() - int(torch.isfinite(block).sum())
        total += region.box.size
    if bad:
        files = ", ".join(sorted({region.file for region, _ in pieces}))
        yield f"{files}: {name} has {bad:,} of {total:,} numbers that are not finite"


def _twice(boxes: list[Box]) -> Box | None:
    """What lies in two of these."""
    boxes = sorted(boxes)
    for index, box in enumerate(boxes):
        for other in boxes[index + 1 :]:
            if other.offset[:1] >= (box.offset[0] + box.shape[0],):
                break  # all that follow begin behind its last row
            if (both := box.common(other)) is not None:
                return both
    return None


def _incomplete(names: set[str]) -> list[str]:
    """Weights that have some of the optimizer's tensors and not all, and tensors of no weight."""
    weights = {name.removeprefix("weights/") for name in names if name.startswith("weights/")}
    state: dict[str, set[str]] = {}  # weight -> keys
    for name in names:
        if name.startswith("optimizer/"):
            _, key, weight = name.split("/", 2)
            state.setdefault(weight, set()).add(key)
    found = [f"optimizer/{min(state[name])}/{name} belongs to no weight" for name in sorted(state.keys() - weights)]
    for name in sorted(state.keys() & weights):
        # An optimizer may keep other things of a matrix than of a vector: those that go together, wherever one of them is.
        together = set().union(*(keys for keys in state.values() if keys & state[name]))
        found += [f"optimizer/{key}/{name} is missing" for key in sorted(together - state[name])]
    return found + ([] if weights else ["it holds no weights"])
