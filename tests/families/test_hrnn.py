"""The hierarchical network against GRU cells step by step, its causality, and the clockwork network by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.families.common import made, parameters

BASE = {"family": "hrnn", "task": "values", "inputs": 5, "steps": 12, "units": 6, "chunk": 3}
CLOCKWORK = {**BASE, "form": "clockwork", "groups": 3}


def test_hrnn_has_the_stated_number_of_parameters() -> None:
    assert parameters("hrnn") == 60_672 + 99_072 + 2_570
    assert parameters("hrnn", form="clockwork") == 128 * (28 + 128) + 128 + 1_290


def cell_of(gru: nn.GRU) -> nn.GRUCell:
    cell = nn.GRUCell(gru.input_size, gru.hidden_size).double()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in gru.state_dict().items()})
    return cell


def test_hrnn_is_a_fast_and_a_slow_gru() -> None:
    """One step after the other, as a definition would say it; gradients of every weight, too."""
    learner = made(BASE).double()
    low_cell, high_cell = cell_of(learner.net.low), cell_of(learner.net.high)
    x, weight = torch.randn(4, 12, 5, dtype=torch.float64), torch.randn(4, 12, 12, dtype=torch.float64)
    low = high = torch.zeros(4, 6, dtype=torch.float64)
    states = []
    for t in range(12):
        low = low_cell(x[:, t], torch.zeros_like(low) if t % 3 == 0 else low)
        if t % 3 == 2:
            high = high_cell(low, high)
        states.append(torch.cat([low, high], -1))
    expected, got = torch.stack(states, 1), learner.states(x)
    assert (got - expected).abs().max() < 1e-12 and expected[:, 3:].std(0).min() > 1e-4
    theirs = [*low_cell.parameters(), *high_cell.parameters()]
    ours = torch.autograd.grad((got * weight).sum(), list(learner.net.parameters()))
    for a, b in zip(ours, torch.autograd.grad((expected * weight).sum(), theirs), strict=True):
        assert (a - b).abs().max() < 1e-11 and b.abs().max() > 1e-3


def test_hrnn_is_two_calls_of_torchs_gru() -> None:
    learner = made(BASE)
    x = torch.randn(4, 12, 5)
    ends = torch.stack([learner.net.low(x[:, j : j + 3])[0][:, -1] for j in range(0, 12, 3)], 1)
    high, _ = learner.net.high(ends)
    got = learner.states(x)
    assert (got[:, 2::3, :6] - ends).abs().max() < 1e-6 and (got[:, 2::3, 6:] - high).abs().max() < 1e-6


@pytest.mark.parametrize("model", [BASE, CLOCKWORK])
def test_hrnn_does_not_see_the_future(model: dict) -> None:
    learner = made(model).double()
    x = torch.randn(2, 12, 5, dtype=torch.float64)
    before = learner.states(x)
    for t in range(1, 12):
        other = torch.cat([x[:, :t], x[:, t:] + 1], 1)
        after = learner.states(other)
        assert torch.equal(after[:, :t], before[:, :t]) and (after[:, t] - before[:, t]).abs().max() > 1e-3


def test_clockwork_is_its_equations() -> None:
    learner = made(CLOCKWORK).double()
    W, U, b = (p.detach() for p in learner.net.parameters())
    x = torch.randn(4, 12, 5, dtype=torch.float64)
    groups = [(1, slice(0, 2)), (2, slice(2, 4)), (4, slice(4, 6))]
    h = torch.zeros(4, 6, dtype=torch.float64)
    for t in range(1, 13):
        old, h = h, h.clone()
        for period, rows in groups:
            if t % period == 0:
                heard = sum(old[:, cols] @ U[rows, cols].T for other, cols in groups if other >= period)
                h[:, rows] = torch.tanh(x[:, t - 1] @ W[rows].T + b[rows] + heard)
        assert torch.allclose(learner.states(x)[:, t - 1], h, atol=1e-12)


def test_clockwork_of_one_group_is_torchs_rnn() -> None:
    learner = made({**CLOCKWORK, "groups": 1}).double()
    peer = nn.RNN(5, 6, batch_first=True).double()
    with torch.no_grad():
        for to, value in zip(peer.parameters(), learner.net.parameters()):
            to.copy_(value)
        peer.bias_hh_l0.zero_()
    x = torch.randn(4, 12, 5, dtype=torch.float64)
    assert (learner.states(x) - peer(x)[0]).abs().max() < 1e-12


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="12 steps are no whole chunks of 5"):
        made({**BASE, "chunk": 5})
    with pytest.raises(ValueError, match="6 units cannot be split into 4 groups"):
        made({**CLOCKWORK, "groups": 4})
