"""Ciresan et al. 2012: the average is better than its columns (0.23 % test error with 35 of them, on distorted digits)."""

from functools import cache

from benchmarks.acceptance import Bench, Case


@cache
def three_columns(bench: Bench) -> dict[str, float]:
    model = ["model.image=[1, 28, 28]", "model.widths=[0, 14, 18]", "model.columns_per_width=1"]
    steps = ["train.epochs=1", "train.global_batch=64", "evaluate.every_steps=0", "evaluate.batch=500"]
    return bench.train("mcdnn", f"data.path={bench.mnist()}", *model, *steps).metrics


def average(bench: Bench) -> float:
    return three_columns(bench)["accuracy"]


def margin(bench: Bench) -> float:
    metrics = three_columns(bench)
    return metrics["accuracy"] - metrics["column_accuracy"]


CASES = [
    Case("mcdnn", "MNIST", "test accuracy of three averaged columns after 1 epoch", 0.98, "higher", average),
    Case("mcdnn", "MNIST", "the same, less the mean accuracy of its columns", 0.001, "higher", margin),
]
