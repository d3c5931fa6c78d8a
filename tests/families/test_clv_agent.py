"""The marketing agent: targets by hand, a small market against value iteration, and the simulator by brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distdl.data.generators.customers import MADE_UP, Market, Options, market
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError
from distdl.families import model_config
from tests.families.common import Small, made, parameters, rows_of

MODEL: dict[str, Any] = {"family": "clv_agent", "hidden": [12, 8], "gamma": 0.9, "scale": 10.0}
CONTINUOUS: dict[str, Any] = {"continuous": True, "actions": 5, "least": 1.0, "most": 3.0}


def batch(rows: int, continuous: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    state, after = torch.rand(2, rows, 3, generator=draw) * 10
    action = torch.rand(rows, generator=draw) * 2 + 1 if continuous else torch.randint(0, 3, (rows,), generator=draw)
    return {"state": state, "after": after, "action": action, "reward": torch.randn(rows, generator=draw)}


def test_parameters() -> None:
    assert parameters("clv_agent") == 4_611
    assert parameters("clv_agent", dueling=True) == 4_676
    assert parameters("clv_agent", continuous=True) == 4_545


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("form", [{}, {"dueling": True}, CONTINUOUS], ids=["plain", "dueling", "continuous"])
def test_loss_by_hand(form: dict[str, Any], double: bool) -> None:
    learner = made(MODEL | form | {"double": double})
    with torch.no_grad():
        for p in learner.parameters():
            p.normal_(0, 0.4)  # Q and target differ
    given, differed = batch(60, "continuous" in form), set()
    expected = []
    for s, a, r, after in zip(given["state"], given["action"], given["reward"], given["after"]):
        q, q_after, target = by_hand(learner.q, s), by_hand(learner.q, after), by_hand(learner.target, after)
        chosen = int(np.argmax(q_after if double else target))
        differed.add(int(np.argmax(q_after)) == int(np.argmax(target)))
        now = by_hand(learner.q, s, float(a))[0] if "continuous" in form else q[int(a)]
        expected.append(float(now - float(r) / 10 - 0.9 * target[chosen]))
    assert np.allclose(learner.errors(given).detach().numpy(), expected, atol=1e-5) and differed == {True, False}
    assert learner.loss(given, 0)[0].item() == pytest.approx(np.square(expected).mean(), rel=1e-5)
    assert all((p.grad is None) != p.requires_grad for p in back(learner, given))


def back(learner: Any, given: dict[str, torch.Tensor]) -> Any:
    learner.loss(given, 0)[0].backward()
    return learner.parameters()


def by_hand(q: Any, state: torch.Tensor, action: float | None = None) -> np.ndarray:
    """Values of all actions, or of one number of dollars, in NumPy."""
    weights = {name: p.detach().numpy() for name, p in q.named_parameters()}

    def output(x: np.ndarray) -> np.ndarray:
        for i in (0, 2):
            x = np.maximum(weights[f"body.{i}.weight"] @ x + weights[f"body.{i}.bias"], 0)
        out = weights["head.weight"] @ x + weights["head.bias"]
        if "value.weight" in weights:
            out = out - out.mean() + weights["value.weight"] @ x + weights["value.bias"]
        return np.asarray(out)

    seen = np.log(1 + state.numpy())
    if not q.config.continuous:
        return output(seen)
    tried = [action] if action is not None else [1, 1.5, 2, 2.5, 3]
    return np.array([output(np.append(seen, dollars).astype(np.float32))[0] for dollars in tried])


def test_the_target_is_a_copy_of_its_time(small_data: Path) -> None:
    run = Small("clv_agent", small_data, train__steps=20)
    synced: dict[str, torch.Tensor] = {}
    for step in range(20):
        now = {name: p.detach().clone() for name, p in run.learner.q.named_parameters()}
        synced = now if step % 8 == 0 else synced
        run.train(1)
        assert all(torch.equal(p, synced[name]) for name, p in run.learner.target.named_parameters())
    assert not torch.equal(run.learner.q.head.weight, synced["head.weight"])


def test_what_is_measured_against_known_values() -> None:
    learner, given = made(MODEL | {"known": True}), batch(9)
    best = torch.tensor([[1.0, 5.0, 3.0]]).repeat(9, 1)
    values = learner.values(given["state"])
    metrics = {n: float(total) / count for n, (total, count) in learner.evaluate(given | {"values": best}).items()}
    chosen = values.argmax(1)
    assert metrics["regret"] == pytest.approx(float((5 - best[0][chosen]).mean()))
    assert metrics["error"] == pytest.approx(float((values - best).abs().mean()), rel=1e-5)
    assert metrics["clv"] == pytest.approx(float(values.amax(1).mean()), rel=1e-5)
    assert learner.primary == "error" and made(MODEL).primary == "loss"
    assert made(MODEL).evaluate(given).keys() == {"loss", "clv"}


def test_value_iteration_is_what_simulated_customers_bring(tmp_path: Path) -> None:
    """The mean discounted profit of many histories, against the chain's own figure for mailing at random."""
    options = Options(customers=8000, gamma=0.8)
    chain = market(options)
    prepare_dataset("customers", tmp_path / "d", {"customers": 8000, "gamma": 0.8})
    months = [Dataset(str(tmp_path / "d"), split) for split in ("train", "test")]
    rewards = [m.gather(np.arange(m.rows))["reward"].reshape(36, -1) for m in months]
    brought = (np.concatenate(rewards, 1) * 0.8 ** np.arange(36)[:, None]).sum(0)
    spend, value = np.array(options.spend), np.zeros(len(chain.states))
    for _ in range(200):
        value = chain.back(value, spend).mean(1)
    assert brought.mean() == pytest.approx(chain.start @ value, abs=4 * brought.std() / len(brought) ** 0.5)
    best = chain.best()
    assert chain.profit(spend[best.argmax(1)]) == pytest.approx(chain.start @ best.max(1))
    assert all(chain.profit(np.full(len(best), always)) < chain.start @ best.max(1) for always in spend)


