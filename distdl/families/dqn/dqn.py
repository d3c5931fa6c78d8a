"""Deep Q-network: a replay buffer and a frozen target (Mnih et al. 2013, arXiv 1312.5602; 2015, Nature 518:529).

    y    = r + gamma (1 - terminal) max_a' Q(s', a'; target)      `double`: ... Q(s', argmax_a' Q(s', a'); target)
    loss = huber(Q(s, a) - y)                                     draws (s, a, r, s', terminal) from the replay buffer

Double: van Hasselt et al. 2016; dueling: Wang et al. 2016. A state in which an episode was only cut off is not terminal.
84 x 84 x 4 pixels and 4 actions: 1,686,180 parameters (2015), or 677,172 (2013: network nips, hidden 256); 4-64-64-2 has
4,610.

Rollouts run beside the learner: a training step takes the transitions of the last rollouts, copies Q to the `actor`, starts
the next rollouts with it in a thread, and learns from the replay buffer meanwhile. So acting is always one step behind,
however fast it is. Each environment is played by one worker, and every worker gets all transitions.

A row of the data set is an episode, by its seed: one of the test split is played greedily, one of the training split
stands for a draw from the replay buffer. Of a running episode only number and actions are saved: they lead there again.
"""

from __future__ import annotations

import itertools
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Amount, Count, CountOrZero, Counts, Shape, Share
from distdl.errors import TrainingFailed
from distdl.families.dqn.environments import make_environment
from distdl.layout import noise
from distdl.learner import Answer, Batch, Column, Learner, Verbs
from distdl.metrics import Mean, Metrics, mean
from distdl.nn.blocks import Dueling
from distdl.nn.images import to_unit
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    environment: str = "ALE/Breakout-v5"
    """A gymnasium environment with discrete actions; ALE/... needs the packages ale-py and opencv-python-headless."""
    observation: Shape = (4, 84, 84)
    """Shape of its observations; Atari's are four grey pictures."""
    actions: Annotated[int, Field(gt=1, le=256)] = 4
    """Its actions."""
    network: Literal["nature", "nips", "mlp"] = "nature"
    """The convolutions of 2015 or of 2013, for pixels; or none."""
    hidden: Counts = (512,)
    """Units of each hidden layer after them."""
    environments: Count = 1
    """Environments played side by side, shared out over the workers."""
    rollout_steps: Count = 4
    """Actions in each environment per training step."""
    max_episode_steps: Count = 27_000
    """Actions after which an episode is cut off, unless the environment does so earlier."""
    capacity: Count = 1_000_000
    """Transitions in the replay buffer, with both states each: a million of Atari's take 56 GB, on every worker."""
    learning_starts: CountOrZero = 50_000
    """Actions, over all environments, before the first training step."""
    epsilon: Share = 0.1
    """Share of random actions in the end; it begins at 1."""
    epsilon_steps: Count = 1_000_000
    """Actions, over all environments, over which that share falls in a straight line."""
    gamma: Share = 0.99
    """Discount of the next state's value."""
    target_sync_steps: Count = 10_000
    """Training steps between two copies of Q to the target."""
    double: bool = False
    """Choose the next action by Q and value it by the target."""
    dueling: bool = False
    """Two streams after the convolutions, the value of the state and the advantage of each action; needs `hidden`."""
    clip_reward: bool = True
    """Learn from rewards clipped to -1..1; evaluations count them as they are."""
    reward_scale: Amount = 1.0
    """What a reward is multiplied by after that, to bring errors to the size of 1, where the loss is square."""

    def __post_init__(self) -> None:
        if self.capacity < self.environments * self.rollout_steps:
            raise ValueError("capacity must hold the transitions of one step: environments x rollout_steps")
        if self.dueling and not self.hidden:
            raise ValueError("dueling streams have a hidden layer each: give hidden, such as [512]")
        if self.network != "mlp" and len(self.observation) != 3:
            raise ValueError("convolutions need an observation of [channels, height, width]; or say network: mlp")


CONVOLUTIONS = {"nature": ((32, 8, 4), (64, 4, 2), (64, 3, 1)), "nips": ((16, 8, 4), (32, 4, 2)), "mlp": ()}


