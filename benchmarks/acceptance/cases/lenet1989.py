"""LeCun et al. 1989: after 23 passes over the zip-code digits 0.14 % of the training and 5.0 % of the test set wrong."""

import json
from functools import cache

import torch

from benchmarks.acceptance import Bench, Case, Trained


def zip_codes(bench: Bench) -> str:
    path = bench.raw("usps/usps.npz")
    return bench.data("usps", "npz", path=path, test="x_test,y_test", shape="1x16x16", scale=2, offset=-1)


@cache
def trained(bench: Bench, seed: int) -> Trained:
    name = f"name=lenet1989-{seed}"
    return bench.train("lenet1989", name, f"data.path={zip_codes(bench)}", "train.threads_per_worker=1", f"seed={seed}")


def on_test(bench: Bench) -> float:
    """Two seeds differ by up to 0.004, which is 8 of the 2,007 pictures."""
    return sum(trained(bench, seed).metrics["error"] for seed in range(3)) / 3


def slowest_s(bench: Bench) -> float:
    """Seconds of training and evaluation of the slowest of the three runs, without the start of Python."""
    seconds = [json.loads((trained(bench, seed).folder / "summary.json").read_text())["seconds"] for seed in range(3)]
    return max(sum(s.values()) - s["start-up"] for s in seconds)


def on_train(bench: Bench) -> float:
    """The first of these runs, asked for the pictures that it has learned from."""
    from distdl.data.read import Dataset

    learner, rows = trained(bench, 0).learner(), Dataset(zip_codes(bench), "train")
    batch = {name: torch.from_numpy(column) for name, column in rows.gather(range(rows.rows)).items()}
    with torch.no_grad():
        total, count = learner.evaluate(batch)["error"]
    return float(total) / count


DATA = "USPS, 7,291 + 2,007"
CASES = [
    Case("lenet1989", DATA, "test error after 23 passes, mean of three seeds (1989: 0.050)", 0.06, "lower", on_test),
    Case("lenet1989", DATA, "training error after 23 passes (1989: 0.0014)", 0.005, "lower", on_train),
    Case("lenet1989", DATA, "seconds of training, the slowest of the three", 60, "lower", slowest_s),
]
