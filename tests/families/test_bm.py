"""The Boltzmann machine against plain loops over its states."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from distdl.data.generators.synthetic import Options, bars_and_stripes
from distdl.families import load_family
from distdl.layout import noise
from tests.families.common import made, parameters


def machine(**changes: object) -> object:
    """Four visible and three hidden units in double precision, with weights that are not small."""
    learner = made({"family": "bm", "visible": 4, "hidden": 3, **changes}).double()
    with torch.no_grad():
        for p in learner.parameters():
            p.copy_(torch.randn_like(p))
    return learner


def distribution(bm: object) -> tuple[np.ndarray, np.ndarray]:
    """All states and their probabilities, one after the other: (2^n, n), (2^n,)."""
    W, b = bm.weights().detach().numpy(), bm.bias.detach().numpy()
    states = np.array(list(itertools.product([0.0, 1.0], repeat=bm.units)))
    energy = [-sum(W[i, j] * x[i] * x[j] for i in range(bm.units) for j in range(i)) - b @ x for x in states]
    weight = np.exp(-np.array(energy))
    return states, weight / weight.sum()


def test_parameters_and_weights() -> None:
    assert parameters("bm") == 13 * 12 // 2 + 13 == 91
    assert parameters("bm", hidden=0) == 9 * 8 // 2 + 9
    W = machine().weights()
    assert torch.equal(W, W.T) and not W.diagonal().any() and len(W.unique()) == 7 * 6 // 2 + 1


def test_the_likelihood_is_that_of_all_states() -> None:
    bm = machine()
    states, p = distribution(bm)
    v = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64)
    marginal = [p[(states[:, :4] == row.numpy()).all(1)].sum() for row in v]
    assert np.abs(bm.nll(v).detach().numpy() + np.log(marginal)).max() < 1e-12
    assert float((-bm.nll(v)).exp().sum().detach()) == pytest.approx(1, abs=1e-12)
    assert np.ptp(marginal) > 0.05


def test_the_gradient_is_the_rule_of_1985() -> None:
    """Minus the gradient of the loss = clamped minus free correlations, to 1e-12."""
    bm = machine()
    v = torch.randint(0, 2, (6, 4)).double()
    bm.loss({"x": v}, 0)[0].backward()
    states, p = distribution(bm)
    free, free_mean = (states * p[:, None]).T @ states, p @ states
    clamped, clamped_mean = np.zeros((7, 7)), np.zeros(7)
    for row in v.numpy():
        q = p * (states[:, :4] == row).all(1)
        clamped += (states * q[:, None]).T @ states / q.sum() / 6
        clamped_mean += q @ states / q.sum() / 6
    above = np.triu_indices(7, 1)
    assert np.abs(bm.pairs.grad.numpy() + (clamped - free)[above]).max() < 1e-12
    assert np.abs(bm.bias.grad.numpy() + clamped_mean - free_mean).max() < 1e-12
    assert np.abs((clamped - free)[above]).max() > 0.05


def test_gibbs_sampling_reaches_the_distribution() -> None:
    bm = machine(learning="sampled", sweeps=30)
    states, p = distribution(bm)
    noise.begin(1, torch.arange(20_000))
    x = bm.gibbs(torch.zeros(20_000, 7, dtype=torch.float64), range(7))
    clamped = bm.clamped({"x": torch.ones(20_000, 4)})
    noise.begin(0, None)
    assert np.abs(x.mean(0).numpy() - p @ states).max() < 0.02  # six standard deviations of a fair coin's mean
    assert np.abs((x.T @ x / 20_000).numpy() - (states * p[:, None]).T @ states).max() < 0.02
    assert clamped[:, :4].all()  # the data stays
    q = p * states[:, :4].all(1)
    assert np.abs(clamped.mean(0).numpy() - q @ states / q.sum()).max() < 0.02


def test_sampled_learning_follows_the_exact_gradient() -> None:
    """Over many samples the sampled loss has the exact loss's gradient."""
    v = torch.randint(0, 2, (40_000, 4)).double()
    exact, sampled = machine(), machine(learning="sampled", sweeps=30)
    sampled.load_state_dict(exact.state_dict())
    exact.loss({"x": v}, 0)[0].backward()
    noise.begin(2, torch.arange(len(v)))
    sampled.loss({"x": v}, 0)[0].backward()
    noise.begin(0, None)
    assert sampled.primary == "surprise" and exact.primary == "loss"
    assert (sampled.pairs.grad - exact.pairs.grad).abs().max() < 0.02 < exact.pairs.grad.abs().max()


def test_sampled_learning_raises_the_likelihood() -> None:
    v = torch.from_numpy(bars_and_stripes(Options("bars_and_stripes", length=3))[1]["train"]["x"])
    bm = made({"family": "bm", "learning": "sampled", "sweeps": 2})
    optimizer = torch.optim.Adam(bm.parameters(), lr=0.05)
    first = float(bm.nll(v).mean().detach())
    for step in range(100):
        noise.begin(3, torch.arange(step * 70, step * 70 + 70))
        bm.loss({"x": v.repeat(5, 1)}, step)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    noise.begin(0, None)
    assert float(bm.nll(v).mean().detach()) < first - 2


def test_surprise_is_that_of_a_unit_given_the_others() -> None:
    bm = machine(hidden=0, learning="sampled")
    states, p = distribution(bm)
    index = {tuple(x): q for x, q in zip(states, p)}
    expected = []
    for x in states:
        for i in range(4):
            other = tuple(1 - value if j == i else value for j, value in enumerate(x))
            expected.append(-math.log(index[tuple(x)] / (index[tuple(x)] + index[other])))
    total, count = bm.evaluate({"x": torch.from_numpy(states)})["surprise"]
    assert float(total) / count == pytest.approx(np.mean(expected), abs=1e-6)


def test_too_many_states_are_refused() -> None:
    config = load_family("bm").Config
    with pytest.raises(ValueError, match=r"2\^17 states.*learning: sampled"):
        config(visible=9, hidden=8)
    assert config(visible=9, hidden=8, learning="sampled").hidden == 8


def test_bars_and_stripes() -> None:
    columns, splits = bars_and_stripes(Options("bars_and_stripes", length=3))
    rows = splits["train"]["x"]
    assert rows.shape == (14, 9) == (2 * 2**3 - 2, *columns["x"].shape) and rows.dtype == np.float32
    assert len(np.unique(rows, axis=0)) == 14 and splits["test"]["x"] is rows
    for picture in rows.reshape(14, 3, 3):
        assert (picture == picture[:, :1]).all() or (picture == picture[:1]).all()
