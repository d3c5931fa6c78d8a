"""Giles et al. 1992: strings of a regular grammar, judged far beyond the lengths learned; and MNIST row by row."""

from benchmarks.acceptance import Bench, Case


def tomita(bench: Bench) -> float:
    path = bench.data("tomita4", "synthetic", task="tomita4", length=10, test_rows=1000)
    return bench.train("rnn2", f"data.path={path}").metrics["accuracy"]


def mnist(bench: Bench) -> float:
    size = ["task=rows", "inputs=28", "steps=28", "units=48", "classes=10", "activation=tanh", "scale=0.2"]
    model = [f"model.{setting}" for setting in size]
    train = ["train.steps=null", "train.epochs=3", "optimizer.lr=1e-3"]
    return bench.train("rnn2", "name=rnn2-mnist", f"data.path={bench.mnist()}", *model, *train).metrics["accuracy"]


STRINGS = "accuracy on strings of 11-30 symbols, trained on those of up to 10"
CASES = [
    Case("rnn2", "Tomita grammar 4", STRINGS, 0.97, "higher", tomita),
    Case("rnn2", "MNIST, row by row", "test accuracy after 3 epochs", 0.94, "higher", mnist),
]
