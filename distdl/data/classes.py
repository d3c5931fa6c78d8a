"""The order of classes, which gives them their numbers: one rule for all sources."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

MAX_CLASSES = 10_000
"""A column with more distinct values is not a label."""


def in_order(names: Iterable[str]) -> list[str]:
    """Distinct names of classes: by their numbers where all are finite numbers (2 before 10, -1.5 before 0), else as text.

    Names that are the same number (01, 1, 1.0) stay classes of their own, beside each other.
    """
    distinct = sorted(set(names))
    try:
        numbers = {name: float(name) for name in distinct}
    except ValueError:
        return distinct
    return sorted(distinct, key=lambda name: numbers[name]) if all(map(math.isfinite, numbers.values())) else distinct


def same_numbers(names: Iterable[str]) -> list[list[str]]:
    """The groups of distinct names that are one number in several writings: most likely one class that was torn apart."""
    groups: dict[float, list[str]] = defaultdict(list)
    for name in sorted(set(names)):
        try:
            number = float(name)
        except ValueError:
            continue
        if math.isfinite(number):
            groups[number].append(name)
    return [group for group in groups.values() if len(group) > 1]