def test_rows_are_months_of_the_chain(tmp_path: Path) -> None:
    prepare_dataset("customers", tmp_path / "d", {"customers": 500, "continuous": True})
    rows = {n: c.numpy() for n, c in rows_of(str(tmp_path / "d"), range(2000)).items()}
    (r, f, _), (r_after, f_after, _) = rows["state"].T, rows["after"].T
    bought = rows["reward"] + rows["action"] > 1e-4
    assert np.array_equal(r_after, np.where(bought, 0, np.minimum(r + 1, 12)))
    assert np.array_equal(f_after, np.where(bought, np.minimum(f + 1, 10), f))
    assert 0.02 < bought.mean() < 0.5 and rows["action"].dtype == np.float32 and 0 <= rows["action"].min() < 0.1
    assert np.allclose((rows["reward"] + rows["action"])[bought], 0.3 * rows["after"][bought, 2], atol=1e-4)


def test_habits_are_found_again_in_a_log(tmp_path: Path) -> None:
    """A log that the chain itself wrote, without mail."""
    chain, draw, lines = Market(MADE_UP, Options()), np.random.default_rng(0), []
    for customer in range(1500):
        state = int(draw.choice(len(chain.states), p=chain.start))
        lines.append(f"{customer} 19970101 1 {chain.states[state, 2] + draw.normal():.2f}")
        for month in range(1, 24):
            bought = draw.random() < chain.chance(np.zeros(1), np.array([state]))[0]
            amount = int(draw.choice(5, p=MADE_UP.moves[chain.k[state]]))
            state = int(chain.after[state, amount] if bought else chain.without[state])
            if bought:
                date = f"{1997 + month // 12}{month % 12 + 1:02d}15"
                lines.append(f"9 {customer} {date} 1 {chain.states[state, 2] + draw.normal():.2f}")
    log = tmp_path / "log.txt"
    log.write_text("\n".join(lines))
    habits = market(Options(path=str(log))).habits
    assert np.allclose(habits.log_odds, MADE_UP.log_odds, atol=0.25)
    assert np.allclose(habits.dollars, MADE_UP.dollars, rtol=0.1)
    assert np.allclose(habits.moves, MADE_UP.moves, atol=0.15)


@pytest.mark.slow
def test_it_learns_to_mail(tmp_path: Path) -> None:
    """Near the best of all policies, and better than the same mail for everybody."""
    options = Options(customers=3000, gamma=0.8, margin=0.5)
    prepare_dataset("customers", tmp_path / "d", {"customers": 3000, "gamma": 0.8, "margin": 0.5})
    model = {"family": "clv_agent", "hidden": [32, 32], "dueling": True, "gamma": 0.8, "target_sync_steps": 20}
    changes = {"data__path": str(tmp_path / "d"), "train__steps": 700, "train__global_batch": 512}
    run = Small("clv_agent", tmp_path, model=model, optimizer={"name": "adam", "lr": 5e-3}, **changes)
    run.train(700)
    chain = market(options)
    mailed = np.array(options.spend)[run.learner.values(torch.from_numpy(chain.states)).argmax(1).numpy()]
    best, alike = chain.start @ chain.best().max(1), [chain.profit(np.full(len(mailed), s)) for s in options.spend]
    assert chain.profit(mailed) > 0.95 * best and chain.profit(mailed) > max(alike)


@pytest.mark.slow
def test_it_learns_how_much_to_spend() -> None:
    """Dollars whose best number depends on the customer: more for those who bought lately."""
    learner = made(MODEL | CONTINUOUS | {"actions": 41, "gamma": 0.0, "scale": 1.0, "hidden": [64, 64]}).train()
    optimizer = torch.optim.Adam(learner.q.parameters(), lr=5e-3)
    for step in range(300):
        given = batch(256, continuous=True, seed=step)
        given["reward"] = -((given["action"] - wanted(given["state"])) ** 2)
        optimizer.zero_grad()
        learner.loss(given, step)[0].backward()
        optimizer.step()
    state = batch(200, seed=999)["state"]
    spent = torch.linspace(1, 3, 41)[learner.values(state).argmax(1)]
    assert float((spent - wanted(state)).abs().mean()) < 0.1 and float(wanted(state).std()) > 0.3


def wanted(state: torch.Tensor) -> torch.Tensor:
    return 2.8 - 0.14 * state[:, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.0}, "a discount from 0 to below 1"),
        ({"spend": (-1.0, 2.0)}, "dollars of 0 or more"),
        ({"path": "bad.txt"}, "is not a purchase"),
        ({"path": "short.txt"}, "too few purchases"),
    ],
)
def test_options_that_cannot_be(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.txt").write_text("1 19970101 1 12.5\n1 19970301 x\n")
    Path("short.txt").write_text("1 19970101 1 12.5\n1 19970301 1 3\n")
    with pytest.raises(InputError, match=message):
        prepare_dataset("customers", tmp_path / "d", options)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"dueling": True, "continuous": True}, "an output for each action"), ({"least": 4.0}, "most must be more")],
)
def test_configs_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_config(MODEL | change)
