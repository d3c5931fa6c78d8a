"""The Penn Treebank is not free: parses of short sentences of the Stanford Sentiment Treebank, whose phrases are labelled
with their first word. The vectors must gain on the PCFG whose parses they choose among."""

from functools import cache

from benchmarks.acceptance import Bench, Case, Trained


@cache
def trained(bench: Bench) -> Trained:
    files = {"path": bench.raw("sst/train.txt.gz"), "test_path": bench.raw("sst/test.txt.gz")}
    data = bench.data("sst-corners", "trees", **files, longest=15, vocabulary=2000, corners=9)
    return bench.train("cvg_sst", f"data.path={data}")


def gain(bench: Bench) -> float:
    metrics = trained(bench).metrics
    return metrics["f1"] - metrics["pcfg_f1"]


def found(bench: Bench) -> float:
    return trained(bench).metrics["f1"]


DATA = "Stanford Sentiment Treebank, up to 15 words, phrases labelled by their first word"
CASES = [
    Case("cvg", DATA, "labelled F1 of 50 parses reranked, above the PCFG's best", 0.1, "higher", gain),
    Case("cvg", DATA, "labelled F1 of 50 parses reranked", 0.55, "higher", found),
]
