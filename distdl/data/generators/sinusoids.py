"""Tasks for meta-learning: sine waves of which a few points are known (Finn, Abbeel & Levine 2017, section 5.1).

A task is y = a sin(x - p), amplitude a in 0.1..5, phase p in 0..pi, x in -5..5, all uniform. Made by a formula.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows
from distdl.errors import InputError


@dataclass(frozen=True)
class Options:
    """Options of the source `sinusoids`."""

    tasks: int = 20_000
    """Tasks of the split `train`."""
    test_tasks: int = 600
    """Tasks of the split `test`."""
    support: int = 10
    """Points of a task that are learned from."""
    query: int = 10
    """Points of a task that are asked afterwards; 100 of the split `test` where it is to be exact."""
    seed: int = 0
    """Seed of what is drawn."""


def prepare(options: Options) -> Prepared:
    """`support_x`, `support_y` float32 (support, 1); `query_x`, `query_y` float32 (query, 1)."""
    if min(options.tasks, options.test_tasks, options.support, options.query) < 1:
        raise InputError("tasks, test_tasks, support and query count things: 1 or more each")
    sizes = {"support": options.support, "query": options.query}
    columns = {f"{part}_{axis}": Column("float32", (n, 1)) for part, n in sizes.items() for axis in "xy"}
    return Prepared(columns, _splits(options, sizes))


def _splits(options: Options, sizes: dict[str, int]) -> Iterator[tuple[str, Rows]]:
    for number, (split, tasks) in enumerate((("train", options.tasks), ("test", options.test_tasks))):
        draw = np.random.default_rng([options.seed, number])
        amplitude, phase = draw.uniform(0.1, 5.0, (tasks, 1, 1)), draw.uniform(0.0, np.pi, (tasks, 1, 1))
        rows: Rows = {}
        for part, n in sizes.items():
            x = draw.uniform(-5.0, 5.0, (tasks, n, 1))
            rows[f"{part}_x"] = x.astype(np.float32)
            rows[f"{part}_y"] = (amplitude * np.sin(x - phase)).astype(np.float32)
        yield split, rows
