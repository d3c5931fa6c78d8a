"""Customers who get mail and buy or not, month after month: what Q-learning of marketing learns from.

A path names a log of purchases as CDNOW's (Fader & Hardie 2001): a line each, customer, date as 19970118, pieces, dollars,
between blanks; what stands before is skipped. Its buyers' habits are fitted: the log-odds of buying in a month by recency
(months since the last purchase) and frequency (months with one), and how the amounts follow each other. Without a path the
habits are made up. A purchase log does not tell what mail does, which is therefore assumed: it adds to the log-odds
`response` (1 - exp(-dollars spent / `enough`)).

A row is a month of a simulated customer who got mail at random. That is a Markov chain of few states (recency, frequency,
amount of the last purchase), so that the best values are known, by value iteration.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows, open_raw
from distdl.errors import InputError

MONTHS = 36
"""Of a customer's history."""
RECENCY, FREQUENCY, AMOUNTS = 13, 10, 5
"""States: 0 to 12 months or more, 1 to 10 purchases or more, and classes of dollars."""


@dataclass(frozen=True)
class Options:
    """Options of the source `customers`."""

    path: str = ""
    """The log of purchases; without it, made-up habits."""
    spend: tuple[float, ...] = (0.0, 1.0, 3.0)
    """Dollars that each action costs: nothing, a letter, a catalogue."""
    continuous: bool = False
    """The action is any number of dollars between the least and the most of these; the best values are those of these."""
    margin: float = 0.3
    """Profit of a dollar of sales."""
    response: float = 0.8
    """What ever so much mail adds to the log-odds of buying."""
    enough: float = 2.0
    """Dollars that bring 63 % of that."""
    gamma: float = 0.95
    """Discount of a month."""
    customers: int = 6000
    """Simulated customers, 36 months each; a tenth of them is held out as the split `test`."""
    seed: int = 0
    """Seed of what is drawn."""


@dataclass(frozen=True)
class Habits:
    """How customers buy without mail."""

    log_odds: np.ndarray
    """Of buying in a month: weights (3,) of 1, ln(1 + recency) and ln(frequency)."""
    dollars: np.ndarray
    """Of each class of amounts, (K,)."""
    first: np.ndarray
    """Share of the first purchases in each class, (K,)."""
    moves: np.ndarray
    """From the class of the last purchase to that of the next, (K, K)."""


MADE_UP = Habits(
    np.array([-1.6, -0.8, 0.6]),
    np.array([8.0, 18, 30, 50, 110]),
    np.full(AMOUNTS, 1 / AMOUNTS),
    0.6 * np.eye(AMOUNTS) + 0.4 / AMOUNTS,
)


