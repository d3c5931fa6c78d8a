"""GRU against its equations in NumPy, for both places of the reset gate, and against torch.nn.GRU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.families.common import made, parameters

BASE = {"family": "gru", "task": "rows", "inputs": 5, "steps": 7, "classes": 3, "units": 6}


@pytest.mark.parametrize("reset_after", [True, False])
def test_gru_has_the_agreed_number_of_parameters(reset_after: bool) -> None:
    head = 256 * 65 + 65
    assert parameters("gru", reset_after=reset_after) == 248_064 + head
    assert parameters("gru", reset_after=reset_after, layers=2) == 248_064 + 3 * (256 * 512 + 512) + head


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_gru_is_its_equations(layers: int, reset_after: bool) -> None:
    learner = made({**BASE, "layers": layers, "reset_after": reset_after}).double()
    x = torch.randn(4, 7, 5, dtype=torch.float64)

    def sigmoid(a: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-a))

    expected = x.numpy()
    for layer in learner.stack:
        (Wr, Wz, Wn), (Ur, Uz, Un), (br, bz, bn), (cr, cz, cn) = (
            np.split(p.detach().numpy(), 3) for p in layer.parameters()
        )
        h, states = np.zeros((4, 6)), []
        for x_t in expected.transpose(1, 0, 2):
            r = sigmoid(x_t @ Wr.T + br + h @ Ur.T + cr)
            z = sigmoid(x_t @ Wz.T + bz + h @ Uz.T + cz)
            recurrent = r * (h @ Un.T + cn) if reset_after else (r * h) @ Un.T + cn
            h = (1 - z) * np.tanh(x_t @ Wn.T + bn + recurrent) + z * h
            states.append(h)
        expected = np.stack(states, 1)
    assert np.abs(learner.states(x).detach().numpy() - expected).max() < 1e-12 and expected.std() > 0.05
    assert np.abs(learner.float().states(x.float()).detach().numpy() - expected).max() < 1e-5


def test_gru_with_the_reset_after_the_product_is_torchs_gru() -> None:
    """States and gradients of a stack of two."""
    learner = made({**BASE, "layers": 2, "reset_after": True}).double()
    peer = nn.GRU(5, 6, 2, batch_first=True).double()
    ours, theirs = [p for layer in learner.stack for p in layer.parameters()], list(peer.parameters())
    with torch.no_grad():
        for to, value in zip(theirs, ours, strict=True):
            to.copy_(value)
    x, weight = torch.randn(4, 7, 5, dtype=torch.float64), torch.randn(4, 7, 6, dtype=torch.float64)
    got, expected = learner.states(x), peer(x)[0]
    assert (got - expected).abs().max() < 1e-12
    wanted = torch.autograd.grad((expected * weight).sum(), theirs)
    for a, b in zip(torch.autograd.grad((got * weight).sum(), ours), wanted, strict=True):
        assert (a - b).abs().max() < 1e-11 and b.abs().max() > 1e-2


def test_the_two_forms_agree_where_the_reset_gate_is_one() -> None:
    """r = 1 makes them the same function; anything else does not."""
    before, after = (made({**BASE, "reset_after": which}).double() for which in (False, True))
    after.load_state_dict(before.state_dict())
    x = torch.randn(4, 7, 5, dtype=torch.float64)
    assert (before.states(x) - after.states(x)).abs().max() > 1e-3
    with torch.no_grad():
        for learner in (before, after):
            learner.stack[0].bias_ih_l0[:6] = 1000
    assert (before.states(x) - after.states(x)).abs().max() < 1e-12
    weights = [learner.stack[0].weight_hh_l0 for learner in (before, after)]
    g, e = (torch.autograd.grad(m.states(x).sum(), w)[0] for m, w in zip((before, after), weights, strict=True))
    assert (g - e)[6:].abs().max() < 1e-11 and e[6:].abs().max() > 1e-2
