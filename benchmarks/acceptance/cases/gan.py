"""Radford et al. 2015 in small on MNIST, judged by this project's own LeNet-5: real test pictures score about 9 of 10."""

from functools import cache

from benchmarks.acceptance import Bench, Case

PICTURES = 5000


@cache
def judged(bench: Bench):  # type: ignore[no-untyped-def]
    """(PICTURES, 10): the class probabilities that LeNet-5 gives to generated digits."""
    import torch

    path = f"data.path={bench.mnist()}"
    judge = bench.train("lenet5", path, "train.epochs=2", "name=gan-judge").learner()
    generator = bench.train("dcgan", path).learner()
    with torch.no_grad():
        z = torch.randn(PICTURES, generator.config.latent, generator=torch.Generator().manual_seed(0))
        return judge.logits({"image": (generator.made(z) + 1) / 2}).softmax(-1)


def inception_score(bench: Bench) -> float:
    """Salimans et al. 2016: exp of the mean divergence of p(class | picture) from p(class)."""
    p = judged(bench).double()
    return float((p * (p.log() - p.mean(0).log())).nansum(-1).mean().exp())


def classes(bench: Bench) -> float:
    """Classes that more than 2 % of the pictures belong to."""
    return float((judged(bench).argmax(-1).bincount(minlength=10) > 0.02 * PICTURES).sum())


DATA = "MNIST, judged by LeNet-5"
CASES = [
    Case("gan", DATA, "inception-style score after 2,000 steps of DCGAN", 4, "higher", inception_score),
    Case("gan", DATA, "classes above 2 % of the generated pictures, of 10", 9, "higher", classes),
]
