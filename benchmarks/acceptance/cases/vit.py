"""A Vision Transformer with 16 patches of 7 x 7 pixels on MNIST, without augmentation."""

from benchmarks.acceptance import Bench, Case


def digits(bench: Bench) -> float:
    return bench.train("vit", f"data.path={bench.mnist()}", "train.epochs=3", "evaluate.every_steps=0").metrics[
        "accuracy"
    ]


CASES = [
    Case("vit", "MNIST", "test accuracy after 3 epochs, patches of 7 x 7, width 64, 3 layers", 0.95, "higher", digits)
]
