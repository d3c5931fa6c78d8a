"""Lee et al. 2009: features learned without labels, a linear support vector machine on 1,000 labels."""

import numpy as np
import torch

from benchmarks.acceptance import Bench, Case
from distdl.data.read import Dataset

LABELLED, TESTED = 1_000, 10_000


def features(bench: Bench) -> float:
    """Test accuracy on pooling probabilities of one layer of 24 filters of 9 x 9, less that on pixels; C suits each."""
    from sklearn.svm import LinearSVC

    run = bench.train(
        "cdbn",
        "name=cdbn-mnist",
        f"data.path={bench.mnist()}",
        "model={family: cdbn, maps: [24], filter: [9], pool: [2], sparsity: 0.03}",
        "train.global_batch=50",
        "train.steps=450",
        "optimizer={name: adam, lr: 1e-2}",
        "evaluate={every_steps: 0, batch: 500}",
    )
    cdbn = run.learner()

    def representations(split: str, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        part = Dataset(bench.mnist(), split).gather(np.arange(n))
        image = torch.from_numpy(np.asarray(part["image"]))
        pooled = [cdbn.features(images)[0].flatten(1) for images in image.split(500)]
        return image.flatten(1).numpy() / 255, torch.cat(pooled).numpy(), part["label"]

    *train, label = representations("train", LABELLED)
    *test, test_label = representations("test", TESTED)
    on_pixels, on_features = (
        max(LinearSVC(C=C).fit(x, label).score(x_test, test_label) for C in (0.01, 0.1, 1.0))
        for x, x_test in zip(train, test)
    )
    print(f"cdbn: accuracy on features {on_features:.4f}, on pixels {on_pixels:.4f}", flush=True)
    return on_features - on_pixels


CASES = [
    Case(
        "cdbn",
        "MNIST, 1,000 labels",
        "accuracy of a linear support vector machine on features of one layer, less on pixels",
        0.03,
        "higher",
        features,
    ),
]
