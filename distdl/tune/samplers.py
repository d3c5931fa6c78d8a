"""Which values the next trial has, by the algorithm of the `search:` section."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from distdl.config.search import Search
from distdl.tune.record import Trial
from distdl.tune.space import drawn, grid

Sampler = Callable[[int, Sequence[Trial]], dict[str, Any]]
"""(number of the trial, all that there are so far) -> its values."""


def sampler(search: Search, seed: int, better: str) -> Sampler:
    """The sampler of a search. Raises InputError where what it takes is not installed."""
    if search.algorithm == "grid":
        points = grid(search.space)
        return lambda number, _: points[number - 1]
    if search.algorithm == "random":
        return lambda number, _: drawn(search.space, seed, number)
    from distdl.tune.tpe import Parzen

    return Parzen(search.space, seed, better, search.count())
