"""MNIST row by row, and Shakespeare character by character."""

from benchmarks.acceptance import Bench, Case
from benchmarks.acceptance.shakespeare import shakespeare

ROWS = ("name=elman-rows", "model.inputs=28", "model.steps=28", "train.epochs=3", "optimizer.lr=1e-3")
TEXT = (
    "name=elman-text",
    "model.task=tokens",
    "model.inputs=128",
    "model.steps=64",
    "model.units=192",
    "model.embedding=64",
)


def mnist(bench: Bench) -> float:
    return bench.train("elman", f"data.path={bench.mnist()}", *ROWS, "evaluate.every_steps=0").metrics["accuracy"]


def text(bench: Bench) -> float:
    data = f"data.path={shakespeare(bench, 64)}"
    length = ("train.epochs=null", "train.steps=1000", "train.global_batch=32", "evaluate.every_steps=0")
    return bench.train("elman", data, *TEXT, *length, "evaluate.batch=256").metrics["loss"]


CASES = [
    Case("elman", "MNIST, 28 rows of 28 pixels", "test accuracy after 3 epochs", 0.88, "higher", mnist),
    Case("elman", "tiny Shakespeare", "held-out nats per character, 192 units, 1,000 steps", 1.95, "lower", text),
]
