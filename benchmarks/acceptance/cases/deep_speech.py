"""Strings of one to three spoken digits (FSDD, one speaker each), written in letters; no language model."""

from functools import cache

from benchmarks.acceptance import Bench, Case


@cache
def strings(bench: Bench) -> dict[str, float]:
    options = {"frames": 160, "longest": 3, "passes": 3, "spell": True}
    data = bench.data("fsdd-strings", "speech", path=bench.raw("fsdd/recordings.zip"), **options)
    told = (f"data.path={data}", "data.prepare=null", "evaluate={every_steps: 0, batch: 100}")
    return bench.train("deep_speech", *told, "train.steps=1500", "optimizer.lr=2e-3", "model.stride=2").metrics


def letters(bench: Bench) -> float:
    return strings(bench)["label_error"]


def words(bench: Bench) -> float:
    return strings(bench)["word_error"]


FSDD = "FSDD, strings of 1 to 3 spoken digits"
CASES = [
    Case("deep_speech", FSDD, "letter error rate of the best path after 1,500 steps", 0.10, "lower", letters),
    Case("deep_speech", FSDD, "word error rate of the best path after 1,500 steps", 0.20, "lower", words),
]
