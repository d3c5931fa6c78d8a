"""LeCun et al. 1989: after 23 passes over the zip-code digits 0.14 % of the training and 5.0 % of the test set wrong."""

from functools import cache

import torch

from benchmarks.acceptance import Bench, Case, Trained


def zip_codes(bench: Bench) -> str:
    path = bench.raw("usps/usps.npz")
    return bench.data("usps", "npz", path=path, test="x_test,y_test", shape="1x16x16", scale=2, offset=-1)


@cache
def trained(bench: Bench) -> Trained:
    return bench.train("lenet1989", f"data.path={zip_codes(bench)}", "train.threads_per_worker=1")


def on_test(bench: Bench) -> float:
    return trained(bench).metrics["error"]


def on_train(bench: Bench) -> float:
    """The same run, asked for the pictures that it has learned from."""
    from distdl.data.read import Dataset

    learner, rows = trained(bench).learner(), Dataset(zip_codes(bench), "train")
    batch = {name: torch.from_numpy(column) for name, column in rows.gather(range(rows.rows)).items()}
    with torch.no_grad():
        total, count = learner.evaluate(batch)["error"]
    return float(total) / count


DATA = "USPS, 7,291 + 2,007"
CASES = [
    Case("lenet1989", DATA, "test error after 23 passes (1989: 0.050)", 0.06, "lower", on_test),
    Case("lenet1989", DATA, "training error after 23 passes (1989: 0.0014)", 0.005, "lower", on_train),
]
