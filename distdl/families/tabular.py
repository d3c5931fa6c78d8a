"""Temporal differences over a table of values: Q-learning, SARSA and TD(0), without a gradient (Watkins 1989).

    Q(s, a) += alpha (r + gamma (1 - terminal) next - Q(s, a))
    q_learning    next = max_a' Q(s', a')        Watkins 1989, PhD thesis, Cambridge: learns the best policy
    sarsa         next = Q(s', a')               Rummery & Niranjan 1994, CUED/F-INFENG/TR 166: the one it follows
    td0           next = V(s')                   Sutton 1988, Machine Learning 3:9: V(s) of the random policy; one column

a' is the action that comes next: the best one, or with probability epsilon any. alpha is divided by the number of visits
of (s, a) to the power `decay`; from above 1/2 up to 1 the table converges (Watkins & Dayan 1992), and in a deterministic
environment Q-learning does so with 0, too. CliffWalking has 48 x 4 values.

Each environment is played by one worker. All workers then learn from all transitions of the step, in the order of the
environments, so that one table comes about on any number of workers. An environment is its published table of
transitions, as of gymnasium's toy-text environments, and its place is the number of a state. A row of the test split is
an episode, by the seed of its chances; a row of the training split stands for nothing but a part of a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from distdl.config.fields import Count, Share, SomeShare
from distdl.errors import InputError
from distdl.learner import Answer, Batch, Column, Learner, Verbs
from distdl.metrics import Mean, Metrics
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    rule: Literal["q_learning", "sarsa", "td0"] = "q_learning"
    """What the value of a state and action is corrected towards."""
    environment: str = "CliffWalking-v1"
    """A toy-text environment of gymnasium; or random_walk: from the middle of a line to an end; the right one pays."""
    states: Count = 5
    """States of random_walk."""
    environments: Count = 16
    """Environments played side by side, one action each per training step."""
    max_episode_steps: Count = 200
    """Actions after which an episode is cut off; its last state keeps its value."""
    alpha: SomeShare = 0.5
    """Step size."""
    decay: Share = 0.0
    """Power of the number of visits that the step size is divided by."""
    gamma: Share = 1.0
    """Discount of the next value."""
    epsilon: Share = 0.1
    """Share of random actions in training."""
    evaluate_epsilon: Share = 0.0
    """Share of random actions in evaluations."""
    initial: float = 0.0
    """All values at the start."""


class Model:
    """An environment as arrays over state, action and outcome: chance, next state, reward, whether it is the end."""

    def __init__(self, config: Config) -> None:
        table, start = (
            random_walk(config.states) if config.environment == "random_walk" else toy_text(config.environment)
        )
        n, a = len(table), len(table[0])
        k = max(len(outcomes) for actions in table.values() for outcomes in actions.values())
        self.chance, self.reward = np.zeros((n, a, k)), np.zeros((n, a, k))
        self.after, self.terminal = np.zeros((n, a, k), int), np.zeros((n, a, k), bool)
        for s, actions in table.items():
            for i, outcomes in actions.items():
                for j, outcome in enumerate(outcomes):
                    self.chance[s, i, j], self.after[s, i, j], self.reward[s, i, j], self.terminal[s, i, j] = outcome
        self.states, self.actions = n, a
        self._until, self._start = self.chance.cumsum(-1), np.cumsum(start)

    def start(self, u: np.ndarray) -> np.ndarray:
        """The first states of n episodes, by uniform numbers (n,)."""
        return np.minimum(np.searchsorted(self._start, u, side="right"), self.states - 1)

    def step(self, s: np.ndarray, a: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reward, next state and whether it is the end, (n,) each."""
        j = np.minimum((u[:, None] >= self._until[s, a]).sum(-1), self.chance.shape[-1] - 1)
        return self.reward[s, a, j], self.after[s, a, j], self.terminal[s, a, j]


