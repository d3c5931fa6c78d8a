"""Two convolutions with batch normalisation: past LeNet-5 in its modern form (0.98 after 3 epochs) after two epochs."""

from benchmarks.acceptance import Bench, Case


def mnist(bench: Bench) -> float:
    model = ["model.image=[1, 28, 28]", "model.dense=[128]"]
    steps = ["train.epochs=2", "train.global_batch=128", "evaluate.every_steps=0", "evaluate.batch=500"]
    return bench.train("cnn", f"data.path={bench.mnist()}", *model, *steps).metrics["accuracy"]


CASES = [Case("cnn", "MNIST", "test accuracy after 2 epochs", 0.985, "higher", mnist)]
