"""Pictures of the report, as PNG. No window knows of them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

DOTS_PER_INCH = 80


def png_of(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    return file.getvalue()


def maps(pictures: Sequence[np.ndarray], found: Sequence[np.ndarray], titles: Sequence[str], signed: bool) -> bytes:
    """Pictures (C, H, W), and below each the map (H, W) of what was found in it; red speaks for the answer, blue
    against."""
    n = len(pictures)
    figure = Figure(figsize=(1.7 * n + 0.3, 3.9), layout="constrained")
    axes = figure.subplots(2, n, squeeze=False)
    for i, (picture, values, title) in enumerate(zip(pictures, found, titles)):
        most = float(np.abs(values).max()) or 1.0
        axes[0, i].imshow(seen(picture), cmap="gray")
        axes[0, i].set_title(title, fontsize=8)
        low = -most if signed else 0.0
        axes[1, i].imshow(values, cmap="RdBu_r" if signed else "inferno", vmin=low, vmax=most)
    for one in axes.flat:
        one.set_axis_off()
    return png_of(figure)


def seen(picture: np.ndarray) -> np.ndarray:
    """(C, H, W) as (H, W) or (H, W, 3), stretched where its numbers are no pixels from 0 to 1."""
    planes = picture[:3].transpose(1, 2, 0) if len(picture) >= 3 else picture[0]
    low, high = float(planes.min()), float(planes.max())
    return planes if low >= 0 and high <= 1 else (planes - low) / ((high - low) or 1.0)


def over_time(found: Sequence[np.ndarray], titles: Sequence[str], called: str) -> bytes:
    """A curve (T,) for each row."""
    figure = Figure(figsize=(9, 1.3 * len(found) + 0.4), layout="constrained")
    for axes, values, title in zip(figure.subplots(len(found), 1, squeeze=False)[:, 0], found, titles):
        axes.axhline(0, color="grey", linewidth=0.5)
        axes.fill_between(range(len(values)), values, step="mid", alpha=0.6)
        axes.set_title(title, fontsize=8, loc="left")
    axes.set_xlabel("step")
    figure.supylabel(called, fontsize=8)
    return png_of(figure)


def bars(names: Sequence[str], values: Sequence[float], called: str) -> bytes:
    """A bar for each, the first at the top."""
    figure = Figure(figsize=(8, 0.28 * len(names) + 0.8), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(names)), values)
    axes.set_yticks(range(len(names)), [name[:40] for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(called)
    return png_of(figure)


def curves(at: Sequence[float], of: Mapping[str, Sequence[float]], across: str, up: str) -> bytes:
    """Lines over the same places."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, values in of.items():
        axes.plot(at, values, marker="o", label=name)
    axes.set(xlabel=across, ylabel=up, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return png_of(figure)


def grid(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> bytes:
    """Pictures (C, H, W) side by side."""
    columns = min(PER_LINE, len(pictures))
    lines = -(-len(pictures) // columns)
    figure = Figure(figsize=(1.6 * columns, 1.9 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for one in axes.flat:
        one.set_axis_off()
    for one, picture, title in zip(axes.flat, pictures, titles):
        one.imshow(seen(picture), cmap="gray")
        one.set_title(title, fontsize=8)
    return png_of(figure)


PER_LINE = 6
