"""Lee et al. 2009: features learned without labels, a linear support vector machine on 1,000 labels."""

import numpy as np
import torch

from benchmarks.acceptance import Bench, Case
from distdl.data.read import Dataset

LABELLED, TESTED = 1_000, 10_000


def features(bench: Bench) -> float:
    """Test accuracy on pooling probabilities of one layer of 24 filters of 9 x 9, less that on pixels."""
    from sklearn.svm import LinearSVC

    run = bench.train(
        "cdbn",
        "name=cdbn-mnist",
        f"data.path={bench.mnist()}",
        "model={family: cdbn, maps: [24], filter: [9], pool: [2], sparsity: 0.01}",
        "train.global_batch=50",
        "train.steps=600",
        "evaluate={every_steps: 0, batch: 500}",
    )
    cdbn = run.learner()
    accuracy = {}
    parts = [Dataset(bench.mnist(), s).gather(np.arange(n)) for s, n in (("train", LABELLED), ("test", TESTED))]
    for name in ("pixels", "features"):
        x, x_test = (np.asarray(part["image"]) for part in parts)
        if name == "pixels":
            x, x_test = (images.reshape(len(images), -1) / 255 for images in (x, x_test))
        else:
            x, x_test = (
                np.concatenate(
                    [cdbn.features(chunk)[0].flatten(1).numpy() for chunk in torch.from_numpy(images).split(500)]
                )
                for images in (x, x_test)
            )
        accuracy[name] = LinearSVC(C=0.1).fit(x, parts[0]["label"]).score(x_test, parts[1]["label"])
    print(f"cdbn: accuracy on features {accuracy['features']:.4f}, on pixels {accuracy['pixels']:.4f}", flush=True)
    return accuracy["features"] - accuracy["pixels"]


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
