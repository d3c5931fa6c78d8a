"""Marketing agent: customer lifetime value by deep Q-learning from a log of mail and sales (Tkachenko 2015, 1504.01840).

    state = (recency, frequency, monetary value), seen as ln(1 + state)         action = what is mailed, or dollars spent
    y     = r + gamma max_a' Q(s', a'; target)            `double`: r + gamma Q(s', argmax_a' Q(s', a'); target)
    loss  = (Q(s, a) - y)^2                               CLV(s) = max_a Q(s, a)

Double: van Hasselt et al. 2016. Dueling: Q = V + A - mean A (Wang et al. 2016). Rows of the data set are months of
customers, in any order, under any way of mailing: the log is the replay buffer. Squares, not Huber's loss: purchases are
rare, and the mean of a reward is wanted, not its median. Spending may be `continuous`: the action then enters the network,
and the largest value is looked for at evenly spaced numbers of dollars. No state is terminal: a lost customer fades.

3-64-64-3 has 4,611 parameters, dueling 4,676; with the action as an input 4-64-64-1 has 4,545.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distdl.config.fields import Amount, Count, OpenShare, Several, SomeCounts
from distdl.learner import Answer, Batch, Column, Learner, Verbs
from distdl.metrics import Metrics, mean
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    state: Count = 3
    """Numbers that describe a customer, none below 0."""
    actions: Several = 3
    """Actions; of a continuous one, how many are compared to find the best."""
    continuous: bool = False
    """The action is a number, such as dollars: the column `action` is float32."""
    least: float = 0.0
    """The smallest continuous action."""
    most: float = 3.0
    """The largest."""
    hidden: SomeCounts = (64, 64)
    """Units of each hidden layer."""
    dueling: bool = False
    """One output for the state's value and one for each action's advantage."""
    double: bool = True
    """Choose the next action by Q and value it by the target."""
    gamma: OpenShare = 0.95
    """Discount of the next month."""
    target_sync_steps: Count = 25
    """Training steps between two copies of Q to the target."""
    scale: Amount = 20.0
    """Dollars that the network calls 1: about the size of a value."""
    known: bool = False
    """The data set tells the best values of each state's actions, in the column `values`, to measure against."""

    def __post_init__(self) -> None:
        if self.continuous and self.dueling:
            raise ValueError("dueling needs an output for each action; a continuous one is an input")
        if self.continuous and self.known:
            raise ValueError("known values are those of the data set's own spends, which a continuous action is not")
        if self.least >= self.most:
            raise ValueError(f"least is {self.least} and most is {self.most}; most must be more")


class QNetwork(nn.Module):
    """Values, in units of `scale`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        sizes = [config.state + config.continuous, *config.hidden]
        layers = ([nn.Linear(n_in, n_out), nn.ReLU()] for n_in, n_out in itertools.pairwise(sizes))
        self.body = nn.Sequential(*itertools.chain.from_iterable(layers))
        self.head = nn.Linear(sizes[-1], 1 if config.continuous else config.actions)
        self.value = nn.Linear(sizes[-1], 1) if config.dueling else None

    def forward(self, state: Tensor) -> Tensor:
        """Of every action: (B, S) -> (B, A)."""
        if self.config.continuous:
            n = self.config.actions
            tried = torch.linspace(self.config.least, self.config.most, n, device=state.device)
            return self.at(state.repeat_interleave(n, 0), tried.repeat(len(state))).view(-1, n)
        h = self.body(state.log1p())
        advantage = self.head(h)
        if self.value is None:
            return advantage
        return self.value(h) + advantage - advantage.mean(-1, keepdim=True)

    def at(self, state: Tensor, action: Tensor) -> Tensor:
        """Of one action for each state: (B, S), (B,) -> (B,)."""
        if not self.config.continuous:
            return self(state).gather(-1, action.long()[:, None])[:, 0]
        seen = torch.cat([state.log1p(), action[:, None].to(state.dtype)], 1)
        return self.head(self.body(seen))[:, 0]


class CLVAgent(Learner):
    targets = frozenset({"action", "reward", "after", "values"})
    learns = "Q-learning by back-propagation"
    layouts = frozenset({"torch", "zero0", "zero1", "zero2"})  # zero3 has no whole weights that could be copied

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.q, self.target = QNetwork(config), QNetwork(config).requires_grad_(False)
        self.copy()
        if config.known:
            self.primary = "error"

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        state = Column.numbers((config.state,), 0, meaning="number of a customer's state")
        action = Column.label(config.actions, key="actions", missing=None, meaning="action")
        if config.continuous:
            action = Column.numbers((), config.least, config.most, meaning="action")
        columns = {"state": state, "action": action, "reward": Column.numbers(meaning="reward"), "after": state}
        values = {"values": Column.numbers((config.actions,), meaning="best value of an action")}
        return {**columns, **values} if config.known else columns

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        values = Answer("values", "dollars that each action is worth; the largest is the customer's lifetime value")
        return {"action": Answer("action", "the best action", of="action"), "values": values}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        values, config = self._worth(batch["state"]), self.config
        best = values.argmax(-1)
        if config.continuous:
            return {"action": torch.linspace(config.least, config.most, config.actions)[best.cpu()], "values": values}
        return {"action": best, "values": values}

    @torch.no_grad()
    def copy(self) -> None:
        """Brings the target up to Q."""
        for parameter, weight in zip(self.target.parameters(), self.q.parameters()):
            parameter.copy_(weight)

    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        if step % self.config.target_sync_steps == 0:  # again in each micro-batch: Q changes with the last one only
            self.copy()
        return super().update(batch, engine, step)

    def errors(self, batch: Batch) -> Tensor:
        """Temporal differences, (B,)."""
        dtype = self.q.head.weight.dtype
        before, after, reward = (batch[name].to(dtype) for name in ("state", "after", "reward"))
        with torch.no_grad():
            values = self.target(after)  # (B, A)
            best = (self.q(after) if self.config.double else values).argmax(-1, keepdim=True)
            y = reward / self.config.scale + self.config.gamma * values.gather(-1, best)[:, 0]
        return self.q.at(before, batch["action"]) - y

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        return self.errors(batch).square().mean(), {}

    @torch.no_grad()
    def values(self, state: Tensor) -> Tensor:
        """Dollars that each action is worth: (B, S) -> (B, A). The largest is the customer's lifetime value."""
        return self._worth(state)

    def _worth(self, state: Tensor) -> Tensor:
        """The same, with a slope along the state."""
        worth: Tensor = self.q(state.to(self.q.head.weight.dtype)) * self.config.scale
        return worth

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        """The lifetime value; where the best values are known, how far these are, and what the chosen action forgoes."""
        values = self.values(batch["state"])
        metrics = {"loss": mean(self.errors(batch).square()), "clv": mean(values.max(-1).values)}
        if not self.config.known:
            shown("heat: value of each action", lambda: {"values": values})
            return metrics
        best = batch["values"]  # (B, A)
        shown("beside: value of each action", lambda: {"told": values, "true": best})
        forgone = best.max(-1).values - best.gather(-1, values.argmax(-1, keepdim=True))[:, 0]
        return metrics | {"error": mean((values - best).abs()), "regret": mean(forgone)}
