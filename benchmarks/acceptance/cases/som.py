"""MiniSom reaches a quantisation error of 1.33 and a topographic error of 0.018 on the same data and grid."""

from benchmarks.acceptance import Bench, Case


def digits(bench: Bench) -> dict[str, float]:
    """Pixels from 0 to 1; measured on the held-out fifth."""
    return bench.train("som", f"data.path={bench.data('digits', 'digits')}").metrics


def quantisation(bench: Bench) -> float:
    return digits(bench)["quantisation_error"]


def topographic(bench: Bench) -> float:
    return digits(bench)["topographic_error"]


CASES = [
    Case("som", "8x8 digits", "quantisation error of a map of 15 x 15", 1.45, "lower", quantisation),
    Case("som", "8x8 digits", "topographic error of a map of 15 x 15", 0.05, "lower", topographic),
]