class Market:
    """The Markov chain. States are numbered by (recency, frequency, class of amount)."""

    def __init__(self, habits: Habits, options: Options) -> None:
        self.habits, self.options = habits, options
        grid = np.meshgrid(np.arange(RECENCY), np.arange(1, FREQUENCY + 1), np.arange(AMOUNTS), indexing="ij")
        self.r, self.f, self.k = (axis.ravel() for axis in grid)  # (S,) each
        self.states = np.stack([self.r, self.f, habits.dollars[self.k]], 1).astype(np.float32)  # (S, 3)
        self.without = self.number(np.minimum(self.r + 1, RECENCY - 1), self.f, self.k)  # (S,)
        f = np.minimum(self.f + 1, FREQUENCY)
        self.after = np.stack([self.number(0 * self.r, f, k + 0 * f) for k in range(AMOUNTS)], 1)  # (S, K)
        self.start = np.zeros(len(self.states))
        self.start[self.number(0, 1, np.arange(AMOUNTS))] = habits.first

    @staticmethod
    def number(r: np.ndarray | int, f: np.ndarray | int, k: np.ndarray | int) -> np.ndarray:
        return np.asarray((r * FREQUENCY + f - 1) * AMOUNTS + k)

    def chance(self, spend: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Of a purchase: dollars and states, broadcast against each other."""
        features = np.stack([np.ones(len(self.r)), np.log1p(self.r), np.log(self.f)], 1)  # (S, 3)
        mail = self.options.response * (1 - np.exp(-spend / self.options.enough))
        return np.asarray(1 / (1 + np.exp(-(features @ self.habits.log_odds)[state] - mail)))

    def back(self, value: np.ndarray, spend: np.ndarray) -> np.ndarray:
        """Bellman's right side: values of the states (S,) -> of states and actions (S, A)."""
        gamma, state = self.options.gamma, np.arange(len(self.states))
        chance = self.chance(spend, state[:, None])  # (S, A)
        bought = self.options.margin * self.habits.dollars + gamma * value[self.after]  # (S, K)
        bought = (self.habits.moves[self.k] * bought).sum(1)[:, None]
        return np.asarray(chance * bought + (1 - chance) * gamma * value[self.without][:, None] - spend)

    def best(self) -> np.ndarray:
        """Q* (S, A) of the options' actions, by value iteration."""
        spend, value = np.array(self.options.spend), np.zeros(len(self.states))
        while np.abs((q := self.back(value, spend)).max(1) - value).max() > 1e-9:
            value = q.max(1)
        return q

    def profit(self, spend: np.ndarray) -> float:
        """Discounted profit of a new customer who gets `spend` (S,) dollars of mail in each state."""
        value = np.zeros(len(self.states))
        while np.abs((now := self.back(value, spend[:, None])[:, 0]) - value).max() > 1e-9:
            value = now
        return float(self.start @ value)


def market(options: Options) -> Market:
    """The simulator that the options ask for."""
    if not options.spend or min(options.spend) < 0 or not 0 <= options.gamma < 1 or options.customers < 10:
        what = f"spend={list(options.spend)} gamma={options.gamma} customers={options.customers}"
        raise InputError(what, allowed="dollars of 0 or more, a discount from 0 to below 1, 10 customers or more")
    return Market(_fitted(options.path) if options.path else MADE_UP, options)


def prepare(options: Options) -> Prepared:
    """`state` and `after` float32 (3,): recency, frequency, dollars; `action` int64, or float32 dollars; `reward` float32,
    dollars of profit; `values` float32 (A,), the best values of the state."""
    chain = market(options)
    columns = {name: Column("float32", (3,)) for name in ("state", "after")}
    columns |= {"action": Column("float32" if options.continuous else "int64"), "reward": Column("float32")}
    columns["values"] = Column("float32", (len(options.spend),))
    info = {"log_odds": chain.habits.log_odds.tolist(), "dollars": chain.habits.dollars.tolist()}
    return Prepared(columns, _months(chain), info)


def _months(chain: Market) -> Iterator[tuple[str, Rows]]:
    options, best = chain.options, chain.best().astype(np.float32)
    draw, spends = np.random.default_rng(options.seed), np.array(options.spend)
    n, held_out = options.customers, options.customers // 10
    state = draw.choice(len(chain.states), n, p=chain.start)
    for _ in range(MONTHS):
        action = draw.integers(0, len(spends), n)
        spend = draw.uniform(spends.min(), spends.max(), n) if options.continuous else spends[action]
        buys = draw.random(n) < chain.chance(spend, state)
        amount = (draw.random((n, 1)) > chain.habits.moves[chain.k[state]].cumsum(1)).sum(1).clip(0, AMOUNTS - 1)
        after = np.where(buys, chain.after[state, amount], chain.without[state])
        reward = options.margin * buys * chain.habits.dollars[amount] - spend
        rows = {
            "state": chain.states[state],
            "after": chain.states[after],
            "action": spend.astype(np.float32) if options.continuous else action,
            "reward": reward.astype(np.float32),
            "values": best[state],
        }
        for split, part in (("test", slice(held_out)), ("train", slice(held_out, None))):
            yield split, {name: column[part] for name, column in rows.items()}
        state = after


def _fitted(path: str) -> Habits:
    """The habits of the customers of a log: logistic regression by Newton's steps, and counts of amounts."""
    spent = _by_month(path)  # (customers, months)
    some = np.quantile(spent[spent > 0], np.arange(1, AMOUNTS) / AMOUNTS)
    kind = np.searchsorted(some, spent)
    dollars = np.array([spent[(spent > 0) & (kind == k)].mean() for k in range(AMOUNTS)])
    features, bought, first, moves = [], [], np.zeros(AMOUNTS), np.ones((AMOUNTS, AMOUNTS))
    for customer, months in enumerate(spent):
        when = np.flatnonzero(months)
        first[kind[customer, when[0]]] += 1
        np.add.at(moves, (kind[customer, when[:-1]], kind[customer, when[1:]]), 1)
        for month in range(when[0] + 1, len(months)):
            f = int((when < month).sum())
            features.append((1, np.log(month - when[f - 1]), np.log(min(f, FREQUENCY))))
            bought.append(months[month] > 0)
    x, y, weights = np.array(features), np.array(bought, float), np.zeros(3)
    for _ in range(20):
        p = 1 / (1 + np.exp(-x @ weights))
        weights += np.linalg.solve((x.T * (p * (1 - p))) @ x + 1e-6 * np.eye(3), x.T @ (y - p))
    return Habits(weights, dollars, first / first.sum(), moves / moves.sum(1, keepdims=True))


def _by_month(path: str) -> np.ndarray:
    """Dollars of each customer in each month, customers with a purchase only."""
    customers: dict[bytes, int] = {}
    found: list[tuple[int, int, float]] = []
    with open_raw(path) as file:
        for number, line in enumerate(file, 1):
            try:
                customer, date, _, dollars = line.split()[-4:]
                month = int(date[:4]) * 12 + int(date[4:6])
                found.append((customers.setdefault(customer, len(customers)), month, float(dollars)))
            except ValueError as error:
                what = f"{line[:60]!r} is not a purchase: customer, date, pieces, dollars"
                raise InputError(what, where=f"{path}:{number}") from error
    begin = min((month for _, month, _ in found), default=0)
    spent = np.zeros((len(customers), 1 + max((month for _, month, _ in found), default=0) - begin))
    for row, month, amount in found:
        spent[row, month - begin] += amount
    spent = spent[spent.sum(1) > 0]
    if len(np.unique(spent[spent > 0])) < AMOUNTS or spent.shape[1] < 3:
        raise InputError(f"{path} has too few purchases to learn habits from", allowed="amounts of several months")
    return spent
