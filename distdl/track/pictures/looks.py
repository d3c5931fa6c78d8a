"""Figures of what families show of themselves (nn/watch.py), from the arrays that an evaluation has spooled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distdl.track.pictures.arrays import unpacked

Calls = list[dict[str, np.ndarray]]
"""The arrays of each layer that showed some; mostly one."""
MOST_VALUES = 3
"""Values of a field that are drawn below each other."""
GAP = 1
"""Pixels between two pictures of a grid."""


def of_look(event: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> list[tuple[str, Figure]]:
    """(title, figure) of an event `picture` with `calls`; `before`: the earlier ones of the same drawing. Nothing where it
    is of a kind that a later version has."""
    kind, _, title = event["drawing"].partition(": ")
    if kind not in FIGURES:
        return []
    where = f"split {event.get('split')}, step {event['step']:,}"
    return [(title or TITLES.get(kind, kind), FIGURES[kind](calls_of(event), where, [*before, event]))]


def calls_of(event: Mapping[str, Any]) -> Calls:
    return [{name: unpacked(array) for name, array in call.items()} for call in event["calls"]]


def picture_of(x: np.ndarray) -> np.ndarray:
    """(C, H, W) or (H, W) as matplotlib takes it; values below 0 or above 1 are brought between."""
    x = x if x.ndim == 2 or x.shape[0] == 3 else x[0]
    low, high = min(0.0, float(x.min())), max(1.0, float(x.max()))
    x = (x - low) / (high - low)
    return x.transpose(1, 2, 0) if x.ndim == 3 else x


def grid_of(pictures: np.ndarray, columns: int, each: bool = False) -> np.ndarray:
    """(N, C, H, W) side by side on white, (rows, columns[, 3]); `each`: stretched from its lowest to its highest value."""
    if each:
        low = pictures.min((1, 2, 3), keepdims=True)
        pictures = (pictures - low) / np.maximum(pictures.max((1, 2, 3), keepdims=True) - low, 1e-12)
    tiles = [picture_of(picture) for picture in pictures]
    height, width = tiles[0].shape[:2]
    rows = math.ceil(len(tiles) / columns)
    page = np.ones((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, *tiles[0].shape[2:]))
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        page[top : top + height, left : left + width] = tile
    return page


def _page(columns: int = 1, rows: int = 1, width: float = 5, height: float = 4.4) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _draw(axes: Axes, page: np.ndarray, title: str) -> None:
    axes.imshow(page, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(title=title, xticks=[], yticks=[])


def _matrix(figure: Figure, axes: Axes, values: np.ndarray, title: str, *axis: str, **colours: Any) -> None:
    drawn = axes.imshow(values, aspect="auto", interpolation="nearest", **colours)
    figure.colorbar(drawn, ax=axes)
    axes.set(title=title, **dict(zip(("xlabel", "ylabel"), axis)))


def samples(calls: Calls, where: str, _: Any) -> Figure:
    made = calls[0]["made"]
    figure, ((axes,),) = _page(height=5)
    if made.ndim == 4:
        _draw(axes, grid_of(made, math.ceil(math.sqrt(len(made)))), f"{len(made)} samples ({where})")
    elif made.ndim == 2 and made.shape[1] == 2:
        axes.scatter(*made.T, s=8)
        axes.set(title=f"{len(made)} samples ({where})")
    else:
        _matrix(figure, axes, made.reshape(len(made), -1), f"{len(made)} samples ({where})", "value", "sample")
    return figure


def reconstructions(calls: Calls, where: str, _: Any) -> Figure:
    """What the family was given above what it told; where that was damaged, the damaged one between."""
    parts = [name for name in ("given", "damaged", "told") if name in calls[0]]
    rows = [calls[0][name] for name in parts]
    title = f"from above: {', '.join(parts)} ({where})"
    if rows[0].ndim == 4:
        figure, ((axes,),) = _page(width=1.2 * len(rows[0]), height=1.2 * len(rows) + 0.5)
        _draw(axes, grid_of(np.concatenate(rows), len(rows[0])), title)
        return figure
    figure, cells = _page(1, len(rows) + 1, width=8, height=2)
    flat = [row.reshape(len(row), -1) for row in rows]
    for axes, name, values in zip(cells[:, 0], [*parts, "told - given"], [*flat, flat[-1] - flat[0]]):
        _matrix(figure, axes, values, f"{name} ({where})" if name == parts[0] else name, "value", "row")
    return figure


def masks(calls: Calls, where: str, _: Any) -> Figure:
    """Pictures, the classes told and true of their pixels, and where the two differ."""
    told, true = calls[0]["told"], calls[0]["true"]
    figure, cells = _page(len(told), 4 if "picture" in calls[0] else 3, width=2.2, height=2.3)
    highest = max(1.0, told.max(), true.max())
    for i, column in enumerate(cells.T):
        *above, of_told, of_true, wrong = column
        for axes in above:
            _draw(axes, picture_of(calls[0]["picture"][i]), "picture")
        for axes, mask, name in ((of_told, told[i], "told"), (of_true, true[i], "true")):
            axes.imshow(np.where(mask < 0, np.nan, mask), vmin=0, vmax=highest, interpolation="nearest")
            axes.set(title=name, xticks=[], yticks=[])
        differ = (told[i] != true[i]) & (true[i] >= 0)
        _draw(wrong, differ.astype(float), f"wrong: {differ.mean():.1%}")
    figure.suptitle(where)
    return figure


def hits_of(winner: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(R, C): how many rows each unit has won."""
    return np.bincount(winner.astype(int).ravel(), minlength=rows * columns).reshape(rows, columns)


