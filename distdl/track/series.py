"""What was measured in a run, by metric, split and step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

TRAINING = "training"
Series = dict[str, dict[str, dict[int, float]]]
"""Metric -> `training` or the name of a split -> step -> value."""


def series_of(events: Iterable[Mapping[str, Any]]) -> Series:
    """Those of a spool's events. A run that was continued took some steps again: what came of the last time counts."""
    found: Series = {}
    for event in events:
        if event["kind"] in ("metrics", "evaluation") and isinstance(event.get("values"), dict):
            of = str(event.get("split") or "held out") if event["kind"] == "evaluation" else TRAINING
            for name, value in event["values"].items():
                if isinstance(value, (int, float)) and math.isfinite(value) and isinstance(event.get("step"), int):
                    found.setdefault(name, {}).setdefault(of, {})[event["step"]] = value
    return found


def varying(series: Series) -> list[str]:
    """The metrics worth a curve, those that change: losses first, then what is measured of held-out rows, too."""
    changing = [name for name, of in series.items() if any(len(set(points.values())) > 1 for points in of.values())]
    return sorted(changing, key=lambda name: ("loss" not in name, len(series[name]) < 2, name))
