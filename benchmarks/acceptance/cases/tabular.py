"""Example 6.6 of Sutton & Barto 2018 and the random walk of Sutton 1988, against what is known exactly."""

import numpy as np

from benchmarks.acceptance import Bench, Case


def episodes(bench: Bench) -> str:
    return f"data.path={bench.data('episodes', 'synthetic', task='episodes', rows=1000, test_rows=100)}"


def q_learning(bench: Bench) -> float:
    return bench.train("q_learning", episodes(bench)).metrics["return"]


def sarsa(bench: Bench) -> float:
    """How much better SARSA fares than Q-learning where a tenth of all actions is random."""
    data = episodes(bench)
    safe = bench.train("sarsa", data).metrics["return"]
    bold = bench.train("q_learning", data, "name=q_learning_online", "model.evaluate_epsilon=0.1").metrics["return"]
    return safe - bold


def td(bench: Bench) -> float:
    values = bench.train("td", episodes(bench)).learner().values[:, 0].numpy()
    return float(np.sqrt(np.mean((values - np.arange(1, 6) / 6) ** 2)))


CASES = [
    Case("tabular", "CliffWalking-v1", "return of Q-learning, 100 episodes", -13, "higher", q_learning),
    Case("tabular", "CliffWalking-v1", "return of SARSA above Q-learning's, 10 % random actions", 5, "higher", sarsa),
    Case("tabular", "random walk of 5 states", "RMS error of TD(0) against 1/6 ... 5/6", 0.02, "lower", td),
]
