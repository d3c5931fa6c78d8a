"""The second-order network against NumPy, and the finite automaton that it is made for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.families.common import made, parameters

MODEL = {"family": "rnn2", "inputs": 3, "steps": 7, "units": 5}


@pytest.mark.parametrize("activation", ["logistic", "tanh"])
@pytest.mark.parametrize("task", ["tokens", "values"])
def test_the_recurrence_is_its_einsum(task: str, activation: str) -> None:
    learner = made(MODEL | {"task": task, "activation": activation}).double()
    x = torch.randn(4, 7, 3, dtype=torch.float64)
    with torch.no_grad():
        learner.b.normal_()
    w, b = learner.w.detach().numpy(), learner.b.detach().numpy()
    rows = x.numpy() if task == "tokens" else np.concatenate([x.numpy(), np.ones((4, 7, 1))], -1)
    g = np.tanh if activation == "tanh" else lambda a: 1 / (1 + np.exp(-a))
    s = np.zeros((4, 5))
    s[:, 0] = 1
    with torch.no_grad():
        got = learner.states(x).numpy()
    for t in range(7):
        s = g(np.einsum("ijk,bj,bk->bi", w, s, rows[:, t]) + b)
        assert np.abs(got[:, t] - s).max() < 1e-12


def test_parameters() -> None:
    assert parameters("rnn2") == 8 * 8 * 2 + 8 + 2 * (8 + 1)  # N^2 K + N, and the head
    assert parameters("rnn2", task="tokens", inputs=5, units=4) == 4 * 4 * 5 + 4 + 5 * 5
    assert parameters("rnn2", task="rows", inputs=28, units=4, classes=10) == 4 * 4 * 29 + 4 + 10 * 5  # and the 1


def test_an_empty_row_keeps_the_state() -> None:
    learner = made(MODEL | {"task": "values", "activation": "tanh", "scale": 0.1}).double()
    s = torch.tanh(learner.start(torch.zeros(1, 3, dtype=torch.float64)))
    assert torch.allclose(learner.states(torch.zeros(1, 1, 3, dtype=torch.float64))[:, 0], s, atol=1e-14)
    assert float(learner.w[..., :-1].detach().std()) == pytest.approx(0.1 / 5**0.5, rel=0.2)


def test_a_string_is_judged_at_its_end() -> None:
    """What fills the rows up is not read; the empty string is judged at the start."""
    learner = made(MODEL | {"task": "strings", "inputs": 2}).double()
    tokens = torch.tensor([[0, 1, 1, 2, 2, 2, 2], [1, 0, 1, 1, 0, 2, 2], [2, 2, 2, 2, 2, 2, 2]])
    batch = {"tokens": tokens, "length": torch.tensor([3, 5, 0]), "label": torch.tensor([0, 1, 1]), "id": tokens[:, 0]}
    losses, _ = learner.losses(batch)
    logits = []
    for string in ([0, 1, 1], [1, 0, 1, 1, 0], []):
        s = torch.zeros(5, dtype=torch.float64)
        s[0] = 1
        for symbol in string:
            s = torch.sigmoid(learner.w[:, :, symbol] @ s + learner.b)
        logits.append(learner.head(s))
    expected = torch.nn.functional.cross_entropy(torch.stack(logits), batch["label"], reduction="none")
    assert torch.allclose(losses.double(), expected, atol=1e-6)
    changed = batch | {"tokens": tokens.masked_fill(tokens == 2, 0)}
    assert torch.equal(learner.losses(changed)[0], losses)


def test_its_weights_can_be_an_automaton() -> None:
    """Giles et al. 1992: large weights make the transition table of grammar 4 (no 000); it judges every string right."""
    from distdl.data.generators.synthetic import TOMITA, Options, prepare

    learner = made({"family": "rnn2", "units": 4, "steps": 24}).double()
    table, accepting = TOMITA[4]
    with torch.no_grad():
        learner.w.zero_()
        learner.b.fill_(-20)
        for state, following in enumerate(table):
            for symbol, after in enumerate(following):
                learner.w[after, state, symbol] = 40
        learner.head.bias.zero_()
        for state in range(4):
            learner.head.weight[:, state] = torch.tensor([-5.0, 5.0]) * (1 if state in accepting else -1)
    for split, rows in prepare(Options("tomita4", length=8, test_rows=200)).chunks:
        batch = {name: torch.from_numpy(column) for name, column in rows.items()}
        accuracy = learner.evaluate(batch)["accuracy"]
        assert float(accuracy.total) == accuracy.count == {"train": 2**9 - 1, "test": 200}[split]
