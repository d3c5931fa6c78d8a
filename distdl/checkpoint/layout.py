"""What a checkpoint folder looks like. It knows nothing of the layout that wrote it.

    runs/NAME/checkpoints/step_00000100/
      manifest.json                      format, family, its own xxh3-64, that of every file and of each of its blocks, and
                                         which file holds what of every tensor
      state.json                         step, data position, optimizer steps, hooks; plain JSON
      preparation.json                   how the data set came from raw values (data/preparation.py); not in older ones
      tensors-00000-00000.safetensors    rank-part; tensors, or pieces of them, under their one-process names:
                                         weights/NAME (fp32), buffers/NAME, optimizer/KEY/NAME, and averages/NAME
                                         where `train.ema` keeps some

A piece is a box of its tensor: `weights/head.weight[0:3,8:16]` holds its rows 0 to 3, columns 8 to 16. Every rank writes
what it has of each tensor, and what several have is written once. In the manifest a tensor is {shape, dtype, file} where
one file has all of it, else {shape, dtype, pieces: {file: [boxes]}}; together the boxes are the tensor.

Version 1 has whole tensors only, and checksums of whole files only. It is read like any other.

No pickle: nothing in it can run. A folder is published by one rename, so a visible one is complete.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from distdl.errors import DataCorrupt
from distdl.trust import leads_out

FORMAT, VERSION = "distdl-checkpoint", 2
MANIFEST, STATE, PREPARATION = "manifest.json", "state.json", "preparation.json"
REMOVING = ".removing-"
"""Begins the name of a checkpoint that is being removed: half of one must not look like a whole one."""
_NAME = re.compile(r"^step_(\d{8,})$")


class Damaged(DataCorrupt):
    """A checkpoint is not what was written."""

    def __init__(self, folder: Path, what: str) -> None:
        super().__init__(f"the checkpoint {folder} {what}")
        self.folder = folder


def step_folder(step: int) -> str:
    """Folder name of the checkpoint after `step` optimizer steps."""
    return f"step_{step:08d}"


def entry_name(name: str, piece: str) -> str:
    """What a piece of a tensor is called in its file."""
    return f"{name}[{piece}]"


def numbers_in(piece: str) -> int:
    """How many numbers are in a box such as `0:3,8:16`."""
    ends = (part.split(":") for part in piece.split(","))
    return math.prod(int(end) - int(begin) for begin, end in ends)


def files_of(tensor: Mapping[str, Any]) -> list[str]:
    """The files that have a tensor, by what the manifest says of it."""
    return [tensor["file"]] if "file" in tensor else list(tensor["pieces"])


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every published checkpoint in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.match(path.name))]
    return sorted(found)


def renamed(path: Path, step: int) -> str:
    """What is wrong with the name of the checkpoint of `step`, in words, or ''. A copy may have any name but that of
    another step."""
    match = _NAME.match(path.name)
    if match is None or int(match[1]) == step:
        return ""
    return f"the checkpoint {path} is that of step {step:,}: its folder was renamed from {step_folder(step)}"


def refuse_link(folder: Path, name: str) -> None:
    """Raises DataCorrupt for a file of a checkpoint that is a link to somewhere outside it: whoever made it would choose
    what this user reads. The folder itself may be a link."""
    if leads_out(folder, folder / name):
        fix = "put a copy of the file in its place"
        place = (folder / name).resolve()
        raise DataCorrupt(f"{folder / name} is a link to {place}, outside the checkpoint\n    fix: {fix}")


def checksum(path: Path) -> str:
    """xxh3-64 of a file, in hexadecimal."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def seal(manifest: dict[str, Any]) -> str:
    """xxh3-64 of a manifest's content, which the manifest itself carries as `xxh3`."""
    content = {key: value for key, value in manifest.items() if key != "xxh3"}
    return xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True).encode())


def not_of_type(values: Any, fields: Mapping[str, type]) -> str:
    """The first field that is missing or of another type, in words, or ''."""
    if not isinstance(values, dict):
        return f"a {type(values).__name__} stands where a mapping should"
    for key, kind in fields.items():
        if type(values.get(key)) is not kind:
            found = type(values[key]).__name__ if key in values else "missing"
            return f"{key} is {found}, not {kind.__name__}"
    return ""
