"""MNIST row by row: chunks of 7 rows, then the 4 chunks."""

from benchmarks.acceptance import Bench, Case

MODEL = ("model.inputs=28", "model.steps=28", "model.units=128", "model.chunk=7")


def mnist(bench: Bench) -> float:
    length = ("train.epochs=2", "optimizer.lr=1e-3", "evaluate.every_steps=0")
    return bench.train("hrnn", f"data.path={bench.mnist()}", *MODEL, *length).metrics["accuracy"]


CASES = [Case("hrnn", "MNIST, 28 rows of 28 pixels", "test accuracy after 2 epochs", 0.90, "higher", mnist)]
