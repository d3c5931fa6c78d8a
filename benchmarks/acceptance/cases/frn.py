"""Williams & Zipser 1989: the exclusive or of two bits, two ticks later."""

from benchmarks.acceptance import Bench, Case


def xor(bench: Bench) -> float:
    path = bench.data("delayed_xor", "synthetic", task="delayed_xor", rows=20_000, test_rows=1000, length=16)
    return bench.train("frn", f"data.path={path}", "train.steps=null", "train.epochs=1").metrics["accuracy"]


METRIC = "test accuracy after 20,000 sequences, by real-time recurrent learning"
CASES = [Case("frn", "sequential XOR with delay 2", METRIC, 0.99, "higher", xor)]
