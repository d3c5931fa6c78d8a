"""784-256-10 leaky integrate-and-fire units, 15 time steps, the picture as a constant current. A plain network of the same
shape reaches 0.98; spiking ones trained by back-propagation 0.988 with more units and epochs (Lee et al. 2016)."""

from benchmarks.acceptance import Bench, Case


def digits(bench: Bench) -> float:
    return bench.train("snn", f"data.path={bench.mnist()}", "evaluate.every_steps=0").metrics["accuracy"]


CASES = [Case("snn", "MNIST", "test accuracy of 784-256-10 after 3 epochs, 15 time steps", 0.965, "higher", digits)]