def distances_of(prototypes: np.ndarray) -> np.ndarray:
    """(R, C): mean distance of each prototype to those beside, above and below it (Ultsch's U-matrix)."""
    flat = prototypes.reshape(*prototypes.shape[:2], -1)
    total, count = np.zeros(flat.shape[:2]), np.zeros(flat.shape[:2])
    for axis in (0, 1):
        apart = np.linalg.norm(np.diff(flat, axis=axis), axis=-1)
        for side in ((0, 1), (1, 0)):
            pad = [(0, 0), (0, 0)]
            pad[axis] = side
            total += np.pad(apart, pad)
            count += np.pad(np.ones_like(apart), pad)
    return total / np.maximum(count, 1)


def som_map(calls: Calls, where: str, _: Any) -> Figure:
    prototypes, winner = calls[0]["prototypes"], calls[0]["winner"]
    rows, columns = prototypes.shape[:2]
    pictures = prototypes.ndim == 5 and prototypes.shape[2] in (1, 3)
    figure, (cells,) = _page(3 if pictures else 2)
    if pictures:
        _draw(cells[0], grid_of(prototypes.reshape(-1, *prototypes.shape[2:]), columns), "prototypes")
    _matrix(figure, cells[-2], hits_of(winner, rows, columns), f"{winner.size:,} rows won ({where})")
    _matrix(figure, cells[-1], distances_of(prototypes), "distance to the neighbours", cmap="bone_r")
    return figure


def filters(calls: Calls, where: str, _: Any) -> Figure:
    """Each stretched from its lowest (black) to its highest value (white)."""
    kernels = calls[0]["filters"]
    columns = math.ceil(math.sqrt(len(kernels)))
    figure, ((axes,),) = _page(height=5)
    _draw(axes, grid_of(kernels, columns, each=True), f"{len(kernels)} filters of the first layer ({where})")
    return figure


def attention(calls: Calls, where: str, _: Any) -> Figure:
    heads = max(len(call["shares"]) for call in calls)
    figure, cells = _page(heads, len(calls), width=2.6, height=2.6)
    for layer, (line, call) in enumerate(zip(cells, calls), 1):
        for head, axes in enumerate(line, 1):
            if head <= len(call["shares"]):
                axes.imshow(call["shares"][head - 1], vmin=0, interpolation="nearest", aspect="auto")
                axes.set(title=f"layer {layer}, head {head}", xlabel="attends to", ylabel="place")
            else:
                axes.set_axis_off()
    figure.suptitle(f"one row ({where})")
    return figure


def spikes(calls: Calls, where: str, _: Any) -> Figure:
    """A dot for each spike of one row."""
    figure, cells = _page(1, len(calls), width=8, height=2.6)
    for layer, (axes, call) in enumerate(zip(cells[:, 0], calls), 1):
        time, unit = np.nonzero(call["spikes"] > 0.5)
        steps, units = call["spikes"].shape
        axes.scatter(time, unit, s=8, marker="|")
        axes.set(xlim=(-0.5, steps - 0.5), ylim=(-0.5, units - 0.5), xlabel="step", ylabel="unit")
        rate = len(time) / max(steps * units, 1)
        axes.set_title(f"layer {layer}: {rate:.2f} spikes a unit and step" + (f" ({where})" if layer == 1 else ""))
    return figure


def field(calls: Calls, where: str, _: Any) -> Figure:
    """Told, true and the error at each place: over one dimension by height, over more in colour over the first two."""
    place, told, true = (calls[0][name] for name in ("place", "told", "true"))
    told, true = (values.reshape(len(place), -1) for values in (told, true))
    values = min(told.shape[1], MOST_VALUES)
    figure, cells = _page(3, values, height=3.6)
    for k, line in enumerate(cells):
        parts = {"told": told[:, k], "true": true[:, k], "told - true": told[:, k] - true[:, k]}
        low, high = min(told[:, k].min(), true[:, k].min()), max(told[:, k].max(), true[:, k].max())
        for axes, (name, numbers) in zip(line, parts.items()):
            size = float(np.abs(numbers).max()) or 1.0
            colours = {"vmin": low, "vmax": high} if "-" not in name else {"vmin": -size, "vmax": size, "cmap": "RdBu"}
            if place.shape[1] == 1:
                axes.scatter(place[:, 0], numbers, s=6)
            else:
                drawn = axes.scatter(place[:, 0], place[:, 1], c=numbers, s=9, marker="s", **colours)
                figure.colorbar(drawn, ax=axes)
            axes.set_title(name if values == 1 else f"{name}, value {k}")
    error = math.sqrt(float(np.square(told - true).mean()))
    figure.suptitle(f"{len(place):,} places, root of the mean squared error {error:.4g} ({where})")
    return figure


