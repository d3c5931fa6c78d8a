"""The preset configs/families/rnnlm.yaml (Mikolov et al. 2010) is their network, and better at text than pairs of bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

from distdl.data.manifest import read_manifest
from tests.families.common import Small, made, parameters, rows_of
from tests.small import prepared, shipped

MODEL = yaml.safe_load(shipped("rnnlm").read_text(encoding="utf-8"))["model"]


def test_it_is_the_network_of_the_paper() -> None:
    """s(t) = f(U w(t) + W s(t-1)), y(t) = softmax(V s(t)); the paper joins w(t) and s(t-1), and has no biases."""
    V, H = MODEL["inputs"], MODEL["units"]
    assert parameters(**MODEL) == H * (V + H) + 2 * H + V * H + V
    learner = made(MODEL)
    layer, tokens = learner.stack[0], torch.tensor([[7, 250, 7, 31]])
    state = torch.zeros(H)
    for t, token in enumerate(tokens[0, :3].tolist()):
        joined = torch.cat([F.one_hot(torch.tensor(token), V).float(), state])
        weight = torch.cat([layer.weight_ih, layer.weight_hh], 1)  # (H, V + H)
        state = 1 / (1 + torch.exp(-(weight @ joined + layer.bias_ih + layer.bias_hh)))
        expected = learner.head(state).log_softmax(0)
        got = learner.outputs(learner.encode(tokens[:, :3]))[0, t].log_softmax(0)
        assert torch.allclose(got, expected, atol=1e-5)


def bigram(train: np.ndarray, test: np.ndarray) -> float:
    """Nats per byte of held-out rows (n, T + 1) under pairs of bytes counted in training rows: the mixture of pairs, single
    bytes and any byte whose weights suit the held-out rows best, which no honest bigram model could know."""
    pairs = np.zeros((256, 256))
    np.add.at(pairs, (train[:, :-1], train[:, 1:]), 1)
    two = pairs / np.maximum(pairs.sum(1, keepdims=True), 1)
    one = pairs.sum(0) / pairs.sum()
    seen = two[test[:, :-1], test[:, 1:]], one[test[:, 1:]]
    grid = [(a, b) for a in np.linspace(0.5, 0.999, 40) for b in (0.5, 0.9, 0.99, 0.999)]
    losses = [-np.log(a * seen[0] + (1 - a) * (b * seen[1] + (1 - b) / 256)).mean() for a, b in grid]
    return float(min(losses))


@pytest.mark.slow
def test_it_beats_the_best_bigram_model(small_data: Path) -> None:
    prepare = {"source": "stdlib", "options": {"context": 32, "max_bytes": 600_000}}
    run = Small(
        "elman",
        small_data,
        model={**MODEL, "units": 64},
        data__path=prepared(prepare, small_data),
        train__global_batch=64,
        train__steps=300,
        optimizer={"name": "adam", "lr": 0.02},
    )
    path = run.plan.data.path
    splits = read_manifest(path).splits
    train, test = (rows_of(path, range(splits[name].rows), name)["tokens"].numpy() for name in ("train", "test"))
    run.train(300)
    assert run.evaluate()["loss"] < bigram(train, test) - 0.1
