"""Shakespeare byte by byte: hidden bytes from both sides, 2 layers of width 96. The most frequent byte alone: 0.149."""

from functools import cache

from benchmarks.acceptance import Bench, Case, Trained


@cache
def trained(bench: Bench) -> Trained:
    text = bench.raw("tinyshakespeare/input.txt")
    data = bench.data("shakespeare-pairs", "sentence_pairs", path=text, context=64, passes=2)
    return bench.train(
        "bert", f"data.path={data}", "train.steps=1800", "evaluate.every_steps=0", "checkpoint.every_steps=0"
    )


def nats(bench: Bench) -> float:
    return trained(bench).metrics["masked_loss"]


def accuracy(bench: Bench) -> float:
    return trained(bench).metrics["masked_accuracy"]


CASES = [
    Case("bert", "tiny Shakespeare", "held-out nats per hidden character after 1,800 steps", 2.3, "lower", nats),
    Case("bert", "tiny Shakespeare", "hidden characters guessed after 1,800 steps", 0.33, "higher", accuracy),
]
