"""The rows that are looked at: as many as were asked for, drawn evenly from all that there are, whatever they are
sorted by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from distdl.data.asking.data_sets import is_data_set
from distdl.data.asking.open import How, questions
from distdl.data.asking.question import Question
from distdl.data.manifest import read_manifest
from distdl.errors import InputError
from distdl.model.model import Model, Told


@dataclass(frozen=True)
class Row:
    """One row that is looked at."""

    name: str
    """Its file, its text, or its number."""
    columns: Mapping[str, np.ndarray]
    """What the model reads of it, and what is true of it where that is known."""


@dataclass
class Sample:
    """The rows that are looked at."""

    rows: list[Row] = field(default_factory=list)
    told: Told = field(default_factory=Told)
    """Of all rows that there are."""

    def truth(self, column: str) -> np.ndarray | None:
        """(n,) what is true of each row; None: of one at least it is not known."""
        if not column or any(column not in row.columns for row in self.rows):
            return None
        return np.array([row.columns[column] for row in self.rows])

    def batches(self, size: int) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        """Rows that follow each other and are of one shape, `size` at most: their place, and their columns."""
        first = 0
        for i, row in enumerate(self.rows):
            last = i + 1 == len(self.rows)
            if last or i + 1 - first == size or _shapes(self.rows[i + 1]) != _shapes(row):
                there = self.rows[first : i + 1]
                yield slice(first, i + 1), {name: np.stack([r.columns[name] for r in there]) for name in row.columns}
                first = i + 1


def _shapes(row: Row) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in row.columns.items()}


def sampled(model: Model, paths: Sequence[str], how: How, n: int, seed: int) -> Sample:
    """n rows of files or data sets, in their order, each as likely as any other (Vitter 1985, algorithm R). Rows that
    cannot be read are told of. InputError: there are none."""
    found = _drawn(model, paths, how, n, seed)
    if not found.rows and found.told.bad and how.answers:  # pictures whose folders are not called after classes
        found = _drawn(model, paths, replace(how, answers=False), n, seed)
    if not found.rows:
        bad = found.told.bad
        raise InputError(
            f"{', '.join(paths)} has no row that could be read" + (f": {bad[0].why}" if bad else ""),
            where=bad[0].where if bad else "",
            fix="give a file, a folder or a data set like the one that the model learned from",
        )
    return found


def _drawn(model: Model, paths: Sequence[str], how: How, n: int, seed: int) -> Sample:
    found, draw, number = Sample(), np.random.default_rng(seed), 0
    kept: list[tuple[int, Row]] = []
    for path in paths:
        of = replace(how, answers=how.answers and knows_truth(model, path))
        for question in questions(model.ways, path, of):
            found.told.see(question)
            for i, name in enumerate(_names(question)):
                at = number if number < n else int(draw.integers(number + 1))
                if at < n:
                    of_row = {key: np.array(column[i]) for key, column in question.rows.items()}
                    row = (
                        number,
                        Row(f"{path}: {name}" if len(paths) > 1 and name.startswith("row ") else name, of_row),
                    )
                    kept[at : at + 1] = [row]
                number += 1
    found.rows = [row for _, row in sorted(kept, key=lambda one: one[0])]
    return found


def knows_truth(model: Model, path: str) -> bool:
    """Whether a data set has all the columns that the family learns from; of a file it is seen while it is read."""
    return not is_data_set(path) or model.columns.keys() <= read_manifest(path).columns.keys()


def _names(question: Question) -> list[str]:
    """Of the rows that could be read."""
    about = question.about
    of = next((key for key in ("file", "text", "row") if key in about), None)
    named = [f"row {value}" if of == "row" else str(value) for value in about[of]] if of else []
    return [name for name, real in zip(named, question.real, strict=True) if real]
