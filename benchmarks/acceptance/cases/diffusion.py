"""Generated 8x8 digits against real ones: their distribution as a whole, and each by a classifier of real digits."""

from functools import cache
from typing import Any, NamedTuple

from benchmarks.acceptance import Bench, Case

PICTURES = 1797


class Judged(NamedTuple):
    generated: Any
    """(PICTURES, 64) in -1..1."""
    real: Any
    """(1797, 64): all of scikit-learn's digits."""
    probabilities: Any
    """(PICTURES, 10): what a perceptron trained on the real digits says of the generated ones."""


@cache
def judged(bench: Bench) -> Judged:
    import torch
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    learner = bench.train("diffusion", f"data.path={bench.data('digits', 'digits')}").learner()
    torch.manual_seed(0)
    generated = learner.denoised(PICTURES).flatten(1).double().numpy()
    raw = load_digits()
    real = raw.data / 8 - 1
    judge = MLPClassifier((128,), max_iter=200, random_state=0).fit(real, raw.target)
    return Judged(generated, real, judge.predict_proba(generated))


def mmd2(a: Any, b: Any, bandwidth: float) -> float:
    """Gretton et al. 2012, eq. 3: the unbiased squared maximum mean discrepancy under a Gaussian kernel."""
    from sklearn.metrics.pairwise import rbf_kernel

    def within(x: Any) -> float:
        k = rbf_kernel(x, gamma=1 / (2 * bandwidth**2))
        return float((k.sum() - len(x)) / (len(x) * (len(x) - 1)))

    return within(a) + within(b) - 2 * float(rbf_kernel(a, b, gamma=1 / (2 * bandwidth**2)).mean())


def discrepancy(bench: Bench) -> float:
    """MMD^2 of the generated digits from the real ones, as a share of that of Gaussian noise."""
    import numpy as np
    from sklearn.metrics import pairwise_distances

    generated, real, _ = judged(bench)
    bandwidth = float(np.median(pairwise_distances(real)))
    gaussian = np.random.default_rng(0).standard_normal(generated.shape)
    return mmd2(generated, real, bandwidth) / mmd2(gaussian, real, bandwidth)


def confidence(bench: Bench) -> float:
    """Mean of the highest class probability."""
    return float(judged(bench).probabilities.max(1).mean())


def rarest(bench: Bench) -> float:
    """Share of the class that is generated least often."""
    import numpy as np

    return float(np.bincount(judged(bench).probabilities.argmax(1), minlength=10).min() / PICTURES)


DATA = "digits 8x8"
CASES = [
    Case("diffusion", DATA, "MMD² to the data, share of that of Gaussian noise", 0.1, "lower", discrepancy),
    Case("diffusion", DATA, "confidence of a classifier of real digits", 0.85, "higher", confidence),
    Case("diffusion", DATA, "share of the rarest of ten classes", 0.03, "higher", rarest),
]
