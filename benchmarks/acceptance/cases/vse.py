"""Retrieval among 1,000 held-out pairs, in both directions. Kiros et al. 2014 on 1,000 pictures of Flickr30K: recall@1 of
23.0 % for sentences given a picture and 16.8 % for pictures, whose median rank is 8. Chance: 0.1 %, 500."""

from functools import cache

import numpy as np
import torch

from benchmarks.acceptance import Bench, Case


@cache
def places(bench: Bench, objective: str) -> list[torch.Tensor]:
    """Rank of the right caption for each picture, and of the right picture for each caption, among 1,000."""
    from distdl.data.read import Dataset
    from distdl.families.vse import ranks

    scenes = {"least": 2, "most": 3, "side": 56, "rows": 40000, "test_rows": 1000, "contrasts": 9}
    path = bench.data("scene-pairs-mnist", "scenes", path=bench.raw("mnist"), **scenes)
    train = ("model.image=[1, 56, 56]", "train.epochs=1", "evaluate.every_steps=0", f"model.objective={objective}")
    learner = bench.train("vse", f"name=vse-{objective}", f"data.path={path}", *train).learner()
    rows = Dataset(path, "test").gather(np.arange(1000))
    captions = torch.from_numpy(rows["caption"]).long()
    with torch.no_grad():
        scores = learner.of_images(torch.from_numpy(rows["image"])) @ learner.of_captions(captions).T
    right = (captions[:, None] == captions).all(-1)  # scenes of the same caption are as right as the own one
    found = [ranks(scores, right), ranks(scores.T, right)]
    for side, place in zip(("captions", "pictures"), found):
        recall = [f"{float((place <= k).float().mean()):.3f}" for k in (1, 5, 10)]
        print(f"vse, {objective}: recall@1, 5, 10 of {side} {recall}, median rank {float(place.median())}", flush=True)
    return found


def recall(bench: Bench, side: int, objective: str = "ranking") -> float:
    return float((places(bench, objective)[side] == 1).float().mean())


def median(bench: Bench) -> float:
    return float(places(bench, "ranking")[1].float().median())


DATA = "1,000 scenes of 2 or 3 MNIST digits and captions"
CASES = [
    Case("vse", DATA, "recall@1 of captions, ranking loss, 1 epoch", 0.23, "higher", lambda bench: recall(bench, 0)),
    Case("vse", DATA, "recall@1 of pictures, ranking loss, 1 epoch", 0.168, "higher", lambda bench: recall(bench, 1)),
    Case("vse", DATA, "median rank of pictures, ranking loss, 1 epoch", 8, "lower", median),
    Case("vse", DATA, "recall@1 of captions, InfoNCE, 1 epoch", 0.23, "higher", lambda b: recall(b, 0, "infonce")),
]
