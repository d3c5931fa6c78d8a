"""Rows of a data set that is prepared already: any family can be asked about one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from distdl.columns import Column
from distdl.data.asking.question import Asking, Question
from distdl.data.change.merge import first_difference
from distdl.data.fit import read_as
from distdl.data.manifest import Manifest, read_manifest
from distdl.data.preparation import record_of, undo
from distdl.data.read import Dataset
from distdl.errors import InputError, did_you_mean

TOGETHER = 1024


ESSENTIAL = {
    "features": ("features",),
    "class": ("classes",),
    "number": ("scale",),
    "picture": ("size", "channels", "range"),
}
"""Kind of a record -> what gives the numbers of the column their meaning; of other kinds, all of it."""


def refuse_other_preparation(record: Mapping[str, Mapping[str, Any]], path: str, names: Sequence[str]) -> None:
    """InputError: a column of a data set does not mean what the model has learned that it means, as it was prepared from
    its raw file by itself: other scales, other numbers for the same words or classes."""
    there = record_of(read_manifest(path))["columns"]
    for name in names:
        ours, theirs = record.get(name, {}), there.get(name, {})
        if not ours or not theirs:
            continue  # nobody knows
        keys = ESSENTIAL.get(ours["kind"], tuple(ours)) if ours["kind"] == theirs.get("kind") else ("kind",)
        if found := first_difference({k: ours.get(k) for k in keys}, {k: theirs.get(k) for k in keys}, ""):
            where, told, other = found
            what = f"the data set {path} was prepared otherwise than the one that was learned from: "
            what += f"{where} of the column '{name}' is {other!r:.80}, and was {told!r:.80}"
            fix = (
                "give the raw file, which is prepared as that one was; or prepare both together: test_path=, or a split"
            )
            raise InputError(what, fix=fix)


def is_data_set(path: str) -> bool:
    """Whether a folder is one of distdl's."""
    return (Path(path) / "manifest.json").is_file()


def of_data_set(path: str, split: str, asked: Mapping[str, Column], keep: Sequence[str] = ()) -> Asking:
    """The rows of a split, in their order. `keep`: columns of one value a row that go along (`*`: all of these), and
    columns of the table that it was made of, as that had them. InputError: it lacks a column that the model reads, or
    one of these."""
    manifest = read_manifest(path)
    if missing := [name for name in asked if name not in manifest.columns]:
        what = f"the data set {path} has no column '{missing[0]}', which the model reads"
        raise InputError(what, allowed=", ".join(manifest.columns), fix=did_you_mean(missing[0], manifest.columns))
    single = [name for name, column in manifest.columns.items() if column.shape == ()]
    known = of_table(manifest) | {name: name for name in single}
    kept = {name: known.get(name, "") for name in (single if "*" in keep else keep)}
    if wrong := [name for name in kept if name not in known]:
        what = f"the data set {path} has no column '{wrong[0]}' of one value a row, which is to be kept"
        fix = did_you_mean(wrong[0], known) or "give the file that it was made of, which has all its columns"
        raise InputError(what, allowed=", ".join(known) or "none", fix=fix)
    read = _Stored(
        path, split, kept, {name: read_as(column, manifest.columns[name].dtype) for name, column in asked.items()}
    )
    ranges = (range(i, min(i + TOGETHER, read.data.rows)) for i in range(0, read.data.rows, TOGETHER))
    return Asking(read, ((len(rows), rows) for rows in ranges), total=read.data.rows)


def of_table(manifest: Manifest) -> dict[str, str]:
    """Columns of the table that a data set was made of -> the column of the data set that still says what they had."""
    from distdl.data.table.decode import ways_back

    found: dict[str, str] = {}
    for name, record in manifest.preparation.items():
        if record.get("kind") == "features":
            found |= {way.name: name for way in ways_back(record)}
        elif record.get("kind") in ("class", "number") and "name" in record and name in manifest.columns:
            found |= {record["name"]: name} if manifest.columns[name].shape == () else {}
    return found


class _Stored:
    """Reads rows by their numbers; each process opens the data set once."""

    def __init__(self, path: str, split: str, kept: Mapping[str, str], types: Mapping[str, Any]) -> None:
        """`kept`: what goes along -> the column that says it."""
        self.path, self.split, self.kept, self.types = path, split, kept, types

    @cached_property
    def data(self) -> Dataset:
        return Dataset(self.path, self.split, read_as=self.types)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "data"}

    def __call__(self, numbers: range) -> Iterator[Question]:
        columns = list(dict.fromkeys([*self.types, *self.kept.values()]))
        rows = self.data.gather(np.arange(numbers.start, numbers.stop), columns)
        about = {"row": list(numbers), **{name: self._said(name, rows[of]) for name, of in self.kept.items()}}
        yield Question(about, {name: rows[name] for name in self.types}, np.ones(len(numbers), bool))

    def _said(self, name: str, values: Any) -> list[Any]:
        """A column that goes along: as it is, or as the table had it."""
        of = self.kept[name]
        if of == name:
            stored: list[Any] = np.asarray(values).tolist()
            return stored
        found = undo(self.data.manifest.preparation[of], values)
        return [row[name] for row in found] if found and isinstance(found[0], dict) else found
