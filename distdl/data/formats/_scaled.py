"""Columns of dense rows on one scale, fitted to the training rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from distdl.data.raw import Rows

Scales = dict[str, tuple[np.ndarray, np.ndarray]]
"""Column -> what is taken away, and what is divided by."""


def scales_of(parts: Iterator[tuple[str, Rows]]) -> Scales:
    """Mean and deviation of `x` and `y` over the training rows, added up some rows at a time (Chan et al. 1979)."""
    count, moments = 0, dict[str, tuple[np.ndarray, np.ndarray]]()
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # what is not finite is refused with its row when rows are written
        for split, rows in parts:
            if split != "train":
                continue
            more = len(rows["x"])
            for name in ("x", "y"):
                if name not in rows:
                    continue
                mean, squares = moments.get(name, (np.zeros(rows[name].shape[1:]),) * 2)
                here = rows[name].mean(0)
                apart = here - mean
                squares = squares + ((rows[name] - here) ** 2).sum(0) + apart**2 * count * more / (count + more)
                moments[name] = mean + apart * more / (count + more), squares
            count += more
        found = {name: (mean, np.sqrt(squares / count)) for name, (mean, squares) in moments.items()}
    return {
        name: (np.where(np.isfinite(m), m, 0), np.where((d > 0) & np.isfinite(d), d, 1))
        for name, (m, d) in found.items()
    }


def on_scale(chunks: Iterator[Rows], scales: Scales) -> Iterator[Rows]:
    """The rows with those columns on their scales."""
    for rows in chunks:
        yield {name: (v - scales[name][0]) / scales[name][1] if name in scales else v for name, v in rows.items()}
