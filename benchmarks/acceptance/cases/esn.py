"""Jaeger 2001; Jaeger & Haas 2004: a free-running reservoir follows the Mackey-Glass equation."""

from benchmarks.acceptance import Bench, Case


def mackey_glass(bench: Bench) -> float:
    options = {"steps": 2000, "lookback": 1501, "train_values": 2001, "test_values": 500}
    raw = bench.raw("mackey_glass/MackeyGlass_t17.txt")
    path = bench.data("mackey_glass", "series", path=raw, **options)
    return bench.train("esn_mackey_glass", f"data.path={path}").metrics["generated"]


METRIC = "mean squared error of 500 values generated after 1,900 learned"
CASES = [Case("esn", "Mackey-Glass series, tau 17", METRIC, 1e-4, "lower", mackey_glass)]
