"""LeCun et al. 1998: 12.0 % test error of one layer of units on MNIST."""

from benchmarks.acceptance import Bench, Case, Trained


def mnist(bench: Bench) -> Trained:
    return bench.train(
        "perceptron",
        f"data.path={bench.mnist()}",
        "model.inputs=[1, 28, 28]",
        "model.association=0",
        "model.rule=multiclass",
        "train.global_batch=32",
        "train.epochs=2",
        "evaluate.every_steps=0",
    )


def last(bench: Bench) -> float:
    return mnist(bench).metrics["accuracy_of_last"]


def averaged(bench: Bench) -> float:
    return mnist(bench).metrics["accuracy"]


CASES = [
    Case("perceptron", "MNIST", "test accuracy of the last weights after 2 epochs", 0.86, "higher", last),
    Case("perceptron", "MNIST", "test accuracy of the averaged weights after 2 epochs", 0.91, "higher", averaged),
]
