"""How right texts, pictures and answers to several questions are, by the reference library of each field."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

SMALLEST = 11
"""Side of the window that SSIM compares (Wang, Bovik, Sheikh & Simoncelli 2004): smaller pictures have none."""


def library(name: str) -> ModuleType | None:
    """One of the extra `metrics`; None: it is not installed."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def of_texts(truth: Sequence[str], told: Sequence[str], unit: str) -> tuple[dict[str, float], list[str]]:
    """Texts that are right and what was told; and what is to be said of it. `unit`: `sentence` (BLEU and the error rates of
    words and characters), `word` or `character` of strings of labels (their error rate). Rows whose text is empty count in
    `exact_match` alone: an error rate is a part of what there is."""
    found = {"exact_match": float(np.mean([a == b for a, b in zip(truth, told, strict=True)]))}
    there = [(a, b) for a, b in zip(truth, told, strict=True) if a.strip()]
    notes = []
    if empty := len(truth) - len(there):
        notes.append(f"{empty:,} rows have an empty text, which error rates and BLEU leave out")
    if not there:
        return found, notes
    right, said = [a for a, _ in there], [b for _, b in there]
    jiwer, sacrebleu = library("jiwer"), library("sacrebleu")
    if jiwer is not None and unit != "character":
        found["wer"] = float(jiwer.wer(right, said))
    if jiwer is not None and unit != "word":
        found["cer"] = float(jiwer.cer(right, said))
    if sacrebleu is not None and unit == "sentence":
        found["bleu"] = float(sacrebleu.corpus_bleu(said, [right], force=True).score)
    if missing := [one for one, module in (("jiwer", jiwer), ("sacrebleu", sacrebleu)) if module is None]:
        notes.append(f"some metrics of texts are left out, they are those of {' and '.join(missing)}: {INSTALL}")
    return found, notes


INSTALL = "pip install 'distdl[metrics]'"


def of_pictures(truth: np.ndarray, told: np.ndarray) -> dict[str, np.ndarray]:
    """(B, C, H, W) from 0 to 1 -> of each picture (B,) its mean squared error, and SSIM where it is large enough."""
    error = ((told.astype(np.float64) - truth) ** 2).reshape(len(truth), -1).mean(1)
    found = {"squared_error": error}
    torchmetrics: Any = library("torchmetrics.functional.image")
    if torchmetrics is not None and min(truth.shape[2:]) >= SMALLEST:
        import torch

        pair = (torch.from_numpy(np.ascontiguousarray(part, np.float32)) for part in (told, truth))
        ssim = torchmetrics.structural_similarity_index_measure(*pair, data_range=1.0, reduction="none")
        found["ssim"] = ssim.reshape(-1).numpy()
    return found


def notes_of_pictures(side: int) -> list[str]:
    """Why there is no SSIM of pictures whose smaller side has so many pixels."""
    if side < SMALLEST:
        return [f"ssim is left out: it looks at {SMALLEST} x {SMALLEST} pixels, and the pictures have {side} on a side"]
    if library("torchmetrics.functional.image") is None:
        return [f"ssim is left out, it is that of torchmetrics: {INSTALL}"]
    return []


def in_decibels(error: float) -> float:
    """PSNR of pixels from 0 to 1 whose squares of errors have this mean."""
    return float(-10 * np.log10(error)) if error > 0 else float("inf")


def of_masks(counts: np.ndarray) -> dict[str, float]:
    """(K, K) pixels by the class that they have and the one that was told. Means are over the classes that there are."""
    right, truth, told = np.diag(counts).astype(np.float64), counts.sum(1), counts.sum(0)
    there = (truth + told) > 0
    if not there.any():
        return {}
    right, truth, told = right[there], truth[there], told[there]
    return {
        "pixel_accuracy": float(right.sum() / truth.sum()),
        "mean_iou": float((right / (truth + told - right)).mean()),
        "dice": float((2 * right / (truth + told)).mean()),
    }


def of_tasks(truth: np.ndarray, chances: np.ndarray, names: Sequence[str] = ()) -> dict[str, float]:
    """(n, T) answers of 0 or 1, of which others are missing, and their chances. Means are over the tasks that have both;
    the area of each task by its name."""
    from sklearn import metrics

    known = (truth == 0) | (truth == 1)
    if not known.any():
        return {}
    told = chances > 0.5
    found = {"accuracy": float((told == truth)[known].mean())}
    areas: dict[int, float] = {}
    precision, f1 = [], []
    for task in range(truth.shape[1]):
        rows = known[:, task]
        right, likely = truth[rows, task].astype(int), chances[rows, task]
        if 0 < right.sum() < len(right):
            areas[task] = float(metrics.roc_auc_score(right, likely))
            precision.append(float(metrics.average_precision_score(right, likely)))
            f1.append(float(metrics.f1_score(right, told[rows, task].astype(int), zero_division=0)))
    if areas:
        means = (list(areas.values()), precision, f1)
        found |= {name: float(np.mean(values)) for name, values in zip(("roc_auc", "pr_auc", "f1"), means)}
        found |= {f"roc_auc {names[task]}": area for task, area in areas.items() if len(names) == truth.shape[1]}
    return found
