"""Models to export, and rows for them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from distdl.export import check, graph
from distdl.export.rows import made_up
from distdl.learner import Learner
from tests.families.common import made
from tests.families.test_answers import lively

ROWS = 7


def asked(model: dict[str, Any], rows: int = ROWS) -> tuple[Learner, dict[str, Tensor]]:
    """A model with weights that tell rows apart, and made-up rows of the columns that it reads, 23 steps of a series."""
    learner = lively(made(model))
    columns = learner.asked(learner.config)
    return learner, {name: made_up(column, rows, steps=23) for name, column in columns.items()}


def traced(learner: Learner, rows: dict[str, Tensor], half: bool = False) -> graph.Graph:
    """Its graph, as an export makes it."""
    columns = learner.asked(learner.config)
    free = [name for name, column in columns.items() if None in column.shape]
    return graph.traced(learner, check.example(rows, free), columns, half)
