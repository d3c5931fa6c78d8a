"""The perceptron rule against scikit-learn's, and its options by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.families.common import made, parameters


def digits(rows: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    raw = load_digits()
    return raw.data[:rows] / 16, raw.target[:rows].astype(np.int64)


def train(learner, x: np.ndarray, label: np.ndarray, size: int = 1) -> None:
    """Gradient descent at rate 1, some samples at a time."""
    optimizer = torch.optim.SGD(learner.parameters(), lr=1.0)
    for step, start in enumerate(range(0, len(x), size)):
        part = slice(start, start + size)
        batch = {"image": torch.from_numpy(x[part]), "label": torch.from_numpy(label[part])}
        optimizer.zero_grad()
        learner.loss(batch, step)[0].backward()
        optimizer.step()


def test_the_mark_i_has_4104_trainable_parameters() -> None:
    assert parameters("perceptron") == 512 * 8 + 8 == 4_104


def test_gradient_descent_on_the_surrogate_is_the_rule_bit_for_bit() -> None:
    """Two passes over two classes, one sample at a time, in scikit-learn's order."""
    from sklearn.linear_model import Perceptron

    x, label = digits(400)
    label = (label == 8).astype(np.int64)
    peer = Perceptron(shuffle=False, max_iter=2, tol=None).fit(x, label)
    model = {"family": "perceptron", "inputs": [64], "association": 0, "classes": 2}
    learner = made(model).double()
    train(learner, np.concatenate([x, x]), np.concatenate([label, label]))
    weight, bias = learner.response.weight.detach().numpy(), learner.response.bias.detach().numpy()
    assert np.abs(weight[1] - peer.coef_[0]).max() == 0.0 and bias[1] == peer.intercept_[0]
    assert np.array_equal(weight[0], -weight[1])  # two units of opposite targets
    assert np.abs(weight).max() > 1


def test_ten_classes_one_against_the_rest_are_scikit_learns() -> None:
    from sklearn.linear_model import Perceptron

    x, label = digits(300)
    peer = Perceptron(shuffle=False, max_iter=1, tol=None).fit(x, label)
    learner = made({"family": "perceptron", "inputs": [64], "association": 0}, seed=1).double()
    ten = made({"family": "perceptron", "inputs": [64], "association": 0, "classes": 10}).double()
    assert learner.response.weight.shape == (8, 64)  # the Mark I had eight
    train(ten, x, label)
    assert np.abs(ten.response.weight.detach().numpy() - peer.coef_).max() == 0.0
    assert np.abs(ten.response.bias.detach().numpy() - peer.intercept_).max() == 0.0


def test_the_multiclass_rule_moves_two_units_by_the_sample() -> None:
    """Kesler's form by hand: the right unit gains the sample, the strongest wrong one loses it, where that is stronger."""
    x, label = digits(200)
    model = {"family": "perceptron", "inputs": [64], "association": 0, "classes": 10, "rule": "multiclass"}
    learner = made(model).double()
    with torch.no_grad():  # no two units equal: scikit-learn has no such rule, and a tie could fall either way
        learner.response.weight.normal_(generator=torch.Generator().manual_seed(1))
    w, b = learner.response.weight.detach().numpy().copy(), np.zeros(10)
    errors = 0
    for sample, k in zip(x, label):
        s = w @ sample + b
        wrong = max((j for j in range(10) if j != k), key=lambda j: s[j])
        if s[wrong] >= s[k]:
            w[k], b[k], w[wrong], b[wrong] = w[k] + sample, b[k] + 1, w[wrong] - sample, b[wrong] - 1
            errors += 1
    train(learner, x, label)
    assert np.abs(learner.response.weight.detach().numpy() - w).max() < 1e-12
    assert np.abs(learner.response.bias.detach().numpy() - b).max() < 1e-12
    assert 20 < errors < 200


@pytest.mark.parametrize("size", [1, 4])
def test_the_average_is_of_the_weights_that_met_each_batch(size: int) -> None:
    x, label = digits(40)
    model = {"family": "perceptron", "inputs": [64], "association": 0, "classes": 10, "average": True}
    learner = made(model).double()
    met = []
    whole = learner.response.forward
    learner.response.forward = lambda a: (met.append(learner.response.weight.detach().clone()), whole(a))[1]
    train(learner, x, label, size)
    assert len(met) == 40 // size
    assert torch.allclose(learner.mean_weight, torch.stack(met).mean(0), atol=1e-12)
    assert not torch.allclose(learner.mean_weight, learner.response.weight, atol=1e-3)


def test_micro_batches_of_a_step_count_once_in_the_average() -> None:
    x, label = digits(4)
    learner = made({"family": "perceptron", "inputs": [64], "association": 0, "classes": 10, "average": True}).double()
    batch = {"image": torch.from_numpy(x), "label": torch.from_numpy(label)}
    for step, value in ((0, 1.0), (0, 1.0), (1, 4.0), (1, 4.0)):
        torch.nn.init.constant_(learner.response.weight, value)
        learner.loss(batch, step)
    assert torch.allclose(learner.mean_weight, torch.full((10, 64), 2.5, dtype=torch.float64))
    learner.mean_weight.zero_()[3] = 1  # the average decides, not the last weights
    learner.mean_bias.zero_()
    metrics = learner.evaluate(batch)
    assert float(metrics["accuracy"].total) == (label == 3).sum()
    assert float(metrics["accuracy_of_last"].total) == (label == 0).sum()  # all units alike: the first


def test_association_units_are_fixed_signs_behind_a_threshold() -> None:
    learner = made({"family": "perceptron", "inputs": [64], "association": 50, "classes": 10}).double()
    assert set(learner.wiring.unique().tolist()) == {-1.0, 1.0} and 1_400 < (learner.wiring > 0).sum() < 1_800
    x, label = digits(100)
    before = learner.wiring.clone()
    train(learner, x, label)
    seen = learner.stimulus({"image": torch.from_numpy(x)}).numpy()
    assert np.array_equal(seen, (x @ before.numpy().T >= 0).astype(float)) and 0.1 < seen.mean() < 0.9
    assert torch.equal(learner.wiring, before) and not learner.wiring.requires_grad


def test_a_sum_that_cancels_fires_whatever_is_multiplied_beside_it() -> None:
    """Whole pixels that cancel exactly are at the threshold; scaled to 0..1 they would miss it by a rounding."""
    learner = made({"family": "perceptron", "inputs": [64], "association": 300})
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 17, (64, 64), generator=generator, dtype=torch.uint8)
    sums = image.long() @ learner.wiring.long().T
    assert int((sums == 0).sum()) > 50
    for rows in (1, 2, 16, 64):
        parts = [learner.stimulus({"image": part}) for part in image.split(rows)]
        assert torch.equal(torch.cat(parts), (sums >= 0).float())
