"""Finn, Abbeel & Levine 2017, section 5.1: after a few steps on ten points a wave is known; joint training has the mean."""

from functools import cache

from benchmarks.acceptance import Bench, Case


@cache
def errors(bench: Bench) -> tuple[float, float]:
    """Mean squared error on new waves after ten steps: meta-learned, and from the same network trained on all jointly."""
    data = [f"data.path={bench.data('sinusoids', 'sinusoids')}", "evaluate={every_steps: 0, batch: 300}"]
    meta = bench.train("maml", *data).metrics["query_error"]
    joint = bench.train("maml", "name=maml-joint", "model.inner_steps=0", *data).metrics["query_error"]
    print(f"maml: error {meta:.4f} after ten steps, {joint:.4f} from joint training", flush=True)
    return meta, joint


CASES = [
    Case(
        "maml",
        "sine waves, ten points of each",
        "mean squared error of new waves after ten steps, 8,000 meta-steps",
        0.5,
        "lower",
        lambda bench: errors(bench)[0],
    ),
    Case(
        "maml",
        "sine waves, ten points of each",
        "the same, as a share of that from joint training",
        0.3,
        "lower",
        lambda bench: errors(bench)[0] / errors(bench)[1],
    ),
]
