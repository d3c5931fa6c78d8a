"""The fully recurrent network: one gradient in two ways, torch's recurrence, and its task."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.families.common import made, parameters

MODEL = {"family": "frn", "inputs": 3, "units": 6, "outputs": 2}


def some(ticks: int = 12, due: int = 9) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(5, ticks, 3, generator=generator), torch.rand(5, due, 2, generator=generator)
    return {"x": x.double(), "y": y.double(), "id": torch.arange(5)}


@pytest.mark.parametrize("activation", ["logistic", "tanh"])
def test_both_gradients_are_one(activation: str) -> None:
    gradients, losses = [], []
    for gradient in ("bptt", "rtrl"):
        learner = made(MODEL | {"activation": activation, "gradient": gradient}).double()
        loss, _ = learner.loss(some(), 0)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(learner.weight.grad)
    assert losses[0] == pytest.approx(losses[1], abs=1e-15)
    assert float((gradients[0] - gradients[1]).abs().max()) < 1e-12 and float(gradients[0].abs().min()) > 1e-6


def test_real_time_learning_keeps_nothing_of_the_past() -> None:
    """Nothing is recorded for a backward pass but the term that carries the gradient, however long the sequence."""

    def nodes(gradient: str, ticks: int) -> int:
        learner = made(MODEL | {"gradient": gradient}).double()
        seen, todo = set(), [learner.loss(some(ticks), 0)[0].grad_fn]
        while todo:
            node = todo.pop()
            if node is not None and node not in seen:
                seen.add(node)
                todo += [following for following, _ in node.next_functions]
        return len(seen)

    assert nodes("rtrl", 12) == nodes("rtrl", 40) < nodes("bptt", 12) < nodes("bptt", 40)


def test_the_network_is_torchs_with_the_inputs_and_units_in_one_matrix() -> None:
    learner, x = made(MODEL | {"activation": "tanh"}).double(), some()["x"]
    peer = torch.nn.RNN(3, 6, batch_first=True).double()
    weight = learner.weight.detach()
    with torch.no_grad():
        peer.weight_hh_l0.copy_(weight[:, :6])
        peer.weight_ih_l0.copy_(weight[:, 6:9])
        peer.bias_ih_l0.copy_(weight[:, 9])
        peer.bias_hh_l0.zero_()
        expected = peer(x)[0]
        assert torch.allclose(learner.activities(x), expected, atol=1e-12)
        errors = learner.errors(some())
    assert torch.allclose(errors, some()["y"] - expected[:, 3:, :2], atol=1e-12)  # the last nine ticks are due


def test_the_logistic_unit_and_the_loss_by_hand() -> None:
    learner, batch = made(MODEL).double(), some()
    weight, y = learner.weight.detach().numpy(), np.zeros((5, 6))
    total, hits = 0.0, 0
    for t in range(12):
        z = np.concatenate([y, batch["x"][:, t].numpy(), np.ones((5, 1))], 1)
        y = 1 / (1 + np.exp(-z @ weight.T))
        if t >= 3:
            error = batch["y"][:, t - 3].numpy() - y[:, :2]
            total, hits = total + 0.5 * (error**2).sum(), hits + (abs(error) < 0.5).sum()
    loss, metrics = learner.loss(batch, 0)
    assert float(loss.detach()) == pytest.approx(total / (5 * 9), abs=1e-14)
    assert float(metrics["accuracy"].total) == hits and metrics["accuracy"].count == 5 * 9 * 2


def test_parameters_and_start() -> None:
    assert parameters("frn") == 8 * (8 + 2 + 1)
    assert parameters("frn", units=20, inputs=5) == 20 * (20 + 5 + 1)
    weight = made({"family": "frn", "units": 50, "scale": 0.1}).weight
    assert 0.09 < float(weight.detach().abs().max()) <= 0.1
    with pytest.raises(ValueError, match="add units"):
        made({"family": "frn", "units": 2, "outputs": 3})
