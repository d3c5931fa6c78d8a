"""The deep Q-network against Stable-Baselines3 and by hand; its rollouts beside the learner, and after a resume."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from distdl.errors import InputError, TrainingFailed
from distdl.families import model_config
from distdl.families.dqn.dqn import Stage, make_environment, q_network
from distdl.layout import noise
from tests.conftest import python
from tests.families.common import Small, made, parameters
from tests.small import small

CARTPOLE = small("dqn")["model"]
ACROBOT = CARTPOLE | {"environment": "Acrobot-v1", "observation": [6], "actions": 3}


def test_parameters_are_those_of_the_papers() -> None:
    assert [parameters("dqn", actions=n) for n in (4, 6, 18)] == [1_686_180, 1_687_206, 1_693_362]
    assert parameters("dqn", network="nips", hidden=(256,)) == 677_172
    assert parameters("dqn", network="mlp", observation=(4,), hidden=(64, 64), actions=2) == 4_610


@pytest.mark.slow
def test_q_is_stable_baselines() -> None:
    policies = pytest.importorskip("stable_baselines3.dqn.policies")
    pixels, actions = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8), gymnasium.spaces.Discrete(4)
    torch.manual_seed(0)
    peer = policies.CnnPolicy(pixels, actions, lambda _: 1e-4).q_net.eval()
    q = q_network(model_config({"family": "dqn"}))
    theirs = list(peer.parameters())
    assert [p.shape for p in q.parameters()] == [p.shape for p in theirs]
    with torch.no_grad():
        for mine, weight in zip(q.parameters(), theirs):
            mine.copy_(weight)
        x = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
        expected = peer(x)
        assert (q(x.float() / 255) - expected).abs().max() < 1e-5 and expected.std() > 1e-3


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("double", [False, True])
def test_loss_by_hand(double: bool, clip: bool) -> None:
    """One stored transition at a time: every draw finds it."""
    one = {"capacity": 1, "environments": 1, "rollout_steps": 1, "gamma": 0.9, "double": double, "clip_reward": clip}
    learner = made(CARTPOLE | one).double()
    draw = np.random.default_rng(0)
    with torch.no_grad():
        for p in learner.parameters():
            p.normal_(0, 0.5)  # Q and target differ
    learner.rollouts += 1
    differed = set()
    for action, terminal in [(0, 0), (1, 0), (0, 1), (1, 1)] * 5:
        states, reward = draw.normal(size=(2, 4)), 3 * draw.normal()
        learner.states.copy_(torch.from_numpy(states)[:, None])
        learner.told.copy_(torch.tensor([[action, reward, terminal, 1]], dtype=torch.float64))
        q, target = (
            [net(torch.from_numpy(x)[None])[0].detach().numpy() for x in states] for net in (learner.q, learner.target)
        )
        best = np.argmax(q[1]) if double else np.argmax(target[1])
        seen = 0.1 * (np.clip(reward, -1, 1) if clip else reward)
        error = q[0][action] - (seen + 0.9 * (1 - terminal) * target[1][best])
        differed.add(np.argmax(q[1]) == np.argmax(target[1]))
        expected = error**2 / 2 if abs(error) < 1 else abs(error) - 0.5
        loss, metrics = learner.loss({"id": torch.arange(7)}, 0)
        assert loss.item() == pytest.approx(expected, abs=1e-12)
        assert float(metrics["q"].total) / 7 == pytest.approx(q[0][action], abs=1e-5)
    assert differed == {True, False}


def test_draws_are_uniform_over_what_is_stored_and_belong_to_the_sample() -> None:
    learner = made(CARTPOLE | {"capacity": 50, "environments": 2, "rollout_steps": 2})
    learner.told[:, 0] = 1
    learner.states[0, :, 0] = torch.arange(50.0)  # the row, to be read from what Q is asked
    asked: list[torch.Tensor] = []
    learner.q.register_forward_pre_hook(lambda _, x: asked.append(x[0][:, 0].clone()))
    for rollouts, stored in ((3, 12), (13, 50), (99, 50)):
        learner.rollouts.fill_(rollouts)
        positions = torch.arange(10_000)
        for part in (positions, positions[5000:]):
            noise.begin(3, part)
            learner.loss({"id": part}, 0)
        noise.begin(0, None)
        shares = torch.bincount(asked[-3].int()) / 10_000
        assert len(shares) == stored and shares.sub(1 / stored).abs().max() < 0.015
        assert torch.equal(asked[-3][5000:], asked[-1]) or torch.equal(asked[-4][5000:], asked[-2])


def stored(learner: Any) -> tuple[np.ndarray, np.ndarray]:
    """The replay buffer by environment: states (E, N, 2, *), told (E, N, 4), oldest first; it must not have wrapped."""
    e, n = learner.config.environments, int(learner.rollouts) * learner.config.rollout_steps
    assert n * e <= learner.config.capacity
    states = learner.states[:, : n * e].unflatten(1, (n, e)).permute(2, 1, 0, 3)
    return states.numpy(), learner.told[: n * e].unflatten(0, (n, e)).transpose(0, 1).numpy()


def first_seed(learner: Any, environment: int, episode: int) -> int:
    return int(np.random.SeedSequence([int(learner.key), environment, episode]).generate_state(1)[0])


def test_the_replay_buffer_holds_what_gymnasium_does(small_data: Path) -> None:
    """The stored actions, done again in environments of our own, episode after episode."""
    run = Small("dqn", small_data, model__max_episode_steps=30)
    run.train(150)
    states, told = stored(run.learner)
    ends = set()
    for e in range(3):
        env, episode, length = gymnasium.make("CartPole-v1"), 0, 0
        state = env.reset(seed=first_seed(run.learner, e, episode))[0]
        for (before, after), (action, reward, terminal, over) in zip(states[e], told[e]):
            assert np.array_equal(before, state)
            state, expected, falls, _, _ = env.step(int(action))
            length += 1
            assert np.array_equal(after, state) and (reward, bool(terminal)) == (expected, falls)
            assert bool(over) == (falls or length == 30)
            ends.add((bool(terminal), bool(over)))
            if over:
                episode, length = episode + 1, 0
                state = env.reset(seed=first_seed(run.learner, e, episode))[0]
        assert (int(run.learner.episode[e]), int(run.learner.length[e])) == (episode, length)
        assert run.learner.taken[e, :length].tolist() == told[e, len(told[e]) - length :, 0].tolist()
    assert ends == {(False, False), (True, True), (False, True)}  # goes on, falls, is cut off


def test_the_replay_buffer_keeps_the_newest(small_data: Path) -> None:
    long, short = (Small("dqn", small_data, model__capacity=n, model__epsilon=1.0) for n in (2000, 250))
    for run in (long, short):
        run.train(60)  # 77 rollouts of 6 transitions
    newest = torch.arange(77 * 6 - 250, 77 * 6)
    assert torch.equal(long.learner.told[newest], short.learner.told[newest % 250])
    assert torch.equal(long.learner.states[:, newest], short.learner.states[:, newest % 250])


def test_exploration_falls_in_a_straight_line() -> None:
    model = CARTPOLE | {"environments": 20, "rollout_steps": 100, "epsilon": 0.2, "epsilon_steps": 10_000}
    learner = made(model)
    with torch.no_grad():
        learner.actor[-1].weight.zero_()
        learner.actor[-1].bias.copy_(torch.tensor([1.0, 0.0]))  # the best action is always 0
    stage = Stage(learner.config, 5, range(20), [0] * 20, [[]] * 20)
    shares = [float(stage.play(learner.actor, number)[1][..., 0].mean()) for number in (0, 1, 3, 5, 20)]
    assert shares == pytest.approx([0.5, 0.42, 0.26, 0.1, 0.1], abs=0.03)


def test_a_part_of_the_environments_plays_what_all_play() -> None:
    learner = made(CARTPOLE | {"environments": 5, "rollout_steps": 40})
    whole = Stage(learner.config, 5, range(5), [0] * 5, [[]] * 5)
    parts = [Stage(learner.config, 5, part, [0] * 5, [[]] * 5) for part in (range(2), range(2, 5), range(5, 5))]
    for number in range(3):
        expected = whole.play(learner.actor, number)
        got = [part.play(learner.actor, number) for part in parts]
        for i in range(2):
            assert np.array_equal(sum(played[i] for played in got), expected[i])


def test_target_and_actor_are_copies_of_their_time(small_data: Path) -> None:
    run = Small("dqn", small_data, model__target_sync_steps=8)
    synced = run.learner.q[1].weight.detach().clone()
    for step in range(20):
        before = run.learner.q[1].weight.detach().clone()
        synced = before if step % 8 == 0 else synced
        run.train(1)
        assert torch.equal(run.learner.actor[1].weight, before)  # what the rollouts under way act with
        assert torch.equal(run.learner.target[1].weight, synced)


def test_micro_batches_of_a_step_learn_from_the_same_rollouts(small_data: Path) -> None:
    whole, parts = Small("dqn", small_data), Small("dqn", small_data, train__micro_batch=4)
    for run in (whole, parts):
        run.train(10)
    assert torch.equal(whole.learner.told, parts.learner.told)
    assert int(whole.learner.rollouts) == -(-100 // 6) + 10
    assert whole.losses == pytest.approx(parts.losses, abs=1e-5)


@pytest.mark.parametrize("model", [CARTPOLE, ACROBOT], ids=["CartPole", "Acrobot"])
def test_replay_environments_and_exploration_survive_a_resume(model: dict[str, Any], small_data: Path) -> None:
    """All that a checkpoint holds, given to a new learner in the middle of episodes, leads on to the same bits."""
    changes = {"model": model, "optimizer": {"name": "sgd", "lr": 0.05}, "train__steps": 80}
    straight, first = (Small("dqn", small_data, **changes) for _ in range(2))
    straight.train(80)
    first.train(47)
    assert int(first.learner.length.max()) > 0  # an environment is under way
    again = Small("dqn", small_data, **changes)
    again.learner.load_state_dict(first.learner.state_dict())
    again.source.load_state_dict(first.source.state_dict())
    again.step = 47
    again.train(33)
    state, expected = again.learner.state_dict(), straight.learner.state_dict()
    assert {"states", "told", "episode", "length", "taken", "rollouts", "actor.1.weight"} <= state.keys()
    assert [name for name in expected if not torch.equal(state[name], expected[name])] == []
    for run in (again, straight):
        run.learner._playing.result()
    assert np.array_equal(again.learner._stage.state, straight.learner._stage.state)
    assert first.losses + again.losses == straight.losses
    assert int(straight.learner.episode.max()) > 0 or model is ACROBOT


def test_evaluation_is_one_greedy_episode_from_each_seed() -> None:
    learner = made(CARTPOLE, seed=2)
    seeds = [5, 6, 7, 8, 9]
    total, count = learner.evaluate({"id": torch.arange(5), "seed": torch.tensor(seeds)})["return"]
    expected = 0.0
    for seed in seeds:
        env: Any = gymnasium.make("CartPole-v1")
        state, over = env.reset(seed=seed)[0], False
        while not over:
            with torch.no_grad():
                action = int(learner.q(torch.from_numpy(state)[None]).argmax())
            state, reward, terminated, truncated, _ = env.step(action)
            expected, over = expected + reward, terminated or truncated
    assert (float(total), count) == (expected, 5)


class Waiting(gymnasium.Env[np.ndarray, int]):
    """Each of its steps needs a permit."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    permits = threading.Semaphore(0)
    fails = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.fails:
            raise ZeroDivisionError("the pole is of glass")
        if not self.permits.acquire(timeout=20):
            raise TimeoutError("nobody learns while this environment is played")
        return np.zeros(1, np.float32), 1.0, False, False, {}


