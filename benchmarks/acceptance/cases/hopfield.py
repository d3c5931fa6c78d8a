"""Hopfield 1982; the capacity of 0.138 N patterns is from Amit, Gutfreund & Sompolinsky 1985."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from benchmarks.acceptance import Bench, Case

UNITS = 500


def load(patterns: int) -> Callable[[Bench], float]:
    """Mean overlap of the recalled with the stored patterns, a tenth of the cue's bits turned over."""

    def run(bench: Bench) -> float:
        path = bench.data(f"patterns{patterns}", "synthetic", task="patterns", rows=patterns, length=UNITS)
        one_pass = [f"name=hopfield-{patterns}", f"data.path={path}", f"train.global_batch={patterns}"]
        return bench.train("hopfield", *one_pass).metrics["overlap"]

    return run


def case(patterns: int, required: float, better: Literal["higher", "lower"]) -> Case:
    metric = f"overlap after recall from 10 % flipped bits, {patterns / UNITS:.2f} patterns a unit"
    return Case("hopfield", f"random patterns of {UNITS} units", metric, required, better, load(patterns))


CASES = [case(25, 0.99, "higher"), case(50, 0.99, "higher"), case(100, 0.7, "lower")]