def q_network(config: Config) -> nn.Sequential:
    """(B, *observation) -> (B, actions)."""
    layers, size = list[nn.Module](), config.observation
    for maps, side, stride in CONVOLUTIONS[config.network]:
        layers += [nn.Conv2d(size[0], maps, side, stride), nn.ReLU()]
        size = (maps, (size[1] - side) // stride + 1, (size[2] - side) // stride + 1)
    layers.append(nn.Flatten())
    sizes = [int(np.prod(size)), *config.hidden]
    shared = sizes[:-1] if config.dueling else sizes
    for n_in, n_out in itertools.pairwise(shared):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    last = Dueling(shared[-1], sizes[-1], config.actions) if config.dueling else nn.Linear(sizes[-1], config.actions)
    return nn.Sequential(*layers, last)  # values may be negative


def best_actions(q: nn.Module, state: np.ndarray) -> list[int]:
    """(n, *observation) -> n."""
    return q(to_unit(torch.from_numpy(state)).to(next(q.parameters()))).argmax(-1).tolist()


class DQN(Learner):
    learns = "Q-learning by back-propagation"
    primary, better = "return", "higher"
    layouts = frozenset({"torch", "zero0", "zero1", "zero2"})  # zero3 has no whole weights that could be copied

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.transitions = config.environments * config.rollout_steps  # of one step's rollouts
        self.q = q_network(config)
        self.target, self.actor = (q_network(config).requires_grad_(False) for _ in range(2))  # to be copies of q
        e, n, pixels = config.environments, config.capacity, torch.float32 if config.network == "mlp" else torch.uint8
        self.states = nn.Buffer(torch.zeros(2, n, *config.observation, dtype=pixels))  # before and after an action
        self.told = nn.Buffer(torch.zeros(n, 4))  # action, reward, whether the state after is terminal, or cut off too
        self.rollouts = nn.Buffer(torch.tensor(0))  # taken into the replay buffer
        self.key = nn.Buffer(torch.randint(2**62, ()))  # of all that is random in rollouts
        self.episode, self.length = (nn.Buffer(torch.zeros(e, dtype=torch.int64)) for _ in range(2))  # number, actions
        self.taken = nn.Buffer(torch.zeros(e, config.max_episode_steps, dtype=torch.uint8))  # the actions in it so far
        self._stage: Stage | None = None  # lives in this process only; made anew from the buffers above
        self._playing: Future[tuple[np.ndarray, np.ndarray]] | None = None
        self._thread = ThreadPoolExecutor(1, "rollouts")  # ends with the process, after the rollouts under way

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"seed": Column.whole(None, None, meaning="seed of an episode")}

    @classmethod
    def asked(cls, config: Config) -> dict[str, Column]:
        return {"state": Column.sample(config.observation)}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"action": Answer("action", "the best action"), "values": Answer("values", "of each action")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        values = self.q(to_unit(batch["state"]))
        return {"action": values.argmax(-1), "values": values}

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        stored = min(int(self.rollouts) * self.transitions, self.config.capacity)
        row = (noise.uniform(len(batch["id"]), device=self.key.device).double() * stored).long()  # (B,)
        before, after = to_unit(self.states[:, row])  # (B, *observation)
        action, reward, terminal, _ = self.told[row].unbind(-1)  # (B,)
        reward = (reward.clamp(-1, 1) if self.config.clip_reward else reward) * self.config.reward_scale
        with torch.no_grad():
            values = self.target(after)  # (B, actions)
            best = (self.q(after) if self.config.double else values).argmax(-1, keepdim=True)
            y = reward + self.config.gamma * (1 - terminal) * values.gather(-1, best)[:, 0]
        q = self.q(before).gather(-1, action.long()[:, None])[:, 0]
        return F.smooth_l1_loss(q, y), {"q": mean(q)}

    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        wanted = -(-self.config.learning_starts // self.transitions) + step + 1
        while int(self.rollouts) < wanted:  # before the first micro-batch of a step; before the first step, many times
            self._store(self._playing or self._play(engine), engine)
            for net in (self.actor, self.target) if step % self.config.target_sync_steps == 0 else (self.actor,):
                for parameter, weight in zip(net.parameters(), self.q.parameters()):
                    parameter.copy_(weight.detach())
            self._playing = self._play(engine)
        return super().update(batch, engine, step)

    def _play(self, engine: Verbs) -> Future[tuple[np.ndarray, np.ndarray]]:
        """Starts the rollouts that follow those in the replay buffer, beside whatever comes next."""
        if self._stage is None:  # the run begins, or continues
            taken = [row[:n] for row, n in zip(self.taken.tolist(), self.length.tolist())]
            own = engine.share(self.config.environments)
            self._stage = Stage(self.config, int(self.key), own, self.episode.tolist(), taken)
        return self._thread.submit(self._stage.play, self.actor, int(self.rollouts))

    def _store(self, playing: Future[tuple[np.ndarray, np.ndarray]], engine: Verbs) -> None:
        """Waits for the rollouts under way and takes every worker's into the replay buffer."""
        try:
            played = playing.result()
        except Exception as error:
            raise TrainingFailed(f"{self.config.environment} failed: {type(error).__name__}: {error}") from error
        # Zeros but for the own environments: the sum over workers is everybody's, to the bit.
        states, told = (engine.all_sum(torch.from_numpy(array).to(self.key.device)) for array in played)
        for action, _, _, over in told.long().transpose(1, 2):  # T x (4, E)
            self.taken.scatter_(1, self.length[:, None], action[:, None].to(torch.uint8))
            self.length.add_(1).mul_(1 - over)
            self.episode.add_(over)
        row = int(self.rollouts) * self.transitions + torch.arange(self.transitions, device=self.key.device)
        self.states[:, row % self.config.capacity] = states.flatten(1, 2).to(self.states.dtype)
        self.told[row % self.config.capacity] = told.flatten(0, 1).to(self.told.dtype)
        self.rollouts.add_(1)

    def evaluate(self, batch: Batch) -> Metrics:
        """One greedy episode from each seed, side by side."""
        played = [(make_environment(self.config), seed) for seed in batch["seed"].tolist()]
        state = np.stack([env.reset(seed=seed)[0] for env, seed in played])  # (B, *observation)
        returns, running = torch.zeros(len(played), dtype=torch.float64), list(range(len(played)))
        while running:
            for i, action in zip(tuple(running), best_actions(self.q, state[running])):
                state[i], reward, terminated, truncated, _ = played[i][0].step(action)
                returns[i] += float(reward)
                if terminated or truncated:
                    running.remove(i)
        shown("returns", lambda: {"returns": returns})
        return {"return": Mean(returns.sum().to(self.key.device), float(len(played)))}


class Stage:
    """The environments `own` of this worker, brought to where the actions `taken` in their `episode` lead."""

    def __init__(self, config: Config, key: int, own: range, episode: list[int], taken: list[list[int]]) -> None:
        self.config, self.key, self.own, self.episode = config, key, own, episode
        self.made = {e: make_environment(config) for e in own}
        self.state = np.zeros((config.environments, *config.observation), "f4" if config.network == "mlp" else "u1")
        for e in own:
            self.reset(e)
            for action in taken[e]:
                self.state[e] = self.made[e].step(action)[0]

    def reset(self, e: int) -> None:
        seed = np.random.SeedSequence([self.key, e, self.episode[e]]).generate_state(1)[0]
        self.state[e] = self.made[e].reset(seed=int(seed))[0]

    @torch.no_grad()
    def play(self, actor: nn.Module, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Rollouts `number`, zeros but for the own environments: states before and after each action
        (2, T, E, *observation), and action, reward, whether terminal, whether over (T, E, 4)."""
        steps, n = self.config.rollout_steps, self.config.environments
        epsilon = 1 + min(1, number * steps * n / self.config.epsilon_steps) * (self.config.epsilon - 1)
        # Drawn by environment and step, so that neither the thread's speed nor the number of workers changes them.
        draws = np.random.Generator(np.random.Philox(key=[self.key, number])).random((steps, n, 2))
        states, told = np.zeros((2, steps, *self.state.shape), self.state.dtype), np.zeros((steps, n, 4), np.float32)
        own = slice(self.own.start, self.own.stop)
        for t in range(steps):
            states[0, t, own] = self.state[own]
            for e, action in zip(self.own, best_actions(actor, self.state[own])):
                if draws[t, e, 0] < epsilon:
                    action = int(draws[t, e, 1] * self.config.actions)
                self.state[e], reward, terminated, truncated, _ = self.made[e].step(action)
                states[1, t, e], told[t, e] = self.state[e], (action, reward, terminated, terminated or truncated)
                if terminated or truncated:
                    self.episode[e] += 1
                    self.reset(e)
        return states, told
