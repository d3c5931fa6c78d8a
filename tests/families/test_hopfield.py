"""The Hopfield network against its formulas: Hebb's sum, the energy that never rises, the capacity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from distdl.families.hopfield import signs, updated
from distdl.layout import noise
from tests.families.common import made, parameters

MODEL = {"family": "hopfield", "units": 100}


class Alone:
    """The engine of one worker."""

    def all_sum(self, tensor: Tensor) -> Tensor:
        return tensor


def stored(patterns: Tensor, **model: object) -> object:
    learner = made(MODEL | {"units": patterns.shape[1], **model})
    learner.update({"x": patterns}, Alone(), 0)
    return learner


def overlap(learner: object, patterns: Tensor) -> float:
    noise.begin(7, torch.arange(len(patterns)))
    try:
        total, count = learner.evaluate({"x": patterns})["overlap"]
    finally:
        noise.begin(0, None)
    return float(total) / count


def random_patterns(rows: int, units: int, seed: int = 0) -> Tensor:
    return signs(torch.randn(rows, units, generator=torch.Generator().manual_seed(seed)))


def test_the_weights_are_hebbs_sum() -> None:
    patterns = random_patterns(7, 100)
    expected = sum(np.outer(p, p) for p in patterns.double().numpy()) / 100
    np.fill_diagonal(expected, 0)
    weights = stored(patterns).weights
    assert np.abs(weights.double().numpy() - expected).max() < 1e-7
    different = torch.triu_indices(100, 100, offset=1)
    assert different.shape[1] == 100 * 99 // 2 and torch.equal(weights, weights.T)
    assert parameters("hopfield") == 0  # nothing is trained by a gradient


def test_batches_in_any_order_add_up_to_the_pass() -> None:
    patterns = random_patterns(9, 100)
    whole, parts = stored(patterns), made(MODEL)
    for part in (patterns[5:], patterns[2:5], patterns[:2]):
        parts.update({"x": part}, Alone(), 0)
    assert torch.equal(whole.products, parts.products)
    whole.update({"x": patterns}, Alone(), 1)  # another pass: no sign changes
    assert torch.equal(whole.weights, 2 * parts.weights)


def test_the_energy_never_rises() -> None:
    learner = stored(random_patterns(30, 100))  # crowded: many minima that are not stored
    weights, state = learner.weights, random_patterns(20, 100, seed=1)
    order = torch.rand(20, 300, generator=torch.Generator().manual_seed(2)).mul(100).long()
    energy, turned = learner.energy(state), 0
    for k in range(order.shape[1]):
        after = updated(state, weights, order[:, k : k + 1])
        turned += int((after != state).sum())
        assert int((after != state).sum(-1).max()) <= 1  # one unit at a time
        state, before = after, energy
        energy = learner.energy(state)
        assert bool((energy <= before + 1e-6).all())
    by_hand = -0.5 * np.einsum("bi,ij,bj->b", state.numpy(), weights.numpy(), state.numpy()) / 100
    assert np.abs(energy.numpy() - by_hand).max() < 1e-5 and turned > 100


def test_a_recall_ends_in_a_fixed_point() -> None:
    learner = stored(random_patterns(8, 100))
    state = learner.recall(random_patterns(20, 100, seed=1))
    assert torch.equal(learner.recall(state), state)
    assert torch.equal(signs(state @ learner.weights), state)
    silent = made(MODEL)  # no weights, no field: nothing changes
    assert torch.equal(silent.recall(state), state)


def test_recall_breaks_down_beyond_its_capacity() -> None:
    """alpha_c = 0.138 (Amit, Gutfreund & Sompolinsky 1985)."""
    few, many = random_patterns(10, 200), random_patterns(60, 200)
    assert overlap(stored(few), few) > 0.99
    assert overlap(stored(many), many) < 0.7
    assert overlap(stored(few, flipped=0.5), few) < 0.5  # a cue that says nothing
    assert overlap(stored(few, flipped=0.0, sweeps=1), few) > 0.999


def test_it_recalls_real_digits() -> None:
    """The classes' mean pictures of scikit-learn's digits, each pixel compared with its mean over the classes."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    means = np.stack([raw.data[raw.target == digit].mean(0) for digit in (0, 1, 4, 7)])
    patterns = torch.from_numpy(np.where(means > means.mean(0), 1.0, -1.0)).float()
    assert overlap(stored(patterns), patterns.repeat(25, 1)) > 0.99
    alike = torch.from_numpy(np.where(means > 8, 1.0, -1.0)).float()  # correlated patterns run into each other
    assert overlap(stored(alike), alike.repeat(25, 1)) < 0.9


@pytest.mark.parametrize("flipped", [0.0, 0.25])
def test_cues_have_so_many_bits_flipped(flipped: float) -> None:
    patterns = random_patterns(50, 100)
    assert overlap(made(MODEL | {"flipped": flipped}), patterns) == pytest.approx(1 - 2 * flipped, abs=0.03)
