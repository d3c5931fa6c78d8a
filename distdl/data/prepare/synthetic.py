"""Small data sets that a formula makes: the tasks by which a rule is proven rather than measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from distdl.data.manifest import Column
from distdl.data.prepare._shared import Prepared, Rows
from distdl.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Options:
    """Options of the source `synthetic`."""

    task: str
    """Which one: see TASKS in this file."""
    rows: int = 1000
    """Training rows, where the task is drawn at random."""
    test_rows: int = 200
    """Held-out rows, where the task is drawn at random."""
    length: int = 2
    """Inputs of a truth table, steps of a sequence, units of a pattern: the size of a sample."""
    seed: int = 0
    """Seed of what is drawn."""


Made = tuple[dict[str, Column], dict[str, Rows]]  # columns, and split -> rows


def prepare(options: Options) -> Prepared:
    """Columns and rows as the task says."""
    if options.task not in TASKS:
        raise InputError(f"there is no synthetic task {options.task!r}", fix=did_you_mean(options.task, TASKS))
    columns, splits = TASKS[options.task](options)
    chunks: Iterator[tuple[str, Rows]] = ((name, rows) for name, rows in splits.items())
    return Prepared(columns, chunks)


def truth_table(options: Options) -> Made:
    """Every row of a logical table of `length` inputs: `x` float32 (length,) of 0 and 1; train and test are the same."""
    n = options.length
    x = ((np.arange(2**n)[:, None] >> np.arange(n)[::-1]) & 1).astype(np.float32)  # (2^n, n)
    return {"x": Column("float32", (n,))}, {"train": {"x": x}, "test": {"x": x}}


TASKS: dict[str, Callable[[Options], Made]] = {"truth_table": truth_table}