def plane_of(direction: np.ndarray) -> np.ndarray:
    """(N, 3) directions of one camera's rays -> (N, 2) where they pass a plane before it, to the right and up."""
    unit = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    ahead = unit.mean(0) / np.linalg.norm(unit.mean(0))
    at = unit / np.maximum(unit @ ahead, 1e-6)[:, None] - ahead
    up = np.array([0.0, 0.0, 1.0]) if abs(ahead[2]) < 0.99 else np.array([0.0, 1.0, 0.0])
    right = np.cross(ahead, up) / np.linalg.norm(np.cross(ahead, up))
    return np.stack([at @ right, at @ np.cross(right, ahead)], 1)


def view(calls: Calls, where: str, _: Any) -> Figure:
    """The rays of the first camera, each a square of its colour."""
    origin = calls[0]["origin"]
    mine = np.isclose(origin, origin[0]).all(1)
    told, true = calls[0]["told"][mine], calls[0]["true"][mine]
    at = plane_of(calls[0]["direction"][mine])
    error = np.abs(told - true).mean(1)
    figure, (cells,) = _page(3, height=5)
    size = (72 * 4 / max(math.sqrt(len(at)), 1)) ** 2
    for axes, name, colour in zip(cells, ("told", "true", "error"), (told, true, error[:, None].repeat(3, 1))):
        axes.scatter(*at.T, c=np.clip(colour, 0, 1), s=size, marker="s", linewidths=0)
        axes.set(title=f"{name} ({where})" if name == "told" else name, xticks=[], yticks=[], aspect="equal")
    return figure


def series(calls: Calls, where: str, _: Any) -> Figure:
    told, true = calls[0]["told"], calls[0]["true"]
    figure, cells = _page(1, min(told.shape[1], MOST_VALUES), width=9, height=2.6)
    for k, axes in enumerate(cells[:, 0]):
        axes.plot(true[:, k], label="true", color="black", linewidth=1)
        axes.plot(told[:, k], label="told", linestyle="--")
        axes.set(title=f"one row ({where})" if not k else f"value {k}", xlabel="step")
        axes.legend()
    return figure


def returns(_: Calls, where: str, events: Sequence[Mapping[str, Any]]) -> Figure:
    """A dot for each episode of every evaluation that was drawn, and their mean."""
    figure, ((axes,),) = _page(width=8)
    found = {event["step"]: calls_of(event)[0]["returns"] for event in events}
    for step, values in found.items():
        axes.scatter([step] * len(values), values, s=8, alpha=0.4, color="C0")
    axes.plot(list(found), [values.mean() for values in found.values()], marker="o", color="C1", label="mean")
    axes.set(title=f"returns of episodes ({where})", xlabel="step", ylabel="return")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def places(calls: Calls, where: str, _: Any) -> Figure:
    losses = calls[0]["losses"].mean(0)
    figure, ((axes,),) = _page(width=8)
    axes.plot(range(1, len(losses) + 1), losses, marker="." if len(losses) < 60 else "")
    axes.set(title=f"loss by the place in the row ({where})", xlabel="place", ylabel="loss")
    axes.grid(alpha=0.3)
    return figure


def beside(calls: Calls, where: str, _: Any) -> Figure:
    told, true = (calls[0][name].reshape(len(calls[0][name]), -1) for name in ("told", "true"))
    figure, (cells,) = _page(3)
    low, high = min(told.min(), true.min()), max(told.max(), true.max())
    for axes, name, values in zip(cells, ("told", "true"), (told, true)):
        _matrix(figure, axes, values, f"{name} ({where})" if name == "told" else name, "", "row", vmin=low, vmax=high)
    _matrix(figure, cells[2], told - true, "told - true", "", "row", cmap="RdBu")
    return figure


def heat(calls: Calls, where: str, _: Any) -> Figure:
    figure, ((axes,),) = _page(width=7)
    _matrix(figure, axes, calls[0]["values"], where)
    return figure


FIGURES: dict[str, Callable[[Calls, str, Sequence[Mapping[str, Any]]], Figure]] = {
    "samples": samples,
    "reconstructions": reconstructions,
    "masks": masks,
    "map": som_map,
    "filters": filters,
    "attention": attention,
    "spikes": spikes,
    "field": field,
    "view": view,
    "series": series,
    "returns": returns,
    "places": places,
    "beside": beside,
    "heat": heat,
}
TITLES = {
    "attention": "attention maps",
    "spikes": "spike raster",
    "field": "field with error",
    "view": "rendered view",
    "returns": "episode returns",
    "places": "loss by place",
    "beside": "told beside true",
    "heat": "matrix",
}
