"""Features learned without labels, judged by a linear readout of 5,000 labels beside the same readout of the pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.acceptance import Bench, Case
from distdl.data.read import Dataset

LABELS, BATCH = 5000, 250


def readout(bench: Bench) -> float:
    """Accuracy on MNIST's 10,000 test pictures above that from raw pixels."""
    from sklearn.linear_model import LogisticRegression

    path = bench.mnist()
    learner = bench.train(
        "neocognitron",
        f"data.path={path}",
        "model.image=[1, 28, 28]",
        "model.planes=[24, 64]",
        "model.s_window=[5, 5]",
        "model.s_padding=[0, 0]",
        "model.c_window=[5, 3]",
        "model.c_padding=[0, 0]",
        "model.c_stride=[2, 1]",
        "train.global_batch=50",
        "evaluate.every_steps=0",
    ).learner()
    train, test = rows(path, "train", LABELS), rows(path, "test", 10_000)
    accuracy = []
    for see in (lambda image: image.float().flatten(1) / 255, learner.features):
        x, x_test = (features(see, part["image"]) for part in (train, test))
        scale = 1.0 if x.shape[1] == 784 else x.std()  # the pixels fill 0..1 already
        model = LogisticRegression(max_iter=200).fit(x / scale, train["label"])
        accuracy.append(model.score(x_test / scale, test["label"]))
    print(f"neocognitron: raw pixels {accuracy[0]:.4f}, features {accuracy[1]:.4f}", flush=True)
    return accuracy[1] - accuracy[0]


def rows(path: str, split: str, count: int) -> dict[str, Any]:
    """The first rows of a split."""
    return Dataset(path, split).gather(np.arange(count))


@torch.no_grad()
def features(see: Any, images: np.ndarray) -> np.ndarray:
    parts = torch.from_numpy(np.ascontiguousarray(images)).split(BATCH)
    return torch.cat([see(part) for part in parts]).numpy()


CASES = [
    Case(
        "neocognitron",
        "MNIST",
        "test accuracy of logistic regression on 5,000 labels, above that from pixels",
        0.02,
        "higher",
        readout,
    )
]
