"""The picture of a search: what each trial reached, how it hangs on each key, and all keys of each trial side by side."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distdl.config.search import Space
from distdl.tune.record import Record, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_KEYS = 9
"""That have a panel of their own."""
MARKS = {"finished": "o", "stopped": "v", "interrupted": "s", "running": "s", "paused": "s"}
COLUMNS = 3


def draw(record: Record, file: Path) -> bool:
    """Draws the picture into a file. False where nothing was evaluated. May raise OSError."""
    trials = [t for t in record.trials if t.objective is not None and t.state != "failed"]
    if not trials:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    spaces = {key: Space.model_validate_json(json.dumps(space)) for key, space in record.search["space"].items()}
    keys = list(spaces)[:MOST_KEYS]
    rows = 2 + math.ceil(len(keys) / COLUMNS)
    figure = Figure(figsize=(5 * COLUMNS, 3.6 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, COLUMNS)
    _course(figure.add_subplot(grid[0, :]), record, trials)
    _side_by_side(figure.add_subplot(grid[1, :]), record, trials, spaces)
    for index, key in enumerate(keys):
        _of_key(figure.add_subplot(grid[2 + index // COLUMNS, index % COLUMNS]), record, trials, key, spaces[key])
    figure.suptitle(f"{record.folder.name}: {len(record.trials)} trials")
    FigureCanvasAgg(figure)
    draft = file.with_name(f".{file.name}")
    figure.savefig(draft, format="png")
    os.replace(draft, file)
    return True


def _course(axes: Axes, record: Record, trials: Sequence[Trial]) -> None:
    """The metric of each trial in the order of their numbers, and the best so far."""
    better = max if record.better == "higher" else min
    best: list[float] = []
    for t in trials:
        assert t.objective is not None
        best.append(better(best[-1], t.objective) if best else t.objective)
    for state, mark in MARKS.items():
        if of := [t for t in trials if t.state == state]:
            axes.scatter([t.number for t in of], [t.objective or 0.0 for t in of], marker=mark, label=state)
    axes.step([t.number for t in trials], best, where="post", color="black", linewidth=1, label="best so far")
    axes.set(title=f"{record.metric} of each trial", xlabel="trial", ylabel=record.metric)
    axes.grid(alpha=0.3)
    axes.legend()


def _of_key(axes: Axes, record: Record, trials: Sequence[Trial], key: str, space: Space) -> None:
    """The metric by the values of one key."""
    listed = space.listed
    at = [listed.index(t.values[key]) if listed is not None else t.values[key] for t in trials]
    colours = [t.number for t in trials]
    axes.scatter(at, [t.objective or 0.0 for t in trials], c=colours, cmap="viridis")
    if listed is not None:
        axes.set_xticks(range(len(listed)), [str(value) for value in listed])
    elif space.kind.startswith("log_"):
        axes.set_xscale("log")
    axes.set(xlabel=key, ylabel=record.metric)
    axes.grid(alpha=0.3)


def _side_by_side(axes: Axes, record: Record, trials: Sequence[Trial], spaces: dict[str, Space]) -> None:
    """Parallel coordinates: a line a trial, from key to key, coloured by the metric; the best drawn last."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    values = [t.objective or 0.0 for t in trials]
    colours = colormaps["viridis" if record.better == "higher" else "viridis_r"]
    norm = Normalize(min(values), max(values))
    for t in sorted(trials, key=lambda t: t.objective or 0.0, reverse=record.better != "higher"):
        heights = [_share(t.values[key], space) for key, space in spaces.items()]
        axes.plot(range(len(spaces)), heights, color=colours(norm(t.objective or 0.0)), marker=".", alpha=0.8)
    axes.set_xticks(range(len(spaces)), [f"{key}\n{_range(space)}" for key, space in spaces.items()])
    axes.set_yticks([])
    axes.set(title="values of each trial", ylim=(-0.05, 1.05))
    axes.figure.colorbar(ScalarMappable(norm, colours), ax=axes, label=record.metric)


def _share(value: Any, space: Space) -> float:
    """Where a value lies in its range, from 0 to 1."""
    if space.listed is not None:
        return space.listed.index(value) / max(1, len(space.listed) - 1)
    low, high = getattr(space, space.kind)
    if space.kind.startswith("log_"):
        low, high, value = math.log(low), math.log(high), math.log(value)
    return float((value - low) / (high - low))


def _range(space: Space) -> str:
    ends = space.listed if space.listed is not None else getattr(space, space.kind)
    return f"{ends[0]} … {ends[-1]}"
