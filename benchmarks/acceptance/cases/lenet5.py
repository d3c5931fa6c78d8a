"""LeCun et al. 1998: 0.95 % test error on MNIST after 20 passes."""

from benchmarks.acceptance import Bench, Case


def modern(bench: Bench) -> float:
    return bench.train("lenet5", f"data.path={bench.mnist()}").metrics["accuracy"]


def of_1998(bench: Bench) -> float:
    return bench.train("lenet5_1998", f"data.path={bench.mnist()}").metrics["accuracy"]


CASES = [
    Case("lenet5", "MNIST", "test accuracy after 3 epochs", 0.98, "higher", modern),
    Case("lenet5", "MNIST", "test accuracy after 3 epochs, form of 1998", 0.98, "higher", of_1998),
]
