"""The protocol of the cat neuron, on digits: no labels are learned from; then for each digit the neuron that tells it best
from the rest, and its threshold, are looked for among 10,000 training pictures, and judged on the test pictures. "Never
this digit" is right 90 % of the time, in the mean of ten. And the loss on photographs, against that of the filters before
they learn."""

import zipfile
from functools import cache

import numpy as np
import torch

from benchmarks.acceptance import Bench, Case
from distdl.data.read import Dataset
from distdl.families import build
from distdl.families.distbelief_ae import neuron

DIGITS = {"image": [1, 28, 28], "stages": 1, "maps": 64, "field": 24, "stride": 2, "pool": 2, "window": 3}
PHOTOGRAPHS = {"image": [3, 32, 32], "stages": 2, "maps": 8, "field": 7, "stride": 2, "pool": 2, "window": 3}


def options(model: dict[str, object]) -> str:
    return "model={family: distbelief_ae, " + ", ".join(f"{key}: {value}" for key, value in model.items()) + "}"


def rows(data: str, split: str, count: int) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(c) for name, c in Dataset(data, split).gather(np.arange(count)).items()}


def told_by_one(learner: torch.nn.Module, data: str) -> float:
    """Accuracy of the best neuron for a digit, mean over the ten digits."""
    answers = []
    for split in ("train", "test"):
        batch = rows(data, split, 10_000)
        parts = [learner.outputs({"image": batch["image"][i : i + 500]}) for i in range(0, 10_000, 500)]  # type: ignore[operator]
        answers.append((torch.cat(parts), batch["label"]))
    (outputs, label), (held_out, truth) = answers
    right = []
    for digit in range(10):
        found, threshold = neuron(outputs, label == digit)
        right.append(((held_out[:, found] > threshold) == (truth == digit)).float().mean())
    return float(torch.stack(right).mean())


@cache
def every_digit(bench: Bench, learned: bool) -> float:
    data = bench.mnist()
    if not learned:
        torch.manual_seed(0)
        return told_by_one(build({"family": "distbelief_ae", **DIGITS}).eval(), data)
    train = ("train={global_batch: 100, steps: 400, clip_norm: 10.0}", "evaluate.every_steps=0")
    run = bench.train("distbelief_ae", "name=distbelief-mnist", f"data.path={data}", options(DIGITS), *train)
    return told_by_one(run.learner(), data)


def neurons(bench: Bench) -> float:
    return every_digit(bench, True)


def gain(bench: Bench) -> float:
    return every_digit(bench, True) - every_digit(bench, False)


def photographs(bench: Bench) -> float:
    raw = bench.scratch / "cifar10"
    if not raw.exists():
        with zipfile.ZipFile(bench.raw("cifar10_jpg_subset/cifar10_subset.zip")) as archive:
            archive.extractall(raw)
    data = bench.data("cifar10", "images", path=str(raw / "train"), test_path=str(raw / "test"))
    train = ("train={global_batch: 50, steps: 400, clip_norm: 10.0}", "evaluate={every_steps: 0, batch: 250}")
    run = bench.train("distbelief_ae", "name=distbelief-cifar", f"data.path={data}", options(PHOTOGRAPHS), *train)
    torch.manual_seed(0)
    batch = rows(data, "test", 1000)
    before = build({"family": "distbelief_ae", **PHOTOGRAPHS}).eval().evaluate({**batch, "id": batch["label"]})
    now = run.metrics
    for part in ("squared_error_1", "squared_error_2"):
        total, count = before[part]
        assert now[part] < float(total) / count, part
    return now["loss"] / (float(before["loss"].total) / before["loss"].count)


CASES = [
    Case("distbelief_ae", "MNIST", "accuracy of the best neuron for a digit, mean of ten", 0.91, "higher", neurons),
    Case("distbelief_ae", "MNIST", "the same, above that of random filters", 0.005, "higher", gain),
    Case(
        "distbelief_ae", "CIFAR-10, 9,000 / 1,000 of it", "loss, over that before learning", 0.5, "lower", photographs
    ),
]
