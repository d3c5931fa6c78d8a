"""A trained family as a function that can be differentiated: numbers that it reads -> the one number of its answer that is
explained. In evaluation mode, with the same noise for each row, so that a row's answer depends on nothing but the row."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distdl.analyse.subject import Subject, subject_of
from distdl.analyse.vectors import Place, place_of
from distdl.columns import Column
from distdl.errors import InputError
from distdl.layout import noise
from distdl.learner import Learner
from distdl.learner.answers import Answer

BYTE = 255.0
READINGS = ((1.0, 0.0), (2.0, -1.0))
"""How families read bytes that are given as numbers from 0 to 1: as these, or as numbers from -1 to 1."""
ALIKE = 1e-3
"""By how much, relative to the largest, an answer to numbers may differ from the one to the bytes or whole numbers
they were."""


@dataclass(frozen=True)
class Inputs:
    """Rows as the function's arguments."""

    numbers: tuple[Tensor, ...]
    """What is differentiated, in the units of the input: bytes as numbers from 0 to 1; of tokens their vectors."""
    fixed: tuple[Tensor, ...]
    """Other columns, as they are."""
    thing: Tensor
    """(B,) which class, token or number is explained: what the model tells."""
    place: Place | None = None

    @property
    def more(self) -> tuple[Tensor, ...]:
        return (*self.fixed, self.thing)


