"""Word detectors on scenes of one or two MNIST digits, learned from captions alone. By chance the average precision of a
word is its frequency, 0.15 for a digit, and a region lies in the box of a digit in about one case of ten."""

from functools import cache

import numpy as np
import torch

from benchmarks.acceptance import Bench, Case

FIRST = 9  # the word zero


@cache
def measured(bench: Bench) -> tuple[float, float]:
    """Mean average precision of the ten digits' words; how often a word's surest region lies in its digit's box."""
    from sklearn.metrics import average_precision_score

    from distdl.data.read import Dataset

    scenes = {"most": 2, "side": 56, "rows": 20000, "test_rows": 1000}
    path = bench.data("scenes-mnist-56", "scenes", path=bench.raw("mnist"), **scenes)
    data = (f"data.path={path}", "model.image=[1, 56, 56]", "train.epochs=2", "evaluate.every_steps=0")
    learner = bench.train("concepts", *data).learner()
    rows = Dataset(path, "test").gather(np.arange(1000))
    caption, boxes = torch.from_numpy(rows["caption"]).long(), torch.from_numpy(rows["boxes"])
    p, regions = learner.detect(torch.from_numpy(rows["image"]))
    present = learner.present(caption)
    digits = slice(FIRST - 4, FIRST - 4 + 10)
    precision = average_precision_score(present[:, digits], p[:, digits], average="macro")
    side, hits, total = regions.shape[-1], 0, 0
    for row, words in enumerate(caption):
        named = [int(word) for word in words if word >= FIRST]
        for word, (top, left, bottom, right) in zip(named, boxes[row].tolist()):
            if named.count(word) > 1:
                continue
            at = int(regions[row, word - 4].argmax())
            y, x = (n * 56 / side for n in divmod(at, side))  # on which pixel the region is centred
            hits, total = hits + (top <= y < bottom and left <= x < right), total + 1
    return float(precision), hits / total


DATA = "scenes of 1 or 2 MNIST digits with captions"
CASES = [
    Case(
        "concepts",
        DATA,
        "mean average precision of the ten digits' words, 2 epochs",
        0.60,
        "higher",
        lambda bench: measured(bench)[0],
    ),
    Case(
        "concepts",
        DATA,
        "surest region of a word lies in its digit's box, never told",
        0.50,
        "higher",
        lambda bench: measured(bench)[1],
    ),
]
