"""Ackley, Hinton & Sejnowski 1985: a machine with hidden units learns a distribution; here by its exact gradient."""

import math

from benchmarks.acceptance import Bench, Case


def bars_and_stripes(bench: Bench) -> float:
    """KL(data, model) in nats: the negative log-likelihood less the entropy of 14 equally likely patterns."""
    data = bench.data("bars-and-stripes", "synthetic", task="bars_and_stripes", length=3)
    return bench.train("bm", f"data.path={data}").metrics["loss"] - math.log(14)


CASES = [
    Case(
        "bm",
        "bars and stripes 3 x 3, 14 patterns",
        "divergence KL(data, model) after 1,500 steps, nats",
        0.15,
        "lower",
        bars_and_stripes,
    ),
]