@dataclass
class Probe:
    """How a family's input is taken for numbers, found by trying it on some rows."""

    learner: Learner
    asked: Mapping[str, Column]
    tells: Mapping[str, Answer]
    subject: Subject
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    names: tuple[str, ...] = ()
    """Columns that are differentiated; of tokens the one whose vectors are."""
    fixed: tuple[str, ...] = ()
    readings: dict[str, tuple[float, float]] = field(default_factory=dict)
    bytes_of: frozenset[str] = frozenset()
    """Columns that are stored as bytes."""
    tokens: bool = False
    no_gradient: str = ""
    """Why its answer has no slope; '': it has one."""

    @staticmethod
    def on(
        learner: Learner,
        asked: Mapping[str, Column],
        tells: Mapping[str, Answer],
        rows: Mapping[str, Any],
        family: str,
        device: str | torch.device = "cpu",
    ) -> Probe:
        """Tries on some rows. InputError: nothing of its answer can be explained, or its input cannot be changed a
        little."""
        subject = subject_of(tells, asked, learner.any_length, family)
        probe = Probe(learner.eval(), asked, tells, subject, torch.device(device))
        raw = probe.tensors(rows)
        numbers = [n for n, c in asked.items() if c.kind in ("real", "sample", "any")]
        whole = [n for n, c in asked.items() if c.kind == "whole" and raw[n].ndim > 1]
        if numbers:
            probe._take_numbers(numbers, raw)
        elif whole and place_of(learner, _first(raw), whole):
            probe.tokens, probe.fixed = True, tuple(raw)
        else:
            probe._take_numbers(whole, raw)
        probe.no_gradient = probe._slope({name: array[:8] for name, array in rows.items()})
        if probe.no_gradient and not (numbers or probe.tokens):
            raise probe._numbers_of_things()
        return probe

    def tensors(self, rows: Mapping[str, Any]) -> dict[str, Tensor]:
        """The columns that are read, and how long rows are where they are filled up."""
        names = [*self.asked, *(n for n in ("length", "documents") if n in rows and n not in self.asked)]
        return {
            name: torch.from_numpy(np.ascontiguousarray(rows[name])).to(self.device) for name in names if name in rows
        }

    def inputs(self, rows: Mapping[str, Any]) -> Inputs:
        """Rows of one shape as arguments. Tokens: of one row."""
        raw = self.tensors(rows)
        told = self.subject.told(self.answer(raw))
        if not self.tokens:
            return Inputs(
                tuple(self._numbers(name, raw[name]) for name in self.names), tuple(raw[n] for n in self.fixed), told
            )
        if len(told) != 1:
            raise ValueError("vectors of tokens are those of one row")
        raw = _first(raw)
        place = place_of(self.learner, raw, [name for name, column in self.asked.items() if column.kind == "whole"])
        if place is None:
            raise InputError("the tokens of a row become no vectors that can be seen from outside")
        return Inputs((place.vectors,), tuple(raw[name] for name in self.fixed), told, place)

    def row(self, columns: Mapping[str, Any]) -> dict[str, Tensor]:
        """The columns of one row as the model reads them, without what fills its tokens up."""
        return _first(self.tensors({name: column[None] for name, column in columns.items()}))

    def answer(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the family says, with gradients where they are wanted."""
        rows = next(iter(batch.values()))
        with noise.apart(0, torch.zeros(len(rows), dtype=torch.long, device=self.device)):
            return self.learner.answer(batch)

    def said(self, inputs: Inputs, *columns: Tensor) -> dict[str, Tensor]:
        """The answer to numbers that stand in the place of the inputs'."""
        numbers, fixed = columns[: len(inputs.numbers)], columns[len(inputs.numbers) :]
        batch = dict(zip(self.fixed, fixed))
        if inputs.place is not None:
            with inputs.place.replaced(self.learner, numbers[0]):
                return self.answer(batch)
        for name, values in zip(self.names, numbers):
            times, plus = self.readings[name]
            batch[name] = values * times + plus
        return self.answer(batch)

    def of(self, inputs: Inputs) -> Any:
        """(*numbers, *fixed, thing) -> (B,): the function that is explained. Every number has a slope, if one of zero."""

        def number(*columns: Tensor) -> Tensor:
            found = self._number(inputs, *columns)
            return found + 0.0 * sum(n.flatten(1).sum(1) for n in columns[: len(inputs.numbers)])

        return number

    def _number(self, inputs: Inputs, *columns: Tensor) -> Tensor:
        return self.subject.number(self.said(inputs, *columns[:-1]), columns[-1])

    # -- what its input is -------------------------------------------------------------------------------------------------

    def _numbers(self, name: str, column: Tensor) -> Tensor:
        return column.float() / BYTE if name in self.bytes_of else column.float()

    def _take_numbers(self, names: Sequence[str], raw: Mapping[str, Tensor]) -> None:
        """Columns as numbers, read in whichever way gives the same answer as they do as they are."""
        self.names = tuple(names)
        self.fixed = tuple(name for name in raw if name not in names)
        self.bytes_of = frozenset(name for name in names if raw[name].dtype == torch.uint8)
        with torch.no_grad():
            true = self.subject.numbers(self.answer(raw))
        apart: dict[tuple[float, float], float] = {}
        for reading in READINGS if self.bytes_of else READINGS[:1]:
            readings = {name: reading if name in self.bytes_of else READINGS[0] for name in names}
            with contextlib.suppress(RuntimeError, TypeError, IndexError, KeyError), torch.no_grad():
                read = {n: self._numbers(n, raw[n]) * times + plus for n, (times, plus) in readings.items()}
                found = self.subject.numbers(self.answer({**raw, **read}))
                apart[reading] = float((found - true).abs().max())
        best = min(apart, key=lambda reading: apart[reading]) if names and apart else None
        if best is not None and apart[best] <= ALIKE * float(true.abs().max()):
            self.readings = {name: best if name in self.bytes_of else READINGS[0] for name in names}
            return
        raise self._numbers_of_things()

    def _numbers_of_things(self) -> InputError:
        columns = ", ".join(self.asked)
        why = self.learner.no_slope or "they are numbers of things"
        what = f"the input of this family ({columns}) cannot be changed a little: {why}"
        return InputError(what, allowed="numbers, pictures, sounds, series; tokens that become vectors in an embedding")

    def _slope(self, rows: Mapping[str, Any]) -> str:
        """Why the answer has no slope along the input."""
        inputs = self.inputs({name: column[:1] for name, column in rows.items()} if self.tokens else rows)
        with slopes():
            numbers = tuple(n.clone().requires_grad_() for n in inputs.numbers)
            number = self._number(inputs, *numbers, *inputs.more)
            found = torch.autograd.grad(number.sum(), numbers, allow_unused=True) if number.requires_grad else ()
        reached = [slope for slope in found if slope is not None]
        if any(bool(slope.abs().max() > 0) for slope in reached):
            return ""
        if self.learner.no_slope:
            return self.learner.no_slope
        if not reached:
            return "no gradient reaches its input: what lies between is drawn, chosen, or computed without one"
        return "its gradient is zero: its units are all or none"


def _first(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first row, without what fills its tokens up behind their length."""
    row = {name: column[:1] for name, column in raw.items()}
    if "length" not in row:
        return row
    most = max(1, int(row["length"][0]))
    return {name: column[:, :most] if column.ndim == 2 else column for name, column in row.items()}


@contextlib.contextmanager
def slopes() -> Iterator[None]:
    """With gradients; the recurrent kernels of a GPU have none in evaluation mode, and others are taken."""
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        yield
