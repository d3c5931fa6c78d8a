"""Show and Tell on scenes of one or two MNIST digits. An independent implementation reached an exact match of 0.495 and a
BLEU-4 of 0.653 on such scenes; captions of other scenes show what a network that ignores its picture would reach."""

from functools import cache
from typing import Any

import numpy as np
import torch

from benchmarks.acceptance import Bench, Case


@cache
def captions(bench: Bench) -> tuple[Any, Any, Any]:
    """Captions written for the held-out scenes, for the scenes in another order, and the true ones."""
    from distdl.data.read import Dataset

    scenes = {"most": 2, "side": 42, "rows": 40000, "test_rows": 1000}
    path = bench.data("scenes-mnist", "scenes", path=bench.raw("mnist"), **scenes)
    data = (f"data.path={path}", "model.image=[1, 42, 42]", "train.epochs=3", "evaluate.every_steps=0")
    learner = bench.train("captioner", *data).learner()
    rows = Dataset(path, "test").gather(np.arange(1000))
    image, true = torch.from_numpy(rows["image"]), torch.from_numpy(rows["caption"]).long()[:, 1:]
    return learner.greedy(image), learner.greedy(image.roll(1, 0)), true


def exact(bench: Bench) -> float:
    found, _, true = captions(bench)
    return float((found == true).all(1).float().mean())


def control(bench: Bench) -> float:
    _, of_others, true = captions(bench)
    return float((of_others == true).all(1).float().mean())


def bleu4(bench: Bench) -> float:
    from distdl.families.captioner import bleu, spoken

    found, _, true = captions(bench)
    return bleu(spoken(found), [[caption] for caption in spoken(true)])


DATA = "scenes of 1 or 2 MNIST digits with captions"
CASES = [
    Case("captioner", DATA, "held-out captions exactly right after 3 epochs, greedy", 0.40, "higher", exact),
    Case("captioner", DATA, "BLEU-4 of held-out captions after 3 epochs, greedy", 0.60, "higher", bleu4),
    Case("captioner", DATA, "captions exactly right of another scene (a control)", 0.05, "lower", control),
]
