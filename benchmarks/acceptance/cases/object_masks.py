"""Masks of the boxes of one or two MNIST digits, by 1.5 million parameters. The reference is the mean mask of
training scenes, the best that can be drawn without looking."""

from functools import cache

import numpy as np
import torch

from benchmarks.acceptance import Bench, Case


@cache
def measured(bench: Bench) -> tuple[float, float]:
    """Mean overlap of objects and the boxes read off, and the error of the masks relative to that of the mean mask."""
    from distdl.data.read import Dataset
    from distdl.families.object_masks import drawn

    scenes = {"most": 2, "side": 56, "rows": 20000, "test_rows": 500}
    path = bench.data("scene-boxes-mnist", "scenes", path=bench.raw("mnist"), **scenes)
    model = ("model.image=[1, 56, 56]", "model.grid=24", "model.sides=[2, 12]")
    run = bench.train(
        "object_masks", f"data.path={path}", *model, "train.epochs=2", "evaluate={every_steps: 0, batch: 50}"
    )
    learner = run.learner()
    train, test = (torch.from_numpy(Dataset(path, s).gather(np.arange(500))["boxes"]) for s in ("train", "test"))
    average = drawn(learner.cells(train), 24).mean(0, keepdim=True).expand(500, -1, -1, -1)
    blind = learner.losses(average, test).mean()
    by_chance = learner.matched(average[:50], test[:50]).mean()
    print(f"object_masks: the mean mask's error {blind:.4f}, its boxes' overlap {by_chance:.3f}", flush=True)
    return run.metrics["iou"], run.metrics["loss"] / float(blind)


DATA = "scenes of 1 or 2 MNIST digits with boxes"
CASES = [
    Case(
        "object_masks",
        DATA,
        "intersection over union of held-out objects and boxes read off, how many told, 2 epochs",
        0.60,
        "higher",
        lambda bench: measured(bench)[0],
    ),
    Case(
        "object_masks",
        DATA,
        "weighted squared error of held-out masks, relative to the mean mask's",
        0.50,
        "lower",
        lambda bench: measured(bench)[1],
    ),
]