def waiting(small_data: Path) -> Small:
    if "Waiting-v0" not in gymnasium.registry:
        gymnasium.register("Waiting-v0", Waiting)
    model = CARTPOLE | {"environment": "Waiting-v0", "observation": [1], "environments": 1, "learning_starts": 0}
    return Small("dqn", small_data, model=model)


def test_rollouts_run_beside_the_learner(small_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment goes on only once the learner's loss has been computed: one after the other, both would wait."""
    run = waiting(small_data)
    monkeypatch.setattr(
        Waiting, "permits", threading.Semaphore(2)
    )  # of the first two actions, which come before learning
    loss = run.learner.loss

    def loss_and_permits(*args: Any) -> Any:
        result = loss(*args)
        assert not run.learner._playing.done()
        Waiting.permits.release(2)
        return result

    run.learner.loss = loss_and_permits
    run.train(5)
    assert int(run.learner.rollouts) == 5


def test_an_environment_that_fails_is_told_to_the_user(small_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = waiting(small_data)
    monkeypatch.setattr(Waiting, "fails", True)
    with pytest.raises(TrainingFailed, match="Waiting-v0 failed: ZeroDivisionError: the pole is of glass"):
        run.train(1)


LEAVES = """
import sys, time, torch, gymnasium
from distdl.families import build
from distdl.families.dqn import dqn

class Engine:
    def share(self, n): return range(n)
    def all_sum(self, t): return t

make = dqn.make_environment
def slow(config):
    env = make(config)
    step = env.step
    env.step = lambda action: (time.sleep(0.05), step(action))[1]
    return env
dqn.make_environment = slow
learner = build({"family": "dqn", "environment": "CartPole-v1", "observation": (4,), "actions": 2, "network": "mlp",
                 "capacity": 10, "rollout_steps": 4})
learner._playing = learner._play(Engine())
time.sleep(0.05)
assert not learner._playing.done()
if sys.argv[1] == "raise":
    raise RuntimeError("the end")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("end", "code"), [("return", 0), ("raise", 1)])
def test_the_thread_ends_with_the_process(end: str, code: int, tmp_path: Path) -> None:
    result = python("-c", LEAVES, end, cwd=tmp_path, timeout_s=60)
    assert result.code == code and ("the end" in result.stderr) == (code == 1), result.stderr


def test_a_model_that_does_not_fit_the_environment_is_told_what_would() -> None:
    config = model_config(CARTPOLE | {"observation": [5], "actions": 3})
    with pytest.raises(InputError, match=r"shape \[4\] and 2 actions") as caught:
        make_environment(config)
    assert "model.observation=[4] model.actions=2" in str(caught.value)
    with pytest.raises(InputError, match="no discrete actions"):
        make_environment(model_config(CARTPOLE | {"environment": "Pendulum-v1", "observation": [3]}))
    with pytest.raises(InputError, match="NoSuch-v1 cannot be made"):
        make_environment(model_config(CARTPOLE | {"environment": "NoSuch-v1"}))


def test_atari_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(InputError, match="ale_py") as caught:
        make_environment(model_config({"family": "dqn"}))
    assert "pip install ale-py opencv-python-headless" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"), [({"capacity": 3}, "capacity must hold"), ({"network": "nature"}, "channels, height, width")]
)
def test_configs_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_config(CARTPOLE | change)
