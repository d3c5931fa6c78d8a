"""MNIST row by row, and Shakespeare character by character."""

from benchmarks.acceptance import Bench, Case
from benchmarks.acceptance.shakespeare import shakespeare

ROWS = ("name=gru-rows", "model.task=rows", "model.inputs=28", "model.steps=28", "model.units=128", "model.embedding=0")


def mnist(bench: Bench) -> float:
    data = (f"data.path={bench.mnist()}", "train.global_batch=64", "evaluate.every_steps=0")
    length = ("train.steps=null", "train.epochs=3", "optimizer.lr=1e-3")
    return bench.train("gru", *data, *ROWS, *length).metrics["accuracy"]


def text(bench: Bench) -> float:
    data = (f"data.path={shakespeare(bench, 64)}", "model.inputs=128", "evaluate.every_steps=0", "evaluate.batch=256")
    return bench.train("gru", "name=gru-text", *data, "train.steps=1500").metrics["loss"]


CASES = [
    Case("gru", "MNIST, 28 rows of 28 pixels", "test accuracy after 3 epochs", 0.94, "higher", mnist),
    Case("gru", "tiny Shakespeare", "held-out nats per character, 192 units, 1,500 steps", 1.80, "lower", text),
]
