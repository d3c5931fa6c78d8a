"""Hinton 2010, section 16: hidden units of a machine trained without labels are features for a linear classifier."""

from functools import cache

import numpy as np
import torch

from benchmarks.acceptance import Bench, Case, Trained
from distdl.data.read import Dataset

LABELLED = 10_000


@cache
def trained(bench: Bench) -> Trained:
    """784-500, CD-1, 3 epochs: both cases look at the same run."""
    return bench.train(
        "rbm",
        "name=rbm-mnist",
        f"data.path={bench.mnist()}",
        "model={family: rbm}",
        "train.global_batch=100",
        "train.epochs=3",
        "evaluate={every_steps: 0, batch: 1000}",
    )


def reconstruction(bench: Bench) -> float:
    return trained(bench).metrics["reconstruction"]


def features(bench: Bench) -> float:
    """Test accuracy of logistic regression on hidden probabilities, less that on pixels."""
    from sklearn.linear_model import LogisticRegression

    rbm = trained(bench).learner()
    parts = [Dataset(bench.mnist(), split).gather(np.arange(LABELLED)) for split in ("train", "test")]
    pixels = [np.asarray(part["image"], np.float32).reshape(LABELLED, -1) / 255 for part in parts]
    with torch.no_grad():
        hidden = [rbm.hidden(torch.from_numpy(x)).numpy() for x in pixels]
    label, test_label = (part["label"] for part in parts)
    on_hidden, on_pixels = (
        LogisticRegression(max_iter=50).fit(x, label).score(x_test, test_label) for x, x_test in (hidden, pixels)
    )
    print(f"rbm: accuracy on hidden units {on_hidden:.4f}, on pixels {on_pixels:.4f}", flush=True)
    return on_hidden - on_pixels


CASES = [
    Case("rbm", "MNIST", "test squared error of a pixel after 3 epochs", 0.008, "lower", reconstruction),
    Case(
        "rbm",
        "MNIST, 10,000 labels",
        "accuracy of logistic regression on hidden units, less on pixels",
        0.02,
        "higher",
        features,
    ),
]
