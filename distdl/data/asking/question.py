"""Rows that are asked about: what all readers of them give, and how one that cannot be read is set aside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from distdl.data.raw import Rows
from distdl.errors import InputError

STDIN = "stdin"
"""What standard input is called."""


@dataclass(frozen=True)
class Bad:
    """A row that cannot be read."""

    where: str
    why: str
    row: int = -1
    """Its number in a table that has still to say where it is."""


@dataclass(frozen=True)
class Question:
    """Some rows, in their order. What cannot be read keeps its place among them."""

    about: dict[str, list[Any]]
    """Columns that say which rows these are, n values each: a number, a file, what is to be kept of a table."""
    rows: Rows
    """Columns that the model reads, of the rows that could be read, in order."""
    real: np.ndarray
    """(n,) bool: which of the rows those are."""
    bad: list[Bad] = field(default_factory=list)
    """Why the others could not be."""
    notes: dict[str, int] = field(default_factory=dict)
    """What else a person should know -> how often it was so."""


def as_it_is(question: Question) -> Question:
    """For what needs no finish."""
    return question


@dataclass(frozen=True)
class Asking:
    """What is asked about, on its way to becoming questions. Reading goes forward in one process; what it gives can be made
    into questions by any, and finished by the one that reads."""

    read: Callable[[Any], Iterable[Question]]
    """Makes questions of a portion. It goes to other processes."""
    portions: Iterable[tuple[int, Any]]
    """(rows, raw values or where they are) of some rows on end, and so on to the end. What they are hangs on what is asked
    about alone, never on who answers."""
    finish: Callable[[Question], Question] = as_it_is
    """What only who reads can add to a question: where a row is."""
    total: int | None = None
    """Rows of all portions, where that is known before they are read."""

    def __iter__(self) -> Iterator[Question]:
        for _, portion in self.portions:
            yield from map(self.finish, self.read(portion))


def called(asking: Asking, path: str, name: str) -> Asking:
    """The same, whose bad rows are told to be in a file of another name than the one that it lies in for a while."""

    def finish(question: Question) -> Question:
        found = asking.finish(question)
        return replace(found, bad=[replace(bad, where=bad.where.replace(path, name)) for bad in found.bad])

    return replace(asking, finish=finish)


def why(error: InputError) -> Bad:
    """A row's own error."""
    problem = error.problems[0]
    more = f" (allowed: {problem.allowed})" if problem.allowed else ""
    return Bad(problem.where or "", f"{problem.what}{more}")
