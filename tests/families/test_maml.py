"""Meta-learning against a loop over tasks and steps by hand, its count, and the network that learns all tasks jointly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.families.common import Rehearsal, made, parameters
from tests.small import contract_config

MODEL = {"family": "maml", "hidden": [6, 5], "support": 4, "query": 3, "inner_steps": 2, "inner_lr": 0.05}


def batch(tasks: int = 3) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    sizes = {"support": 4, "query": 3}
    columns = {f"{p}_{a}": torch.randn(tasks, n, 1, generator=draw).double() for p, n in sizes.items() for a in "xy"}
    return {**columns, "id": torch.arange(tasks)}


def by_hand(learner: Any, columns: dict[str, torch.Tensor], steps: int, first_order: bool) -> torch.Tensor:
    """One task after the other, by torch's own layers' formulas."""

    def net(weights: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(F.linear(x, weights[0], weights[1]))
        return F.linear(torch.relu(F.linear(h, weights[2], weights[3])), weights[4], weights[5])

    losses = []
    for i in range(3):
        weights = list(learner.parameters())
        for _ in range(steps):
            error = F.mse_loss(net(weights, columns["support_x"][i]), columns["support_y"][i])
            slopes = torch.autograd.grad(error, weights, create_graph=not first_order)
            weights = [w - 0.05 * g for w, g in zip(weights, slopes)]
        losses.append(F.mse_loss(net(weights, columns["query_x"][i]), columns["query_y"][i]))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("first_order", [False, True])
def test_loss_and_gradient_are_those_of_a_loop_over_tasks(first_order: bool) -> None:
    learner = made(MODEL | {"first_order": first_order}).double()
    columns = batch()
    loss, _ = learner.loss(columns, 0)
    expected = by_hand(learner, columns, 2, first_order)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    mine, theirs = (torch.autograd.grad(x, list(learner.parameters())) for x in (loss, expected))
    for a, b in zip(mine, theirs):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_second_derivatives_are_there_and_can_be_left_out() -> None:
    gradients = []
    for first_order in (False, True):
        learner = made(MODEL | {"first_order": first_order}).double()
        gradients.append(torch.autograd.grad(learner.loss(batch(), 0)[0], learner.maps[0].weight)[0])
    assert (gradients[0] - gradients[1]).abs().max() > 1e-4


def test_evaluation_tells_the_error_before_and_after() -> None:
    learner = made(MODEL | {"evaluate_steps": 4}).double()
    columns = batch()
    with torch.no_grad():  # as an engine evaluates
        metrics = learner.evaluate(columns)
    told = {name: float(total) / count for name, (total, count) in metrics.items()}
    for name, steps in (("before", 0), ("loss", 2), ("query_error", 4)):
        assert told[name] == pytest.approx(by_hand(learner, columns, steps, True).item(), rel=1e-6)


def test_the_papers_network() -> None:
    assert parameters("maml") == 1_761


@pytest.mark.slow
def test_it_beats_the_network_that_learned_all_tasks_jointly(small_data: Path) -> None:
    """After the same five steps on ten points of a new wave."""
    error = {}
    for inner_steps in (2, 0):
        values = contract_config("maml", small_data, train__steps=600)
        values["model"] = values["model"] | {"inner_steps": inner_steps}
        values["optimizer"] = {"name": "adam", "lr": 3e-3}
        run = Rehearsal(values)
        run.train(600)
        error[inner_steps] = run.evaluate()["query_error"]
    assert error[2] < 0.75 * error[0], error
