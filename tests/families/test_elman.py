"""Elman's network against torch.nn.RNN, and the three tasks of every recurrent family."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.families.common import made, parameters

BASE = {"family": "elman", "task": "rows", "inputs": 5, "steps": 7, "classes": 3, "units": 6}


def test_elman_has_the_agreed_number_of_parameters() -> None:
    head = 256 * 65 + 65
    assert parameters("elman") == 82_688 + head
    assert parameters("elman", layers=2) == 82_688 + 256 * 512 + 512 + head


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_elman_is_torchs_rnn(activation: str, layers: int) -> None:
    """States and gradients of every weight, in float64 and float32."""
    learner = made({**BASE, "activation": activation, "layers": layers})
    peer = nn.RNN(5, 6, layers, nonlinearity=activation, batch_first=True)
    ours = [p for layer in learner.stack for p in layer.parameters()]
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        learner, peer = learner.to(dtype), peer.to(dtype)
        theirs = list(peer.parameters())
        with torch.no_grad():
            for to, value in zip(theirs, ours, strict=True):
                to.copy_(value)
        x, weight = torch.randn(4, 7, 5, dtype=dtype), torch.randn(4, 7, 6, dtype=dtype)
        got, expected = learner.states(x), peer(x)[0]
        assert (got - expected).abs().max() < tolerance and expected.std() > 0.1
        gradients = torch.autograd.grad((got * weight).sum(), ours)
        wanted = torch.autograd.grad((expected * weight).sum(), theirs)
        for a, b in zip(gradients, wanted, strict=True):
            assert (a - b).abs().max() < 10 * tolerance and b.abs().max() > 1e-2


def test_elmans_own_function_is_the_logistic() -> None:
    learner = made({**BASE, "activation": "sigmoid"}).double()
    W, U, b, c = (p.detach() for p in learner.stack[0].parameters())
    x = torch.randn(4, 7, 5, dtype=torch.float64)
    h = torch.zeros(4, 6, dtype=torch.float64)
    for t in range(7):
        h = 1 / (1 + torch.exp(-(x[:, t] @ W.T + b + h @ U.T + c)))
        assert torch.allclose(learner.states(x)[:, t], h, atol=1e-12)


def test_rows_are_classified_by_the_last_state() -> None:
    learner = made(BASE)
    image = torch.randint(0, 256, (4, 1, 7, 5), dtype=torch.uint8)
    label = torch.tensor([0, 1, 2, 0])
    logits = learner.head(learner.states(image[:, 0] / 255)[:, -1])
    loss, metrics = learner.loss({"image": image, "label": label}, 0)
    assert torch.allclose(loss, F.cross_entropy(logits, label)) and (learner.primary, learner.better) == (
        "accuracy",
        "higher",
    )
    assert (
        float(metrics["accuracy"].total) == int((logits.argmax(-1) == label).sum()) and metrics["accuracy"].count == 4
    )


def test_tokens_predict_the_next_token_from_the_past_alone() -> None:
    learner = made({**BASE, "task": "tokens"})
    tokens = torch.randint(0, 5, (4, 8))
    logits = learner.head(learner.states(torch.eye(5)[tokens[:, :-1]]))
    loss, _ = learner.loss({"tokens": tokens.to(torch.uint8)}, 0)
    assert torch.allclose(loss, F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))
    other = tokens.clone()
    other[:, 4:] = (other[:, 4:] + 1) % 5
    after = learner.head(learner.states(torch.eye(5)[other[:, :-1]]))
    same = (after == logits).all(-1).all(0)
    assert same.tolist() == [True] * 4 + [False] * 3
    assert learner.primary == "loss"


@pytest.mark.parametrize("family", ["elman", "gru", "lstm"])
def test_an_embedding_is_a_linear_map_of_one_hot_tokens(family: str) -> None:
    tokens = torch.randint(0, 5, (3, 8))
    model = {**BASE, "family": family, "task": "tokens"}
    learner, one_hot = made({**model, "embedding": 4}), made({**model, "embedding": 0})
    assert torch.equal(one_hot.inputs_and_targets({"tokens": tokens})[0], torch.eye(5)[tokens[:, :-1]])
    vectors = learner.inputs_and_targets({"tokens": tokens})[0]
    assert torch.equal(vectors, learner.embed.weight[tokens[:, :-1]]) and vectors.shape == (3, 7, 4)
    assert learner.loss({"tokens": tokens}, 0)[0].isfinite()
    with pytest.raises(ValueError, match="set it to 0"):
        made({**model, "task": "rows", "embedding": 4})


def test_values_predict_the_next_values() -> None:
    learner = made({**BASE, "task": "values"})
    x = torch.randn(4, 8, 5)
    out = learner.head(learner.states(x[:, :-1]))
    assert torch.allclose(learner.loss({"x": x}, 0)[0], (out - x[:, 1:]).square().mean())
