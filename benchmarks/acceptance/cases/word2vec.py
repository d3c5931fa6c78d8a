"""Vectors of the words of 620,000 words: WikiText-2 (valid and test), the Lee news corpus, Shakespeare.

Asked is 90 % of what gensim 4.4.0 reaches on the same text (skip-gram, width 100, window 5, 5 noise words, 5 passes), means
of three seeds: a Spearman correlation of 0.148 on WordSim-353, of which a third of the pairs has a rare word; and 0.609 of
the five nearest words of a weekday, a month or a number are of its kind, too.
"""

from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.acceptance import Absent, Bench, Case

KINDS = (
    "monday tuesday wednesday thursday friday saturday sunday",
    "january february march april may june july august september october november december",
    "two three four five six seven eight nine ten eleven twelve",
)
SEEDS = (0, 1, 2)


def of_gensim(name: str) -> str:
    """A file that comes with gensim."""
    try:
        from gensim.test.utils import datapath
    except ImportError as error:
        raise Absent("gensim is not installed, which brings the Lee corpus and WordSim-353") from error
    return str(datapath(name))


@cache
def trained(bench: Bench) -> tuple[list[str], list[np.ndarray]]:
    """The words, and for each seed their vectors of length 1."""
    from distdl.data.manifest import read_manifest

    texts = [bench.raw(f"wikitext2_validtest/{part}.txt.gz") for part in ("valid", "test")]
    texts += [of_gensim("lee_background.cor"), bench.raw("tinyshakespeare/input.txt")]
    data = bench.data("words", "words", path=",".join(texts), context=128, test_fraction=0)
    words = list(read_manifest(data).info["words"])
    vectors = []
    for seed in SEEDS:
        model = f"model.vocabulary={len(words)}"
        run = bench.train("word2vec", f"data.path={data}", "data.eval_split=null", model, f"seed={seed}")
        weights = run.learner().words.weight.detach().numpy()
        vectors.append(weights / np.linalg.norm(weights, axis=1, keepdims=True))
    return words, vectors


def correlation(bench: Bench) -> float:
    """Spearman's, of the cosine of two words and how related people find them."""
    from scipy.stats import spearmanr

    words, vectors = trained(bench)
    number = {word: i for i, word in enumerate(words)}
    lines = Path(of_gensim("wordsim353.tsv")).read_text(encoding="utf-8").lower().splitlines()
    rated = [line.split("\t") for line in lines if not line.startswith("#")]
    pairs = [(number[a], number[b], float(told)) for a, b, told in rated if a in number and b in number]
    first, second, told = (np.array(column) for column in zip(*pairs))
    return float(np.mean([spearmanr((v[first] * v[second]).sum(1), told)[0] for v in vectors]))


def kinds(bench: Bench) -> float:
    """Share of the five nearest words of a word that are of its kind."""
    words, vectors = trained(bench)
    number, hits = {word: i for i, word in enumerate(words)}, []
    for kind in KINDS:
        members = [number[word] for word in kind.split() if word in number]
        for v in vectors:
            near = (-(v[members] @ v.T)).argsort(axis=1)[:, 1:6]  # the nearest is the word itself
            hits += [np.isin(row, members).mean() for row in near]
    return float(np.mean(hits))


TEXT = "620,000 words"
CASES = [
    Case("word2vec", TEXT, "Spearman correlation on WordSim-353, mean of 3 seeds", 0.134, "higher", correlation),
    Case("word2vec", TEXT, "precision of 5 neighbours in 3 kinds, mean of 3 seeds", 0.548, "higher", kinds),
]
