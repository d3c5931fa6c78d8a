"""One epoch of MNIST by 784-128-10 on crossbars, and by the same net in exact arithmetic: same samples, order and rate.

Every run of a case is made once and serves the next ones, too.
"""

import functools

from benchmarks.acceptance import Bench, Case


@functools.cache
def accuracy(bench: Bench, config: str, device: str) -> float:
    told = [f"data.path={bench.mnist()}", "evaluate.every_steps=0", f"name=analog-{device}", f"model.device={device}"]
    return bench.train(config, *told).metrics["accuracy"]


def ecram(bench: Bench) -> float:
    return accuracy(bench, "analog_ecram", "ecram")


def oxide(bench: Bench) -> float:
    return accuracy(bench, "analog_ecram", "ecram_oxide")


def memtransistor(bench: Bench) -> float:
    return accuracy(bench, "analog_memtransistor", "memtransistor")


def digital(bench: Bench) -> float:
    return accuracy(bench, "analog_ecram", "digital")


def lost(bench: Bench) -> float:
    return digital(bench) - ecram(bench)


def ahead(bench: Bench) -> float:
    return digital(bench) - max(ecram(bench), oxide(bench), memtransistor(bench))


CASES = [
    Case("analog", "MNIST", "test accuracy of a lithium ECRAM crossbar after 1 epoch", 0.88, "higher", ecram),
    Case("analog", "MNIST", "accuracy that ECRAM loses against the same net in exact arithmetic", 0.02, "lower", lost),
    Case("analog", "MNIST", "test accuracy of a metal-oxide ECRAM crossbar after 1 epoch", 0.80, "higher", oxide),
    Case("analog", "MNIST", "test accuracy of a memtransistor crossbar after 1 epoch", 0.80, "higher", memtransistor),
    Case("analog", "MNIST", "accuracy of exact arithmetic above that of the best device", 0.0, "higher", ahead),
]
