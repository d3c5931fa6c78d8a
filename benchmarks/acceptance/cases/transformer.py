"""Multi30k, German to English, by 2 + 2 layers of width 128 over words: the perplexity of the validation sentences."""

import math

from benchmarks.acceptance import Bench, Case


def perplexity(bench: Bench) -> float:
    files = {
        name: bench.raw(f"multi30k/{part}.{language}.gz")
        for name, part, language in (
            ("path", "train", "de"),
            ("target_path", "train", "en"),
            ("test_path", "val", "de"),
            ("test_target_path", "val", "en"),
        )
    }
    data = bench.data("multi30k", "translation", **files, source_vocabulary=6000, target_vocabulary=5000)
    model = (
        "model.vocabulary=5000",
        "model.source_vocabulary=6000",
        "model.source_length=32",
        "model.target_length=32",
    )
    train = ("train.steps=500", "evaluate.every_steps=0", "checkpoint.every_steps=0")
    return math.exp(bench.train("transformer", f"data.path={data}", *model, *train).metrics["loss"])


CASES = [
    Case(
        "transformer",
        "Multi30k, German to English",
        "validation perplexity per word after 500 steps",
        25,
        "lower",
        perplexity,
    )
]