def random_walk(states: int) -> tuple[dict[int, Any], np.ndarray]:
    """Left (0) or right (1) along a line; beyond its ends the walk is over, and only the right one pays (Sutton 1988)."""
    last = states - 1
    table = {
        s: {0: [(1.0, max(s - 1, 0), 0, s == 0)], 1: [(1.0, min(s + 1, last), s == last, s == last)]}
        for s in range(states)
    }
    return table, np.eye(states)[states // 2]


def toy_text(name: str) -> tuple[dict[int, Any], np.ndarray]:
    """The transitions and the first states of an environment of gymnasium that publishes them."""
    import gymnasium

    try:
        environment: Any = gymnasium.make(name).unwrapped
        return environment.P, environment.initial_state_distrib
    except (gymnasium.error.Error, AttributeError) as error:
        fix = "model.environment=CliffWalking-v1, FrozenLake-v1, Taxi-v4 or random_walk"
        raise InputError(f"{name} is no environment with a table of transitions: {error}", fix=fix) from error


def choose(values: np.ndarray, actions: int, epsilon: float, u: np.ndarray) -> np.ndarray:
    """The best actions by their values (n, A), any of equals; or any at all. One column of values: any at all.

    u: uniform numbers (n, 2)."""
    allowed = np.broadcast_to(values == values.max(-1, keepdims=True), (len(values), actions))
    allowed = allowed | (u[:, :1] < epsilon)  # (n, A)
    chosen = (u[:, 1] * allowed.sum(-1)).astype(int)  # which one of the allowed
    return (allowed.cumsum(-1) > chosen[:, None]).argmax(-1)


class Tabular(Learner):
    learns = "temporal differences"
    no_slope = "a state is the number of a row of its table"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.model = config, Model(config)
        prediction = config.rule == "td0"
        self.primary, self.better = ("residual", "lower") if prediction else ("return", "higher")
        shape = (self.model.states, 1 if prediction else self.model.actions)
        self.values = nn.Buffer(torch.full(shape, config.initial, dtype=torch.float64))
        self.visits = nn.Buffer(torch.zeros(shape, dtype=torch.int64))
        e = config.environments
        self.state, self.action = (
            nn.Buffer(torch.zeros(e, dtype=torch.int64)) for _ in range(2)
        )  # the next to be done
        self.length = nn.Buffer(torch.zeros(e, dtype=torch.int64))  # of the running episode; 0: one begins
        self.rounds = nn.Buffer(torch.tensor(0))  # played so far
        self.key = nn.Buffer(torch.randint(2**62, ()))  # of all chances in training

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"seed": Column.whole(None, None, meaning="seed of an episode")}

    @classmethod
    def asked(cls, config: Config) -> dict[str, Column]:
        return {"state": Column.whole(0, None, meaning="number of a state")}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        values = {"values": Answer("values", "of each action" if config.rule != "td0" else "of the state")}
        return values if config.rule == "td0" else {"action": Answer("action", "the best action"), **values}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        state, states = batch["state"].long(), len(self.values)
        if not torch.compiler.is_exporting() and len(state) and not 0 <= int(state.min()) <= int(state.max()) < states:
            raise InputError(f"{self.config.environment} has the states 0 to {states - 1}, and one is asked for beyond")
        values = self.values[state]
        return {"values": values} if self.config.rule == "td0" else {"action": values.argmax(-1), "values": values}

    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        errors: list[float] = []
        while int(self.rounds) <= step:  # once a step, whatever the number of its micro-batches
            played = torch.zeros(self.config.environments, 6, dtype=torch.float64, device=self.key.device)
            own = engine.share(self.config.environments)
            played[own.start : own.stop] = torch.from_numpy(self._play(own)).to(played)
            # Zeros but for the own environments: the sum over workers is everybody's transitions, to the bit.
            errors = self._learn(engine.all_sum(played).cpu().numpy())
            self.rounds.add_(1)
        return {"loss": Mean(self._number(float(np.square(errors).sum())), float(len(errors)))}

    def _play(self, own: range) -> np.ndarray:
        """One action in each of the own environments: (n, 6) of s, a, r, s', terminal, a'."""
        n, part = self.config.environments, slice(own.start, own.stop)
        u = np.random.Generator(np.random.Philox(key=[int(self.key), int(self.rounds)])).random((n, 6))[part]
        values, state, action, length = (x.cpu().numpy() for x in (self.values, self.state, self.action, self.length))
        begins = length[part] == 0
        s = np.where(begins, self.model.start(u[:, 0]), state[part])
        a = np.where(begins, self._choose(values[s], self.config.epsilon, u[:, 1:3]), action[part])
        r, after, terminal = self.model.step(s, a, u[:, 3])
        return np.stack([s, a, r, after, terminal, self._choose(values[after], self.config.epsilon, u[:, 4:6])], axis=1)

    def _choose(self, values: np.ndarray, epsilon: float, u: np.ndarray) -> np.ndarray:
        return choose(values, self.model.actions, epsilon, u)

    def _learn(self, played: np.ndarray) -> list[float]:
        """Corrects the table by transitions (E, 6), one after the other; their temporal differences."""
        c, values, visits = self.config, self.values.cpu().numpy(), self.visits.cpu().numpy()
        errors = []
        for row in played:
            (s, a, after, next_a), r, terminal = row[[0, 1, 3, 5]].astype(int), row[2], row[4]
            column = 0 if c.rule == "td0" else a
            following = values[after, next_a] if c.rule == "sarsa" else values[after].max()
            errors.append(r + c.gamma * (1 - terminal) * following - values[s, column])
            visits[s, column] += 1
            values[s, column] += c.alpha / visits[s, column] ** c.decay * errors[-1]
        self.values.copy_(torch.from_numpy(values))
        self.visits.copy_(torch.from_numpy(visits))
        told = torch.from_numpy(played).to(self.length.device)
        self.state.copy_(told[:, 3])
        self.action.copy_(told[:, 5])
        over = (told[:, 4] > 0) | (self.length + 1 >= c.max_episode_steps)
        self.length.copy_(torch.where(over, 0, self.length + 1))
        return errors

    def evaluate(self, batch: Batch) -> Metrics:
        """An episode from each seed, by the best actions; and for td0 how far the values are from Bellman's equation."""
        c, n = self.config, len(batch["id"])
        chances = [np.random.default_rng(seed) for seed in batch["seed"].tolist()]
        values = self.values.cpu().numpy()
        s = self.model.start(np.array([chance.random() for chance in chances]))  # (B,)
        total, running, of_each = 0.0, np.ones(n, bool), np.zeros(n)
        for _ in range(c.max_episode_steps):
            if not running.any():
                break
            u = np.stack([chance.random(3) for chance in chances])  # (B, 3)
            r, s, terminal = self.model.step(s, self._choose(values[s], c.evaluate_epsilon, u[:, :2]), u[:, 2])
            total += float(r[running].sum())
            of_each[running] += r[running]
            running &= ~terminal
        shown("returns", lambda: {"returns": torch.from_numpy(of_each)})
        metrics = {"return": Mean(self._number(total), float(n))}
        if c.rule == "td0":
            metrics["residual"] = Mean(self._number(self.residual() * n), float(n))
        return metrics

    def _number(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.key.device)

    def residual(self) -> float:
        """Root mean square over states of E[r + gamma V(s')] - V(s), all actions alike."""
        m, v = self.model, self.values.cpu().numpy()[:, 0]
        backed_up = (m.chance * (m.reward + self.config.gamma * ~m.terminal * v[m.after])).sum(-1).mean(-1)  # (S,)
        return float(np.sqrt(np.mean((backed_up - v) ** 2)))
