"""The map against MiniSom (online) and against sums by hand (batch)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.families.common import Small, made, parameters
from tests.ranks import run_ranks
from tests.small import contract_config, curves, layout


class OneRank:
    def all_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def test_the_online_rule_has_a_parameter_for_each_prototype_and_pixel() -> None:
    assert parameters("som", rule="online") == 15 * 15 * 64 == 14_400
    assert parameters("som") == 0
    assert made({"family": "som"}).code.shape == (225, 64)


def test_online_rule_is_minisoms_update() -> None:
    """200 samples, one by one, radius and rate falling alike."""
    from minisom import MiniSom
    from sklearn.datasets import load_digits

    x = load_digits().data[:200] / 16
    peer = MiniSom(7, 5, 64, sigma=2.0, learning_rate=0.5, random_seed=0)
    model = {"family": "som", "inputs": [64], "grid": [7, 5], "rule": "online", "sigma": 2.0, "decay_steps": 200}
    learner = made(model).double()
    with torch.no_grad():
        learner.code.copy_(torch.from_numpy(peer.get_weights().reshape(35, 64)))
    start = learner.code.detach().clone()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.5)
    for t, sample in enumerate(x):
        peer.update(sample, peer.winner(sample), t, 200)
        loss, _ = learner.loss({"image": torch.from_numpy(sample[None])}, t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    got = learner.code.detach()
    assert np.abs(got.numpy() - peer.get_weights().reshape(35, 64)).max() < 1e-12
    assert (got - start).abs().max() > 0.5
    metrics = learner.evaluate({"image": torch.from_numpy(x)})
    reached = {name: float(total) / count for name, (total, count) in metrics.items()}
    assert reached["quantisation_error"] == pytest.approx(peer.quantization_error(x), abs=1e-6)
    assert reached["topographic_error"] == pytest.approx(peer.topographic_error(x), abs=1e-6)


def test_batch_rule_is_its_formula() -> None:
    """Sample by sample and unit by unit, over three batches whose sums fade by half."""
    model = {"family": "som", "inputs": [3], "grid": [4, 3], "sigma": 1.5, "decay_steps": 10, "memory": 0.5}
    learner = made(model).double()
    w = learner.code.clone().numpy()
    place = np.array([(row, column) for row in range(4) for column in range(3)])
    top, bottom = np.zeros((12, 3)), np.zeros(12)
    for step in range(3):
        x = np.random.default_rng(step).random((9, 3))
        top, bottom = top / 2, bottom / 2
        for sample in x:
            winner = min(range(12), key=lambda j: ((sample - w[j]) ** 2).sum())
            for j in range(12):
                sigma = 1.5 / (1 + step / 5)
                h = np.exp(-((place[winner] - place[j]) ** 2).sum() / (2 * sigma**2))
                top[j] += h * sample
                bottom[j] += h
        learner.update({"image": torch.from_numpy(x)}, OneRank(), step)
        w = top / bottom[:, None]
        assert np.abs(learner.code.numpy() - w).max() < 1e-12


def test_a_unit_that_nothing_reaches_stays() -> None:
    learner = made({"family": "som", "inputs": [2], "grid": [60, 2], "sigma": 0.5})
    before = learner.code.clone()
    learner.update({"image": before[:1] * 1.1}, OneRank(), 0)
    assert torch.equal(learner.code[-1], before[-1]) and not torch.equal(learner.code[0], before[0])


def test_topographic_error_counts_the_eight_neighbours() -> None:
    learner = made({"family": "som", "inputs": [1], "grid": [3, 3]})
    learner.code.copy_(torch.tensor([[0.0], [50], [9], [60], [1], [70], [80], [90], [10]]))
    for value, error in ((0.4, 0), (9.4, 1)):  # nearest: units 0 and 4 (a diagonal), units 2 and 8 (two rows apart)
        total, count = learner.evaluate({"image": torch.tensor([[value]])})["topographic_error"]
        assert (float(total), count) == (error, 1)


def test_the_online_rule_learns_through_the_engine(small_data: Path) -> None:
    model = {"family": "som", "grid": [6, 5], "rule": "online", "sigma": 2.0, "decay_steps": 60}
    changes = {"model": model, "optimizer": {"name": "sgd", "lr": 0.5}, "train__clip_norm": None}
    run = Small("som", small_data, **changes, train__steps=60)
    first = run.evaluate()["quantisation_error"]
    run.train(60)
    assert run.evaluate()["quantisation_error"] < first - 1


@pytest.mark.slow
def test_the_online_rule_is_the_same_on_two_ranks(small_data: Path) -> None:
    model = {"family": "som", "grid": [6, 5], "rule": "online", "sigma": 2.0, "decay_steps": 20}
    values = contract_config("som", small_data, model=model, optimizer={"name": "sgd", "lr": 0.5})
    one = run_ranks(curves, 1, {"som": values})[0]["som"]
    two = run_ranks(curves, 2, {"som": layout(values, "torch", 2)})[0]["som"]
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert two["evaluation"] == pytest.approx(one["evaluation"], abs=1e-5)
    assert len(set(one["loss"])) == 20
