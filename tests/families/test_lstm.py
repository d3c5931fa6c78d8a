"""LSTM against its equations in NumPy and torch.nn.LSTM, the cell of 1997, and Zaremba's word model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distdl.layout import noise
from tests.families.common import made, parameters

ROWS = {"task": "rows", "embedding": 0, "dropout": 0.0, "inputs": 5, "steps": 7, "classes": 3, "units": 6}
BASE = {"family": "lstm", **ROWS}


def test_lstm_has_the_agreed_number_of_parameters() -> None:
    assert parameters("lstm") == 19_780_400  # Zaremba et al. 2014, medium
    characters = {"inputs": 65, "embedding": 0, "units": 256, "layers": 1}
    head = 256 * 65 + 65
    assert parameters("lstm", **characters) == 330_752 + head
    assert parameters("lstm", **characters, forget_gate=False) == 3 * 82_688 + head


def numpy_states(learner: Any, x: np.ndarray, forget_gate: bool) -> np.ndarray:
    """The equations of the module's docstring, layer by layer, on (B, T, D)."""

    def sigmoid(a: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-a))

    for layer in learner.stack:
        W, U, b, c_ = (p.detach().numpy() for p in layer.parameters())
        h = c = np.zeros((len(x), U.shape[1]))
        states = []
        for x_t in x.transpose(1, 0, 2):
            blocks = np.split(x_t @ W.T + b + h @ U.T + c_, 4 if forget_gate else 3, axis=-1)
            i, g, o = sigmoid(blocks[0]), np.tanh(blocks[-2]), sigmoid(blocks[-1])
            f = sigmoid(blocks[1]) if forget_gate else 1.0
            c = f * c + i * g
            h = o * np.tanh(c)
            states.append(h)
        x = np.stack(states, 1)
    return x


@pytest.mark.parametrize("forget_gate", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_lstm_is_its_equations(layers: int, forget_gate: bool) -> None:
    learner = made({**BASE, "layers": layers, "forget_gate": forget_gate}).double()
    x = torch.randn(4, 7, 5, dtype=torch.float64)
    expected = numpy_states(learner, x.numpy(), forget_gate)
    assert np.abs(learner.states(x).detach().numpy() - expected).max() < 1e-12 and expected.std() > 0.05
    single = learner.float().states(x.float()).detach().double().numpy()
    assert np.abs(single - expected).max() < 1e-5


def test_lstm_is_torchs_lstm_with_gradients() -> None:
    learner = made({**BASE, "layers": 2}).double()
    peer = nn.LSTM(5, 6, 2, batch_first=True).double()
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


def test_the_cell_of_1997_is_an_lstm_whose_forget_gate_stays_open() -> None:
    """With a forget gate's bias of +1000, f = 1 to the last bit: the same states, and the same gradients elsewhere."""
    learner = made({**BASE, "layers": 1, "forget_gate": False}).double()
    layer = learner.stack[0]
    peer = nn.LSTM(5, 6, batch_first=True).double()
    forget = slice(6, 12)  # torch's rows are i, f, g, o
    kept = [row for row in range(24) if row not in range(6, 12)]
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            theirs = getattr(peer, f"{name}_l0")
            theirs[forget] = 0
            theirs[kept] = getattr(layer, name)
        peer.bias_ih_l0[forget] = 1000
    x = torch.randn(4, 7, 5, dtype=torch.float64)
    got, expected = learner.states(x), peer(x)[0]
    assert (got - expected).abs().max() < 1e-12
    (g,) = torch.autograd.grad(got[:, -1].sum(), layer.weight_hh)
    (e,) = torch.autograd.grad(expected[:, -1].sum(), peer.weight_hh_l0)
    assert (g - e[kept]).abs().max() < 1e-12 and g.abs().max() > 1e-3


def test_a_cell_of_1997_never_forgets() -> None:
    """The error carousel: with closed gates after the first step, the cell keeps its value and its whole gradient."""
    learner = made({**BASE, "steps": 100, "layers": 1, "forget_gate": False}).double()
    layer = learner.stack[0]
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        layer.weight_ih[:6, 0] = 100  # the input gate is open where x_0 is 1,
        layer.bias_ih[:6] = -50  # shut where it is 0;
        layer.weight_ih[6:12, 1] = 1  # the candidate is tanh(x_1)
    x = torch.zeros(1, 100, 5, dtype=torch.float64)
    x[0, 0, :2] = torch.tensor([1.0, 0.5])
    x.requires_grad_()
    _, (_, c) = layer(x)
    assert torch.allclose(c, torch.full_like(c, np.tanh(0.5)), atol=1e-12)
    (gradient,) = torch.autograd.grad(c.sum(), x)
    assert float(gradient[0, 0, 1]) == pytest.approx(6 * (1 - np.tanh(0.5) ** 2), rel=1e-12)


def test_dropout_stands_between_layers_and_not_in_time() -> None:
    """In training the states are those of hand-dropped inputs of each layer; in evaluation nothing is dropped."""
    model = {**BASE, "layers": 2, "dropout": 0.5}
    learner = made(model).double()
    plain = made({**model, "dropout": 0.0}).double()
    x = torch.randn(3, 7, 5, dtype=torch.float64)
    assert torch.equal(learner.states(x), plain.states(x))
    learner.train()
    noise.begin(1, torch.arange(3))
    try:
        got = learner.states(x)
        noise.begin(1, torch.arange(3))
        masks = [learner.drop(torch.ones(3, 7, n, dtype=torch.float64)) for n in (5, 6, 6)]
    finally:
        noise.begin(0, None)
    first, _ = plain.stack[0](x * masks[0])
    second, _ = plain.stack[1](first * masks[1])
    assert torch.equal(got, second * masks[2]) and set(masks[0].unique().tolist()) == {0.0, 2.0}
