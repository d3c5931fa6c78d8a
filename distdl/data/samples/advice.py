"""Which fields of samples are learned, for `distdl init`: one picture or array of each, and its class."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from distdl.data.advice import Advice, Wish, look_advice
from distdl.data.pictures import need_pillow, read_header
from distdl.data.samples.fields import LABELS, Read
from distdl.data.samples.values import Kind, Picture, Sample, kind_of
from distdl.data.split_rules import SPELLINGS, SPLITS, TRAIN
from distdl.errors import InputError, did_you_mean

LOOKED_AT = 500
"""Samples that a guess is made from."""


def samples_advice(source: str, path: str, read: Read, wish: Wish, options: dict[str, Any]) -> Advice:
    """The field to learn from, and the one to predict. `options`: how the samples are opened.

    InputError, with the fields to choose from: several could be learned from, or none of that name is there.
    """
    samples = list(islice(read(()), LOOKED_AT))
    kinds: dict[str, Kind] = dict(_fields(samples))
    listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    for key, name in wish.options().items():
        if name not in kinds:
            raise InputError(f"{path} has no field '{name}', which --{key} names", fix=did_you_mean(name, kinds))
    answer = wish.label or wish.target or next((n for n in LABELS if n in kinds), "")
    number = bool(wish.target) or (answer in kinds and kinds[answer].what == "real")
    found = [name for name, kind in kinds.items() if kind.what == "picture" and name != answer]
    found = found or [name for name, kind in kinds.items() if kind.what == "array" and name != answer]
    if len(found) != 1:
        what = "several fields could be learned from" if found else "there is no picture and no array to learn from"
        fix = "write the config by hand: distdl data prepare " + f"{source} TARGET path={path} fields=A,B names=x,label"
        raise InputError(f"{path}: {what}", allowed=f"the fields are {listed}", fix=fix)
    picture = kinds[found[0]].what == "picture"
    chosen = {found[0]: "image" if picture else "x", **({answer: "y" if number else "label"} if answer else {})}
    options |= {"fields": list(chosen), "names": list(chosen.values())}
    left = [name for name in kinds if name not in chosen]
    why = ("a picture" if picture else "an array") + (" and what is told of it" if answer else ", and no label")
    because = {"fields": why + (f"; left out: {', '.join(left)}" if left else "")}
    if answer and not number and answer not in LABELS:
        options["label"] = answer
    if picture:
        need_pillow(source)
        headers = [
            read_header(io.BytesIO(sample.fields[found[0]].content), f"{sample.where}, {found[0]}")
            for sample in samples
            if isinstance(sample.fields.get(found[0]), Picture)
        ]
        look = look_advice(Counter(h.mode for h in headers), Counter((h.height, h.width) for h in headers))
        options |= look.options
        because |= look.because
    return Advice(options, because)


def _fields(samples: list[Sample]) -> Iterator[tuple[str, Kind]]:
    """Each field of the first sample, and each number or text that lies within one, by its path."""

    def within(name: str, value: Any) -> Iterator[tuple[str, Kind]]:
        if isinstance(value, Mapping):
            for key, part in value.items():
                yield from within(f"{name}.{key}", part)
            return
        with suppress(InputError):  # what no column can hold
            yield name, kind_of(value, name)

    for name, value in samples[0].fields.items() if samples else ():
        yield from within(name, value)


def split_folders(path: Path, name: str) -> tuple[str, str]:
    """Where the training samples lie, and those of another split ('': nowhere): of folders that are called so, each with a
    file `name`; otherwise the path itself."""
    if (path / name).is_file():
        return str(path), ""
    inner = sorted(file.parent for file in path.glob(f"*/{name}") if file.parent.name.lower() in SPELLINGS)
    train = [folder for folder in inner if SPELLINGS[folder.name.lower()] == TRAIN]
    others = sorted((folder for folder in inner if folder not in train), key=_test_first)
    return (str(train[0]), str(others[0]) if others else "") if len(train) == 1 else (str(path), "")


def _test_first(folder: Path) -> int:
    return SPLITS.index(SPLITS[SPELLINGS[folder.name.lower()]])


def folder_advice(source: str, path: str, wish: Wish, open_folder: Any) -> Advice:
    """The same of a folder of shards with an index.json, or of folders of such for each split."""
    train, test = split_folders(Path(path), "index.json")
    options = {"path": train, **({"test_path": test} if test else {})}
    return samples_advice(source, path, open_folder(train).read, wish, options)
