"""What one method found: tables with the numbers, pictures, and words, or why it does not apply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Value = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Numbers that stand in the report and in a CSV file."""

    name: str
    """Of the file."""
    title: str
    heads: tuple[str, ...]
    rows: list[tuple[Value, ...]]
    shown: int = 100
    """Rows that the report has; the file has all."""


@dataclass(frozen=True)
class Picture:
    caption: str
    png: bytes


@dataclass
class Section:
    """Of one method."""

    refused: str = ""
    """Why it does not apply; '': it does."""
    sentences: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    texts: list[Marked] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    """For a program: a few, by name."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """Maps and curves that are too large for a table."""


@dataclass(frozen=True)
class Marked:
    """A text whose tokens are marked by how much each speaks for the answer."""

    title: str
    words: Sequence[str]
    weights: Sequence[float]
