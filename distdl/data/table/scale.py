"""Numbers on one scale, and back again; dates as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

PARTS = ("days", "year", "month", "day", "weekday", "hour", "minute", "second")
"""What a date becomes: days since 1970 (with their fraction), and what a calendar and a clock say. Monday is weekday 0."""
DAY_S = 86_400


def to_scale(values: np.ndarray, scale: Mapping[str, Any]) -> np.ndarray:
    """Numbers of the file -> numbers to compute with, in float64."""
    if scale["method"] == "log":
        values = np.sign(values) * np.log1p(np.abs(values))
    return (values - np.asarray(scale["shift"])) / np.asarray(scale["divide"])


def from_scale(values: np.ndarray, scale: Mapping[str, Any]) -> np.ndarray:
    """Numbers to compute with -> numbers of the file, in float64."""
    values = np.asarray(values, np.float64) * np.asarray(scale["divide"]) + np.asarray(scale["shift"])
    return np.sign(values) * np.expm1(np.abs(values)) if scale["method"] == "log" else values


def edges_of(feature: Mapping[str, Any]) -> np.ndarray:
    """Where the pieces of a column of numbers begin and end, on its scale: (pieces + 1,) float64; (0,): it has none."""
    return to_scale(np.asarray(feature.get("edges", ()), np.float64), feature["scale"])


def to_pieces(scaled: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Scaled numbers (n,) -> (n, pieces): 0 before a piece, 1 behind it, in between the share of it that is crossed."""
    return np.clip((scaled[:, None] - edges[:-1]) / np.diff(edges), 0, 1)


def from_pieces(scaled: np.ndarray, pieces: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The scaled numbers (n,) once more, by their pieces (n, pieces): where these are narrow, they tell more digits than
    float32 keeps of the number itself. Beyond the first and the last edge they tell nothing."""
    crossed = (pieces >= 1).sum(1)  # whole pieces; the number is in the next one
    last = len(edges) - 1
    share = np.pad(pieces, ((0, 0), (0, 1)))[np.arange(len(pieces)), crossed]
    found = edges[crossed] + share * np.append(np.diff(edges), 0)[crossed]
    found = np.where((crossed == 0) & (share == 0), np.minimum(scaled, edges[0]), found)
    return np.where(crossed == last, np.maximum(scaled, edges[last]), found)


def date_parts(seconds: np.ndarray) -> dict[str, np.ndarray]:
    """Seconds since 1970 (n,), without NaN -> each part (n,)."""
    whole = np.floor(seconds).astype(np.int64)
    day = whole // DAY_S
    stamps = day.astype("datetime64[D]")
    months = stamps.astype("datetime64[M]")
    clock = whole - day * DAY_S
    found = {
        "days": seconds / DAY_S,
        "year": months.astype("datetime64[Y]").astype(np.int64) + 1970,
        "month": months.astype(np.int64) % 12 + 1,
        "day": (stamps - months).astype(np.int64) + 1,
        "weekday": (day + 3) % 7,
        "hour": clock // 3600,
        "minute": clock // 60 % 60,
        "second": clock % 60,
    }
    return {name: values.astype(np.float64) for name, values in found.items()}
