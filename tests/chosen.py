"""Of all families on all their layouts a choice that is the same each time, for tests that take minutes and not an hour.

The mark `long` (`make long`) runs the same tests on all of them, and `make parity` measures all of them more closely.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable


def a_few(cells: Iterable[str], always: Collection[str] = ()) -> list[str]:
    """Of cells "FAMILY/LAYOUT" those that tell most, in their order. Every family is there with its highest ZeRO stage (of
    every second one also a lower stage, or torch) and with each way to cut its axes, under a stage that is another one from
    family to family; and every layout is there. `always`: cells that are taken in any case."""
    ways: dict[str, dict[str, list[str]]] = {}
    for cell in (cells := list(cells)):
        family, layout = cell.split("/")
        ways.setdefault(family, {}).setdefault(layout.partition("+")[2], []).append(cell)
    taken = set(always) & set(cells)
    for i, family in enumerate(ways):
        for j, (cut, stages) in enumerate(ways[family].items()):
            stages = sorted(stages)
            taken.add(stages[(i + j) % len(stages)] if cut else stages[-1])
            if not cut:
                taken |= set(stages[i % (2 * len(stages)) :][:1])
    layouts = {cell.partition("/")[2]: cell for cell in cells}
    missing = layouts.keys() - {cell.partition("/")[2] for cell in taken}
    return [cell for cell in cells if cell in taken | {layouts[name] for name in missing}]
