"""What all methods look at: the model as a function, the rows, and the words for what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distdl.analyse.attribution import baseline_of
from distdl.analyse.parts import Parts, parts_of
from distdl.analyse.probe import Inputs, Probe
from distdl.analyse.rows import Row, Sample
from distdl.model.model import Model

PICTURES = 8
"""Rows that are drawn."""


@dataclass(frozen=True)
class Opened:
    """Rows of one shape as the function's arguments."""

    place: slice
    inputs: Inputs
    parts: Parts
    baseline: tuple[Tensor, ...]


@dataclass
class Look:
    """Everything that a method needs."""

    model: Model
    probe: Probe
    sample: Sample
    files: Sequence[str] = ()
    """What was given; (): the run's own held-out split."""
    seed: int = 0
    notes: list[str] = field(default_factory=list)

    @cached_property
    def opened(self) -> list[Opened]:
        """All rows, in their order."""
        size = 1 if self.probe.tokens else self.model.batch
        mean = None if self.probe.tokens else self._mean()
        found = []
        for place, columns in self.sample.batches(size):
            with torch.no_grad():
                inputs = self.probe.inputs(columns)
            words = [self.token(i) for i in inputs.place.ids] if inputs.place else ()
            parts = parts_of(self.probe, inputs, self.record, words)
            found.append(Opened(place, inputs, parts, baseline_of(self.probe, inputs, mean)))
        return found

    def _mean(self) -> tuple[Tensor, ...]:
        """Of each column over the rows, and over time where it has some."""
        sums: dict[str, Any] = {}
        for row in self.sample.rows:
            for name in self.probe.names:
                values = np.asarray(row.columns[name], np.float64) / (255 if name in self.probe.bytes_of else 1)
                sums[name] = sums.get(name, 0.0) + (values.mean(0, keepdims=True) if values.ndim == 2 else values)
        return tuple(
            torch.from_numpy(np.asarray(sums[n] / len(self.sample.rows))).float()[None] for n in self.probe.names
        )

    @property
    def record(self) -> Any:
        return self.model.ways.record

    @property
    def rows(self) -> list[Row]:
        return self.sample.rows

    @cached_property
    def truth(self) -> np.ndarray | None:
        """(n,) classes, or numbers on the scale of the data set; None: it is not known."""
        found = self.sample.truth(self.probe.subject.truth)
        return found if found is not None and found.ndim == 1 else None

    @cached_property
    def things(self) -> np.ndarray:
        """(n,) which class, token or number is explained of each row."""
        return np.concatenate([one.inputs.thing.cpu().numpy() for one in self.opened])

    @cached_property
    def answers(self) -> np.ndarray:
        """(n,) the numbers that are explained."""
        with torch.no_grad():
            found = [self.probe.of(o.inputs)(*o.inputs.numbers, *o.inputs.more).cpu().numpy() for o in self.opened]
        return np.concatenate(found).astype(np.float64)

    # -- words -------------------------------------------------------------------------------------------------------------

    def token(self, number: int) -> str:
        """A token as text."""
        tokenizer = self.model.ways.tokenizer
        return tokenizer.decode([number]) if tokenizer is not None else str(number)

    def thing(self, number: int) -> str:
        """What is explained: the name of a class, a token, the column of a number."""
        subject = self.probe.subject
        known = self.record.get(subject.of, {}).get("classes")
        if subject.form == "number":
            return str(self.record.get(subject.of, {}).get("name", subject.name))
        if subject.of == "tokens" and not known:
            return self.token(number)
        return str(known[number]) if known and 0 <= number < len(known) else str(number)

    def true(self, row: int) -> str:
        """What is true of a row, in words; '': it is not known."""
        if self.truth is None:
            return ""
        if self.probe.subject.value:
            return f"{float(self.in_units(self.truth[row : row + 1])[0]):.6g}"
        return self.thing(int(self.truth[row])) if self.truth[row] >= 0 else ""

    def in_units(self, values: np.ndarray) -> np.ndarray:
        """Numbers of the column `y` as the file had them."""
        units: np.ndarray = self.model.learner.in_file_units(torch.from_numpy(np.asarray(values))).numpy()
        return units

    def picture(self, row: int) -> np.ndarray | None:
        """(C, H, W) of a row that is a picture, from 0 to 1 or as its numbers are; None: it is none."""
        name = self.probe.names[0] if self.probe.names else ""
        value = self.rows[row].columns.get(name)
        if value is None or value.ndim != 3:
            return None
        return np.asarray(value / 255 if value.dtype == np.uint8 else value, np.float64)
