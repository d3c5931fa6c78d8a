"""Curves in a terminal, of characters alone."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping

WIDTH, HEIGHT = 100, 15
MARKERS = ("braille", "dot", "*", "+", "x", "o")
PLAIN_MARKERS = ("*", "+", "x", "o", "#", "@")
"""For a terminal whose letters are ASCII."""


def drawn(curves: Mapping[str, Mapping[int, float]], title: str) -> str:
    """A chart of values by step, one curve a name; it is as wide as the terminal, and has no colours."""
    import plotext

    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns), HEIGHT)
    plotext.title(title)
    plotext.xlabel("step")
    for (name, points), marker in zip(curves.items(), (PLAIN_MARKERS if plain else MARKERS) * len(curves)):
        steps = sorted(points)
        plotext.plot(steps, [points[step] for step in steps], marker=marker, label=name)
    text = "\n".join(line.rstrip() for line in str(plotext.uncolorize(plotext.build())).splitlines())
    plotext.clear_figure()
    return text.translate(ASCII) if plain else text


ASCII = str.maketrans("┌┐└┘─│┤├┬┴┼", "++++-|||---")
