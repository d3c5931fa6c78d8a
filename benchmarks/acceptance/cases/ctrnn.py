"""Sunspots as in Weigend, Huberman & Rumelhart 1990, 1921-1955; and MNIST row by row."""

from __future__ import annotations

import numpy as np

from benchmarks.acceptance import Bench, Case

PERSISTENCE = 0.382  # next year is as this year, on the same 35 years


def sunspots(bench: Bench) -> float:
    """Squared error over the variance of the 35 test values."""
    from distdl.data.read import Dataset

    options = {"columns": "Sunspots", "average": 12, "steps": 54, "lookback": 20, "stride": 1, "standardise": True}
    raw = bench.raw("timeseries/monthly-sunspots.csv")
    path = bench.data("sunspots", "series", path=raw, train_values=172, test_values=35, **options)
    loss = bench.train("ctrnn_sunspots", f"data.path={path}").metrics["loss"]
    asked_for = Dataset(path, "test").gather(np.arange(1))["x"][0, 20:]
    return loss / float(asked_for.var())


def mnist(bench: Bench) -> float:
    size = ["model.inputs=28", "model.steps=28", "model.units=128", "train.epochs=3", "optimizer.lr=1e-2"]
    return bench.train("ctrnn", "name=ctrnn-mnist", f"data.path={bench.mnist()}", *size).metrics["accuracy"]


CASES = [
    Case("ctrnn", "yearly sunspots", "one-step NMSE of 1921-1955", PERSISTENCE / 2, "lower", sunspots),
    Case("ctrnn", "MNIST, row by row", "test accuracy after 3 epochs", 0.92, "higher", mnist),
]
