"""Temporal differences by hand, against value iteration, a linear system and gymnasium's own steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distdl.errors import InputError
from distdl.families import build
from distdl.families.tabular import Config, Model, choose
from tests.families.common import Small, parameters

RULES = ["q_learning", "sarsa", "td0"]


class Alone:
    """An engine of one worker."""

    def share(self, n: int) -> range:
        return range(n)

    def all_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def made(seed: int = 0, **model: Any) -> Any:
    torch.manual_seed(seed)
    return build({"family": "tabular", **model})


def trained(steps: int, seed: int = 0, **model: Any) -> Any:
    learner = made(seed, **model)
    for step in range(steps):
        learner.update({}, Alone(), step)
    return learner


def mean_return(learner: Any, episodes: int = 100) -> float:
    rows = torch.arange(episodes)
    total, count = learner.evaluate({"id": rows, "seed": rows})["return"]
    return float(total) / count


def way(learner: Any) -> list[int]:
    """The states that the best actions lead through."""
    states, terminal = [36], False
    while not terminal and len(states) < 50:
        at = np.array(states[-1:])
        _, after, ends = learner.model.step(at, learner.values[at].argmax(-1).numpy(), np.zeros(1))
        states, terminal = [*states, int(after[0])], bool(ends[0])
    return states[1:]


def test_it_has_a_table_and_no_parameters() -> None:
    assert parameters("tabular") == 0
    assert made().values.shape == (48, 4) and made(rule="td0").values.shape == (48, 1)


@pytest.mark.parametrize("decay", [0.0, 0.7])
@pytest.mark.parametrize("rule", RULES)
def test_corrections_by_hand(rule: str, decay: float) -> None:
    """A thousand random transitions, in the order of the environments."""
    settings = {"rule": rule, "environment": "random_walk", "environments": 10, "gamma": 0.9, "alpha": 0.4}
    learner = made(**settings, decay=decay, max_episode_steps=10**6)
    draw = np.random.default_rng(3)
    q = draw.normal(size=learner.values.shape)
    learner.values.copy_(torch.from_numpy(q))
    count = np.zeros(q.shape)
    for _ in range(100):
        s, a, after, then = (draw.integers(0, n, 10) for n in (5, 2, 5, 2))
        r, terminal = draw.normal(size=10), draw.random(10) < 0.3
        got = learner._learn(np.stack([s, a, r, after, terminal, then], axis=1))
        for i in range(10):
            place = (s[i], 0 if rule == "td0" else a[i])
            following = {
                "q_learning": max(q[after[i]]),
                "sarsa": q[after[i]][then[i] % q.shape[1]],
                "td0": q[after[i]][0],
            }
            error = r[i] + 0.9 * following[rule] * (not terminal[i]) - q[place]
            count[place] += 1
            q[place] += 0.4 / count[place] ** decay * error
            assert got[i] == pytest.approx(error, abs=1e-12)
    assert np.abs(learner.values.numpy() - q).max() < 1e-12
    assert np.array_equal(learner.visits.numpy(), count)


def test_the_model_is_gymnasiums_environment() -> None:
    import gymnasium

    env: Any = gymnasium.make("CliffWalking-v1")
    model = Model(Config())
    state, _ = env.reset(seed=0)
    assert model.start(np.array([0.0, 0.5, 0.999])).tolist() == [state] * 3 == [36] * 3
    seen = set()
    for action in np.random.default_rng(0).integers(0, 4, 3000):
        reward, after, terminal = model.step(np.array([state]), np.array([action]), np.array([0.3]))
        state, *expected = env.step(int(action))
        assert (after[0], reward[0], terminal[0]) == (state, expected[0], expected[1])
        seen.add(expected[0])
        if expected[1]:
            state, _ = env.reset()
    assert seen == {-1, -100}


def test_outcomes_have_their_chances() -> None:
    model = Model(Config(environment="FrozenLake-v1"))  # slippery: one way of three, all alike
    u = (np.arange(3000) + 0.5) / 3000
    _, after, _ = model.step(np.full(3000, 6), np.full(3000, 1), u)
    assert {int(s): int((after == s).sum()) for s in np.unique(after)} == {5: 1000, 7: 1000, 10: 1000}
    taxi = Model(Config(environment="Taxi-v4"))
    starts = np.bincount(taxi.start((np.arange(30_000) + 0.5) / 30_000), minlength=500)
    assert sorted(set(starts.tolist())) == [0, 100] and (starts > 0).sum() == 300


def test_actions_are_the_best_ones_or_any() -> None:
    u = np.random.default_rng(0).random((40_000, 2))
    values = np.tile([1.0, 3.0, 3.0, 2.0], (40_000, 1))

    def shares(values: np.ndarray, epsilon: float) -> np.ndarray:
        return np.bincount(choose(values, 4, epsilon, u), minlength=4) / 40_000

    assert np.allclose(shares(values, 0), [0, 0.5, 0.5, 0], atol=0.01)  # either of equals
    assert np.allclose(shares(values, 0.2), [0.05, 0.45, 0.45, 0.05], atol=0.01)
    assert np.allclose(shares(values[:, :1], 0), 0.25, atol=0.01)  # a table of states says nothing of actions


def test_q_learning_finds_the_solution_of_bellmans_equation() -> None:
    learner = trained(300, environment="random_walk", states=7, environments=8, gamma=0.9, alpha=1.0, epsilon=0.5)
    q = np.zeros((7, 2))
    for _ in range(50):  # value iteration
        v = q.max(-1)
        q = np.stack([0.9 * np.append(0, v[:-1]), np.append(0.9 * v[1:], 1)], axis=1)
    assert np.abs(learner.values.numpy() - q).max() < 1e-12
    assert q[0, 1] == pytest.approx(0.9**6)


def test_td0_predicts_the_random_walk() -> None:
    """V = P (r + V) has the solution 1/6 ... 5/6 for five states."""
    steps = {"environments": 8, "alpha": 0.5, "decay": 0.7, "initial": 0.5}
    learner = trained(800, rule="td0", environment="random_walk", **steps)
    walk = (np.eye(5, k=1) + np.eye(5, k=-1)) / 2
    truth = np.linalg.solve(np.eye(5) - walk, np.array([0, 0, 0, 0, 0.5]))
    assert truth == pytest.approx(np.arange(1, 6) / 6)
    before = made(rule="td0", environment="random_walk", initial=0.5)
    assert before.residual() == pytest.approx(np.sqrt(2 * 0.25**2 / 5))
    assert np.sqrt(np.mean((learner.values[:, 0].numpy() - truth) ** 2)) < 0.03 and learner.residual() < 0.02
    learner.values.copy_(torch.from_numpy(truth)[:, None])
    assert learner.residual() < 1e-15


def test_q_learning_walks_along_the_cliff_and_sarsa_keeps_away() -> None:
    """Sutton & Barto 2018, example 6.6: 13 steps are the shortest way, with random actions the safer one pays."""
    shortest = trained(1000, epsilon=0.1)
    assert mean_return(shortest) == -13
    safe = trained(3000, rule="sarsa", environments=4, decay=0.3)
    beside_the_cliff = set(range(25, 35))  # the third row of 12, but for its corners
    assert beside_the_cliff < set(way(shortest)) and len(way(shortest)) == 13
    assert not beside_the_cliff & set(way(safe)) and len(way(safe)) in (15, 17)
    returns = []
    for learner in (shortest, safe):
        other = made(evaluate_epsilon=0.1, rule=learner.config.rule)
        other.values.copy_(learner.values)
        returns.append(mean_return(other))
    assert returns[0] < -30 < returns[1]


def test_episodes_that_are_cut_off_are_not_terminal(small_data: Path) -> None:
    run = Small("tabular", small_data, model__max_episode_steps=3, model__gamma=1.0, model__initial=-7.0)
    lengths = []
    for _ in range(6):
        run.train(1)
        lengths.append(run.learner.length.tolist())
    assert [row[0] for row in lengths] == [1, 2, 0, 1, 2, 0]
    assert run.learner.state.unique().tolist() != [36]
    assert float(run.learner.values.max()) <= -7  # an end is worth 0


def test_all_micro_batches_of_a_step_are_one_round(small_data: Path) -> None:
    run = Small("tabular", small_data)
    for step in (0, 0, 1, 1, 1, 2):
        run.learner.update({}, run.engine, step)
    assert int(run.learner.rounds) == 3


@pytest.mark.parametrize("name", ["CartPole-v1", "NoSuch-v1"])
def test_an_environment_without_a_table_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is no environment with a table"):
        made(environment=name)
