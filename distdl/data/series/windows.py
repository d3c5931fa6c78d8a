"""Windows of a series, in the order of time.

    known by then ......... asked for
    |<-- lookback -->|<-- steps + 1 - lookback -->|     one row, a window of steps + 1 values
                     |<------- stride ------->|         the next row begins so much later

The training part comes first, then a validation part, if one is asked for, then the test part. No window reaches into a
later part; the first window of a part begins `lookback` values before it, and what it is asked for lies in it. With the
default stride every value (but the very first) is asked for exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distdl.errors import InputError


@dataclass(frozen=True, kw_only=True)
class WindowOptions:
    """How series become windows; the options of a source take these over."""

    steps: int = 100
    """Steps of a window; a row holds one value more."""
    lookback: int = 1
    """Values at the beginning of a window that are known, not asked for."""
    stride: int = 0
    """Values between the beginnings of two windows; 0: as many as a window is asked for."""
    validation_values: int = 0
    """Values between the training part and the test part that are the split `validation`."""


def check_windows(options: WindowOptions) -> None:
    """InputError for windows that cannot be."""
    steps, lookback = options.steps, options.lookback
    if steps < 1 or not 1 <= lookback <= steps or min(options.stride, options.validation_values) < 0:
        what = (
            f"steps={steps} lookback={lookback} stride={options.stride} validation_values={options.validation_values}"
        )
        raise InputError(what, allowed="steps of at least 1, a lookback from 1 to steps, no number below 0")


def windows(values: np.ndarray, options: WindowOptions) -> np.ndarray:
    """(T, D) -> (N, steps + 1, D) overlapping windows, a view."""
    width = options.steps + 1
    every = np.lib.stride_tricks.sliding_window_view(values, width, axis=0)  # (T - steps, D, steps + 1)
    return every[:: options.stride or width - options.lookback].swapaxes(1, 2)
