"""Figures of what a run has spooled. Each takes plain lists and gives a matplotlib figure that no window knows of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from distdl.track.series import series_of, varying

MOST_PANELS = 9
MOST_NUMBERS = 20
"""Classes up to which the cells of a confusion matrix have their counts in them."""


def learning_curves(events: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Every metric by step, training beside held out; the loss first. None where fewer than two points were told."""
    series = series_of(events)
    names = varying(series)[:MOST_PANELS]
    if not names:
        return None
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(5 * columns, 3.4 * rows), layout="constrained")
    for index, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, index + 1)
        for of, points in sorted(series[name].items(), reverse=True):
            steps = sorted(points)
            axes.plot(steps, [points[step] for step in steps], label=of, marker="." if len(steps) < 30 else "")
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
        if len(series[name]) > 1:
            axes.legend()
    return figure


def of_picture(event: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of everything that an event `picture` holds."""
    arrays = {name: np.asarray(value, dtype=float) for name, value in event["arrays"].items()}
    where = f"split {event.get('split')}, step {event['step']:,}"
    if event["drawing"] == "classes":
        names = event.get("names") or []
        if len(names) != len(arrays["confusion"]):
            names = [str(i) for i in range(len(arrays["confusion"]))]
        yield "confusion matrix", confusion_matrix(arrays["confusion"], names, where)
        yield "calibration", calibration(arrays["sure"], where)
        if "scores" in arrays:
            yield "ROC and precision", roc_and_precision(arrays["scores"], names, where)
    elif event["drawing"] == "numbers":
        yield "predictions beside targets", predictions(arrays["points"], where)


def confusion_matrix(counts: np.ndarray, names: Sequence[str], where: str) -> Figure:
    """Rows are the true classes; a cell is coloured by its share of the row."""
    size = min(14.0, 3.5 + 0.35 * len(names))
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.add_subplot()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    drawn = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(drawn, label="share of the true class")
    right = np.trace(counts) / max(counts.sum(), 1)
    axes.set(title=f"{right:.1%} right ({where})", xlabel="told", ylabel="true")
    if len(names) <= 2 * MOST_NUMBERS:
        axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(len(names)), names)
    if len(names) <= MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count:,.0f}", ha="center", va="center", color=colour, fontsize=8)
    return figure


def calibration(sure: np.ndarray, where: str) -> Figure:
    """How often the model is right, by how sure it is."""
    count, stated, right = sure.T
    there = count > 0
    stated, right, weight = stated[there] / count[there], right[there] / count[there], count[there] / count.sum()
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="as sure as right")
    axes.plot(stated, right, marker="o")
    axes.bar(stated, weight, width=0.04, alpha=0.3, label="share of the rows")
    error = float((weight * abs(stated - right)).sum())
    axes.set(
        title=f"calibration error {error:.3f} ({where})",
        xlabel="probability of the told class",
        ylabel="share that is right",
    )
    axes.legend()
    return figure


def roc_and_precision(scores: np.ndarray, names: Sequence[str], where: str) -> Figure:
    """Each class against all others; two classes have one curve."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    roc, precision = figure.subplots(1, 2)
    for index in range(len(names)) if len(names) > 2 else [1]:
        hit, false_alarm, right, area = rates(scores[index])
        if hit is None:
            continue
        roc.plot(false_alarm, hit, label=f"{names[index]} ({area:.3f})")
        precision.plot(hit, right, label=names[index])
    roc.plot([0, 1], [0, 1], color="grey", linestyle="--")
    roc.set(title=f"ROC, area in brackets ({where})", xlabel="false alarms", ylabel="found")
    precision.set(title="precision and recall", xlabel="found", ylabel="right among those told", ylim=(0, 1.03))
    roc.legend(fontsize=8)
    return figure


def rates(counts: np.ndarray) -> tuple[Any, Any, Any, float]:
    """(2, bins), rows of other classes and of its own -> recall, false alarms and precision by threshold, and
    the area below the ROC. Nones where one of the two has no rows."""
    others, own = counts[0][::-1].cumsum(), counts[1][::-1].cumsum()
    if not others[-1] or not own[-1]:
        return None, None, None, math.nan
    hit, false_alarm = np.r_[0, own / own[-1]], np.r_[0, others / others[-1]]
    told = own + others
    precision = np.where(told > 0, own / np.maximum(told, 1), 1.0)
    area = float(((hit[1:] + hit[:-1]) / 2 * np.diff(false_alarm)).sum())
    return hit, false_alarm, np.r_[precision[0], precision], area


def predictions(points: np.ndarray, where: str) -> Figure:
    """What was told beside what is true, and the errors."""
    told, true = points.T
    figure = Figure(figsize=(11, 5), layout="constrained")
    beside, errors = figure.subplots(1, 2)
    beside.scatter(true, told, s=6, alpha=0.5)
    ends = [float(points.min()), float(points.max())]
    beside.plot(ends, ends, color="grey", linestyle="--")
    beside.set(title=f"{len(points):,} rows ({where})", xlabel="target", ylabel="prediction")
    errors.hist(told - true, bins=40)
    errors.set(title="errors", xlabel="prediction - target", ylabel="rows")
    return figure
