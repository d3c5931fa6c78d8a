"""How right answers are, where the truth is known: of classes and of numbers, from all rows at once, by scikit-learn."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 15
MOST_VALUES = 50_000_000
"""Probabilities of so many rows and classes are ranked; areas of more are left out, and that is said."""


def of_classes(
    truth: np.ndarray, told: np.ndarray, chances: np.ndarray | None, scores: np.ndarray | None, classes: int
) -> dict[str, float]:
    """(n,) numbers of classes, what was told, and what spoke for each (n, K). `f1`, `precision` and `recall` are the mean
    over the classes that there are; areas are of each class against the rest."""
    from sklearn import metrics

    there = np.unique(truth)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that was never told has no precision: 0, as is usual
        means = metrics.precision_recall_fscore_support(truth, told, labels=there, average="macro", zero_division=0)
        found = {
            "accuracy": float((truth == told).mean()),
            "balanced_accuracy": float(metrics.balanced_accuracy_score(truth, told)),
            **dict(zip(("precision", "recall", "f1"), map(float, means[:3]))),
        }
        ranked = chances if chances is not None else scores
        if ranked is not None and len(there) > 1 and ranked.size <= MOST_VALUES:
            of = [1] if classes == 2 else [k for k in there.tolist() if k < ranked.shape[1]]
            found["roc_auc"] = float(np.mean([metrics.roc_auc_score(truth == k, ranked[:, k]) for k in of]))
            found["pr_auc"] = float(np.mean([metrics.average_precision_score(truth == k, ranked[:, k]) for k in of]))
    if chances is not None:
        right = chances[np.arange(len(truth)), truth].astype(np.float64)
        found["log_loss"] = float(-np.log(np.maximum(right, 1e-12)).mean())
        found["calibration_error"] = calibration_error(chances.max(1), truth == told)
    return found


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """How far confidence and accuracy lie apart: the mean over rows of the difference in their bin of 1/15 (Guo, Pleiss,
    Sun & Weinberger 2017, equation 3)."""
    place = np.clip(np.ceil(confidence.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    gap = np.bincount(place, confidence.astype(np.float64), BINS) - np.bincount(place, right.astype(np.float64), BINS)
    return float(np.abs(gap).sum() / len(confidence))


def confusion(truth: np.ndarray, told: np.ndarray, classes: int) -> list[list[int]]:
    """Rows: the class that it is; columns: the one that was told."""
    counts = np.bincount(truth * classes + told, minlength=classes * classes)
    table: list[list[int]] = counts.reshape(classes, classes).tolist()
    return table


def of_values(truth: np.ndarray, told: np.ndarray) -> dict[str, float]:
    """(n,) numbers and what was told, in the units of the file. `bias` is the mean error."""
    error = told.astype(np.float64) - truth
    found = {
        "rmse": float(np.sqrt((error**2).mean())),
        "mae": float(np.abs(error).mean()),
        "median_error": float(np.median(np.abs(error))),
        "bias": float(error.mean()),
    }
    spread = float(((truth - truth.mean()) ** 2).mean())
    if spread > 1e-12 * float((truth.astype(np.float64) ** 2).mean()):
        found["r2"] = 1 - float((error**2).mean()) / spread
    if len(truth) > 1 and truth.std() > 0 and told.std() > 0:
        found["correlation"] = float(np.corrcoef(truth, told)[0, 1])
    return found


def in_words(table: Sequence[Sequence[int]], names: Sequence[Any]) -> list[str]:
    """A confusion matrix as lines of text."""
    words = [str(name) for name in names]
    width = max(map(len, [*words, *(f"{n:,}" for row in table for n in row)]))
    head = " " * (width + 2) + "  ".join(f"{word:>{width}}" for word in words)
    return [head, *(f"{w:>{width}}  " + "  ".join(f"{n:>{width},}" for n in row) for w, row in zip(words, table))]


def finite(metrics: dict[str, float]) -> dict[str, float]:
    """Without those that have no value."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
