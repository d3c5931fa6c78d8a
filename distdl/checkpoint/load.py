"""Opens a checkpoint, written on any layout: every byte of it is compared before it is used, here or as it is read."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from distdl.checkpoint.layout import (
    FORMAT,
    MANIFEST,
    PREPARATION,
    STATE,
    VERSION,
    Damaged,
    checkpoints,
    checksum,
    files_of,
    not_of_type,
    refuse_link,
    renamed,
    seal,
)
from distdl.checkpoint.reader import Reader, Region
from distdl.checkpoint.state import read_state
from distdl.config.family import FamilyName, family_schema
from distdl.config.marks import TRAINING_ONLY
from distdl.config.schema import Config
from distdl.data.preparation import columns_of
from distdl.errors import DataCorrupt, InputError
from distdl.families import model_config
from distdl.files import read_json
from distdl.layout.boxes import Box
from distdl.parallel.birth import put


class Checkpoint:
    """An opened checkpoint. Raises InputError for what is no checkpoint of ours, DataCorrupt for a damaged one.

    `verify`: every file is compared with its checksum now. Without, the small ones are when they are read here, and each
    part of the others when `read` takes it.
    """

    def __init__(self, path: Path, verify: bool = True) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        self.tensors: dict[str, dict[str, Any]] = self.manifest["tensors"]
        self.reader = Reader(path, self.manifest)
        self.patient = False
        """Whether `read` gives zeros for what is damaged, and notes it in `damage`: for ranks that must not fail alone."""
        self.damage: Damaged | None = None
        self.verify(contents=verify)
        self.state = read_state(path)

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def preparation(self) -> dict[str, dict[str, Any]]:
        """Column of the data set -> how its values came from the raw ones (data/preparation.py); {} in a checkpoint of an
        older version. Raises InputError for a record of a newer one."""
        if PREPARATION not in self.manifest["files"]:
            return {}
        return columns_of(read_json(self.path / PREPARATION), str(self.path / PREPARATION))

    @property
    def reading(self) -> dict[str, Any]:
        """Options that say how the raw file of the data set was written; {} where nothing was said of it."""
        if PREPARATION not in self.manifest["files"]:
            return {}
        found = (read_json(self.path / PREPARATION) or {}).get("reading", {})
        return found if isinstance(found, dict) else {}

    def verify(self, contents: bool = True) -> None:
        """Compares size and checksum of every file with the manifest; without `contents`, of those with tensors only
        whether they are named as they should be."""
        stored = {file for name in self.tensors for file in files_of(self.tensors[name])}
        for name, meta in self.manifest["files"].items():
            file = self.path / name
            if file.parent != self.path:
                raise InputError(f"{self.path / MANIFEST} names a file outside its folder: {name}")
            if name in stored and not contents:
                continue
            refuse_link(self.path, name)
            if not file.is_file():
                raise Damaged(self.path, f"is not whole: {name} is missing")
            if file.stat().st_size != meta["bytes"] or checksum(file) != meta["xxh3"]:
                raise Damaged(self.path, f"is damaged: {name} is not what was written (its checksum differs)")

        if unchecked := (stored | {STATE}) - self.manifest["files"].keys():
            raise InputError(f"{self.path / MANIFEST} names files without a checksum: {', '.join(sorted(unchecked))}")

    def regions(self, name: str) -> list[Region]:
        """Where the pieces of a tensor lie."""
        return self.reader.regions(name)

    def read(self, name: str, box: Box | None = None) -> Tensor:
        """A tensor in its full shape, or a box of it, on the CPU. Reads no more than that, rounded to blocks."""
        try:
            return self.reader.read(name, box)
        except Damaged as error:
            if not self.patient:
                raise
            self.damage = self.damage or error
            return torch.zeros(self.reader.shape(name) if box is None else box.shape)

    def load_weights(self, learner: nn.Module, averaged: bool = False) -> None:
        """Puts weights (`averaged`: their moving averages, where there are such) and buffers into a learner that no engine
        has wrapped yet. Raises InputError where they differ."""
        wanted: dict[str, Tensor] = {f"weights/{n}": p for n, p in learner.named_parameters()}
        wanted |= {f"buffers/{n}": b for n, b in learner.named_buffers()}
        have = {name for name in self.tensors if not name.startswith(("optimizer/", "averages/"))}
        problems = [f"the model has no {n}" for n in sorted(have - wanted.keys())]
        problems += [f"the checkpoint has no {n}" for n in sorted(wanted.keys() - have)]
        for name in sorted(have & wanted.keys()):
            shape = self.tensors[name]["shape"]
            if shape != list(wanted[name].shape):
                problems.append(f"{name} is {shape} in the checkpoint and {list(wanted[name].shape)} in the model")
        if problems:
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            what = f"the checkpoint {self.path} holds another model: {'; '.join(problems[:5])}{more}"
            raise InputError(what, fix="use the config that it was trained with, or train afresh with --fresh")
        for name, tensor in wanted.items():
            average = f"averages/{name.partition('/')[2]}"
            put(tensor, functools.partial(self.read, average if averaged and average in self.tensors else name))


def refuse_other_model(model: Mapping[str, Any] | None, config: Config, where: str) -> None:
    """Raises InputError where weights of `model` (None: unknown) would compute something else in the config's model.

    Names and shapes do not tell everything: twice the attention heads have weights of the same shapes.
    """
    if model is None:
        return
    family = config.family
    if FamilyName(model.get("family", "")).label != family:
        raise InputError(f"{where} holds a {model.get('family')}, and the config is of a {family}")
    want = dataclasses.asdict(model_config(config.model))
    if gone := sorted(model.keys() - want.keys() - {"family"}):
        raise InputError(f"{where} holds a {family} with {', '.join(gone)}, which this one has not")
    have = dataclasses.asdict(model_config({**model, "family": config.model["family"]}))
    of_training = family_schema(config.model["family"]).marked(TRAINING_ONLY)
    other = [
        f"{key} is {have[key]!r} there and {value!r} in the config"
        for key, value in want.items()
        if have[key] != value and key not in of_training
    ]
    if other:
        fix = "use the config that it was trained with"
        raise InputError(f"{where} holds another {family}: {'; '.join(other)}", fix=fix)


def latest(
    folder: Path, verify: bool = True, damaged: Mapping[Path, str] = MappingProxyType({})
) -> tuple[Checkpoint | None, list[str]]:
    """The newest sound checkpoint of a run, and a warning for every newer one that is damaged. Without `verify`, sound as
    far as that is seen before a tensor is read; `damaged`: what has been found to be, and in what words.

    Raises DataCorrupt where there are checkpoints and none is sound.
    """
    warnings: list[str] = []
    found = checkpoints(folder)
    for _, path in reversed(found):
        if path in damaged:
            warnings.append(damaged[path])
            continue
        try:
            return Checkpoint(path, verify), warnings
        except (DataCorrupt, InputError) as error:
            warnings.append(str(error))
    if found:
        raise DataCorrupt("\n".join([*warnings, "no sound checkpoint is left in this run; start afresh with --fresh"]))
    return None, warnings


def latest_sound(folder: Path) -> Checkpoint | None:
    """The newest sound checkpoint of a run that nobody trains here. Which newer ones are not is said on stderr."""
    checkpoint, warnings = latest(folder)
    if checkpoint and warnings:
        print("\n".join(f"warning: {text}" for text in warnings), file=sys.stderr)
        print(f"    {checkpoint.path.name} is taken, the newest that is sound", file=sys.stderr)
    return checkpoint


def read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    for name in (MANIFEST, STATE, PREPARATION):
        refuse_link(path, name)
    if not file.is_file():
        what = f"{path} is not a checkpoint of distdl: it has no {MANIFEST}" if path.exists() else f"there is no {path}"
        raise InputError(what, fix="give a folder such as runs/NAME/checkpoints/step_00000100")
    try:
        manifest = read_json(file) or {}
    except DataCorrupt:
        manifest = {}
    if "format" not in manifest:
        raise InputError(f"{file} is not a manifest of distdl", fix="give a folder that distdl wrote")
    if manifest["format"] != FORMAT:
        raise InputError(f"{file} is of the format {manifest['format']!r}, not {FORMAT!r}")
    if missing := _FIELDS.keys() - manifest.keys():
        raise Damaged(path, f"is damaged: {MANIFEST} lacks {', '.join(sorted(missing))}")
    if wrong := _wrong_types(manifest):
        raise Damaged(path, f"is damaged: in {MANIFEST}, {wrong}")
    if manifest["version"] > VERSION:
        what = f"{file} has version {manifest['version']}, and this distdl reads up to {VERSION}"
        raise InputError(what, fix="upgrade distdl")
    if manifest.get("xxh3") != seal(manifest):
        raise Damaged(path, f"is damaged: {MANIFEST} is not what was written (its checksum differs)")
    if words := renamed(path, manifest["step"]):
        raise DataCorrupt(f"{words}\n    fix: give it its name back")
    return manifest


_FIELDS: dict[str, type] = {"version": int, "step": int, "files": dict, "tensors": dict}
_OF_FILE: dict[str, type] = {"bytes": int, "xxh3": str}
_OF_TENSOR: dict[str, type] = {"file": str, "shape": list, "dtype": str}
_IN_PIECES: dict[str, type] = {"pieces": dict, "shape": list, "dtype": str}


def _wrong_types(manifest: Mapping[str, Any]) -> str:
    """What in a manifest is not of its type, or ''. A seal says that nobody changed it, not that we wrote it."""
    if wrong := not_of_type(manifest, _FIELDS):
        return wrong
    if manifest["version"] > 1 and (type(manifest.get("block")) is not int or manifest["block"] < 1):
        return f"block is {manifest.get('block')!r}, not a number of bytes"
    for name, entry in manifest["files"].items():
        if text := not_of_type(entry, _OF_FILE) or not_of_type(entry, {"blocks": str} if "blocks" in entry else {}):
            return f"files: {name}: {text}"
    for name, entry in manifest["tensors"].items():
        in_pieces = isinstance(entry, dict) and "pieces" in entry
        if text := not_of_type(entry, _IN_PIECES if in_pieces else _OF_TENSOR):
            return f"tensors: {name}: {text}"
        for file, boxes in entry["pieces"].items() if in_pieces else ():
            if not isinstance(boxes, list) or not all(isinstance(box, str) for box in boxes):
                return f"tensors: {name}: pieces: {file} has no list of texts"
    return ""
