"""Values of one trial: drawn at random, or a point of a grid. A trial's values depend on the seed, its number and its space
alone, so that a search that goes on draws what it would have drawn."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from distdl.config.search import Space

DIGITS = 6
"""Significant digits of a number that is drawn: as good as all of them, and a person can read it."""

Spaces = Mapping[str, Space]


def drawn(spaces: Spaces, seed: int, number: int) -> dict[str, Any]:
    """The values of trial `number`, each key's drawn by itself."""
    return {
        key: _drawn(space, np.random.default_rng([seed, number, zlib.crc32(key.encode())]))
        for key, space in spaces.items()
    }


def _drawn(space: Space, random: np.random.Generator) -> Any:
    if space.listed is not None:
        return space.listed[int(random.integers(len(space.listed)))]
    low, high = getattr(space, space.kind)
    if space.kind == "integer":
        return int(random.integers(low, high, endpoint=True))
    if space.kind == "log_integer":  # each number's share is that of the half on either side of it
        return whole(math.exp(random.uniform(math.log(low - 0.5), math.log(high + 0.5))), space)
    if space.kind == "log_uniform":
        return readable(math.exp(random.uniform(math.log(low), math.log(high))), space)
    return readable(random.uniform(low, high), space)


def readable(value: float, space: Space) -> float:
    """A number of a range with as many digits as a person reads."""
    low, high = getattr(space, space.kind)
    return float(min(max(float(f"{value:.{DIGITS}g}"), low), high))


def whole(value: float, space: Space) -> int:
    """The whole number of a range that is nearest."""
    low, high = getattr(space, space.kind)
    return int(min(max(round(value), low), high))


def grid(spaces: Spaces) -> list[dict[str, Any]]:
    """Every point, the last key's value changing first."""
    return [dict(zip(spaces, point)) for point in itertools.product(*(space.extremes for space in spaces.values()))]


def moved(value: Any, space: Space, random: np.random.Generator) -> Any:
    """What a copy of a good trial tries instead of `value`: drawn anew one time in four, else a neighbour in a list, or a
    fifth more or less."""
    if random.random() < 0.25:
        return _drawn(space, random)
    up = bool(random.integers(2))
    if (listed := space.listed) is not None:
        at = listed.index(value) if value in listed else 0
        return listed[min(max(at + (1 if up else -1), 0), len(listed) - 1)]
    further = value * (1.2 if up else 0.8)
    if "integer" in space.kind:
        return whole(further if round(further) != value else value + (1 if up else -1), space)
    return readable(further, space)
