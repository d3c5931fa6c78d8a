"""Rows of a data set that is prepared already: any family can be asked about one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from distdl.columns import Column
from distdl.data.asking.question import Question
from distdl.data.fit import read_as
from distdl.data.manifest import read_manifest
from distdl.data.read import Dataset
from distdl.errors import InputError, did_you_mean

TOGETHER = 1024


def is_data_set(path: str) -> bool:
    """Whether a folder is one of distdl's."""
    return (Path(path) / "manifest.json").is_file()


def of_data_set(path: str, split: str, asked: Mapping[str, Column]) -> Iterator[Question]:
    """The rows of a split, in their order. InputError: it lacks a column that the model reads."""
    manifest = read_manifest(path)
    if missing := [name for name in asked if name not in manifest.columns]:
        what = f"the data set {path} has no column '{missing[0]}', which the model reads"
        raise InputError(what, allowed=", ".join(manifest.columns), fix=did_you_mean(missing[0], manifest.columns))
    types = {name: read_as(column, manifest.columns[name].dtype) for name, column in asked.items()}
    data = Dataset(path, split, read_as=types)
    for first in range(0, data.rows, TOGETHER):
        numbers = np.arange(first, min(first + TOGETHER, data.rows))
        rows = data.gather(numbers, list(asked))
        yield Question({"row": numbers.tolist()}, rows, np.ones(len(numbers), bool))
