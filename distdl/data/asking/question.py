"""Rows that are asked about: what all readers of them give, and how one that cannot be read is set aside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distdl.data.raw import Rows
from distdl.errors import InputError


@dataclass(frozen=True)
class Bad:
    """A row that cannot be read."""

    where: str
    why: str


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


def why(error: InputError) -> Bad:
    """A row's own error."""
    problem = error.problems[0]
    more = f" (allowed: {problem.allowed})" if problem.allowed else ""
    return Bad(problem.where or "", f"{problem.what}{more}")
