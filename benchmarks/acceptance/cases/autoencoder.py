"""Thirty numbers for a digit: better than the best linear code, PCA, whose squared error of a picture is 13.87 (the figure
of Hinton & Salakhutdinov 2006, too; their deeper net reached 3.00). And the bound in nats of Kingma & Welling 2014."""

from benchmarks.acceptance import Bench, Case


def restored(bench: Bench) -> float:
    return bench.train("autoencoder_mnist", f"data.path={bench.mnist()}").metrics["squared_error"]


def elbo(bench: Bench) -> float:
    return bench.train("vae_mnist", f"data.path={bench.mnist()}").metrics["loss"]


CASES = [
    Case("autoencoder", "MNIST", "squared error per picture, 784-512-128-30, 9 epochs", 13.87, "lower", restored),
    Case("autoencoder", "MNIST", "-ELBO in nats, 784-400-20, 5 epochs", 112, "lower", elbo),
]
