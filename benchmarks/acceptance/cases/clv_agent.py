"""A market with the buying habits of CDNOW's 2,357 customers, of which all months are known by value iteration."""

from functools import cache

import numpy as np
import torch

from benchmarks.acceptance import Bench, Case
from distdl.data.generators.customers import Market, Options, market


@cache
def learned(bench: Bench) -> tuple[Market, float]:
    """The market, and the discounted profit of a new customer under the agent's policy, dollars."""
    options = Options(path=bench.raw("cdnow/CDNOW_sample.txt"), customers=20_000)
    data = bench.data("cdnow", "customers", path=options.path, customers=options.customers)
    learner = bench.train("clv_agent", f"data.path={data}", "evaluate.every_steps=0").learner()
    chain = market(options)
    action = learner.values(torch.from_numpy(chain.states)).argmax(-1).numpy()  # (S,)
    return chain, chain.profit(np.array(options.spend)[action])


def share_of_best(bench: Bench) -> float:
    chain, profit = learned(bench)
    return profit / float(chain.start @ chain.best().max(1))


def gain(bench: Bench) -> float:
    """Above the best of mailing nobody, everybody a letter, or everybody a catalogue."""
    chain, profit = learned(bench)
    return profit / max(chain.profit(np.full(len(chain.states), spend)) for spend in chain.options.spend)


CASES = [
    Case(
        "clv_agent",
        "CDNOW, with mailings that are simulated",
        "discounted profit, of that of value iteration",
        0.95,
        "higher",
        share_of_best,
    ),
    Case(
        "clv_agent",
        "CDNOW, with mailings that are simulated",
        "the same, over the best mailing that is alike for all",
        1.05,
        "higher",
        gain,
    ),
]
