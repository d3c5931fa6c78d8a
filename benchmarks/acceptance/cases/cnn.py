"""Two convolutions with batch normalisation: past LeNet-5 in its modern form (0.98 after 3 epochs) after two epochs.

The walks of docs/walks.md: more than the linear model of benchmarks/acceptance/walks.py (0.327 of pictures, 0.933 of
recordings), and than 2 and 6 passes came to (0.509 and 0.950); all passes come to 1.000 of the 60 recordings.
"""

from benchmarks.acceptance import Bench, Case
from benchmarks.acceptance.walks import walk_figure


def mnist(bench: Bench) -> float:
    model = ["model.image=[1, 28, 28]", "model.dense=[128]"]
    steps = ["train.epochs=2", "train.global_batch=128", "evaluate.every_steps=0", "evaluate.batch=500"]
    return bench.train("cnn", f"data.path={bench.mnist()}", *model, *steps).metrics["accuracy"]


CASES = [
    Case("cnn", "MNIST", "test accuracy after 2 epochs", 0.985, "higher", mnist),
    Case(
        "cnn",
        "pictures",
        "test accuracy of the walk: pictures",
        0.55,
        "higher",
        walk_figure("A folder of pictures"),
    ),
    Case(
        "cnn",
        "recordings",
        "test accuracy of the walk: recordings",
        0.951,
        "higher",
        walk_figure("A folder of recordings"),
    ),
]
