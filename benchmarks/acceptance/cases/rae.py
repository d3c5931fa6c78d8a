"""Phrases of the Stanford Sentiment Treebank. Half of the error of an untrained autoencoder, for which a phrase is about
the mean of its words, must go. And what is near must be alike: the phrase of the training part with the smallest angle to
one that is not neutral has its sign more often than one taken at random (as many of both signs: half of the times)."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.acceptance import Bench, Case, Trained

NEUTRAL = 2


def path(bench: Bench) -> str:
    files = {"path": bench.raw("sst/train.txt.gz"), "test_path": bench.raw("sst/test.txt.gz")}
    return bench.data("sst-2000", "trees", **files, vocabulary=2000)


@cache
def trained(bench: Bench) -> Trained:
    return bench.train("rae_sst", f"data.path={path(bench)}", "evaluate.every_steps=0")


def batches(bench: Bench, split: str, every: int) -> Iterator[dict[str, Tensor]]:
    from distdl.data.read import Dataset

    whole = Dataset(path(bench), split)
    for rows in np.split(chosen := np.arange(0, whole.rows, every), range(200, len(chosen), 200)):
        yield {name: torch.from_numpy(column.copy()) for name, column in whole.gather(rows).items()}


def gone(bench: Bench) -> float:
    """The share of the error before training."""
    run = trained(bench)
    learner, errors = run.learner(), []
    torch.manual_seed(0)
    fresh = type(learner)(learner.config).eval()
    with torch.no_grad():
        errors = [fresh.outputs(batch)[2] for batch in batches(bench, "test", 1)]
    return 1 - run.metrics["error"] / float(torch.cat(errors).mean())


@torch.no_grad()
def phrases(bench: Bench, learner: Any, split: str) -> tuple[Tensor, Tensor]:
    """Directions of phrases that are not neutral (n, d), and whether they are positive (n,): of every fifth sentence."""
    found, positive = [], []
    for batch in batches(bench, split, 5):
        trees, nodes, _ = learner.outputs(batch)
        label = trees.of(batch["label"])
        kept = (label != NEUTRAL) & (torch.arange(len(nodes)) >= trees.sizes[0])
        found.append(F.normalize(nodes[kept], dim=-1))
        positive.append(label[kept] > NEUTRAL)
    return torch.cat(found), torch.cat(positive)


def alike(bench: Bench) -> float:
    """How much more often than by chance the nearest phrase has the same sign."""
    learner = trained(bench).learner()
    (known, signs), (asked, truth) = (phrases(bench, learner, split) for split in ("train", "test"))
    nearest = torch.cat([(part @ known.T).argmax(1) for part in asked.split(1000)])
    p, q = float(signs.float().mean()), float(truth.float().mean())
    return float((signs[nearest] == truth).float().mean()) - (p * q + (1 - p) * (1 - q))


METRICS = (
    "share of the error of restored words that training removes",
    "nearest phrase of the same sign, above chance",
)
CASES = [
    Case("rae", "Stanford Sentiment Treebank, 2,000 words", METRICS[0], 0.5, "higher", gone),
    Case("rae", "Stanford Sentiment Treebank, 2,000 words", METRICS[1], 0.03, "higher", alike),
]
