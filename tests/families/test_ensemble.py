"""The ensemble: counts, members, the stack against scikit-learn's ridge regression, what it learns from and forgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.nn import functional as F

from tests.families.common import made, parameters

BASE = {"family": "ensemble", "steps": 8, "bands": 6, "classes": 3, "hidden": [7], "maps": [2, 3], "units": 5}


def batch_of(n: int = 40) -> dict[str, Tensor]:
    torch.manual_seed(1)
    frames = torch.randint(2, 9, (n,))
    x = torch.randn(n, 8, 6) * (torch.arange(8) < frames[:, None])[:, :, None]
    return {"x": x, "frames": frames, "label": torch.randint(0, 3, (n,)), "id": torch.arange(n)}


class Engine:
    """One rank that does not move the weights."""

    def __init__(self, learner: Any) -> None:
        self.learner = learner

    def forward(self, batch: Any, step: int) -> Any:
        return self.learner.loss(batch, step)

    def minimize(self, loss: Tensor, player: str = "learner") -> None: ...

    def all_sum(self, tensor: Tensor) -> Tensor:
        return tensor


def test_the_agreed_sizes() -> None:
    assert parameters("ensemble") == 887_818 + 77_258 + 40_714
    assert parameters("ensemble", steps=8, bands=8, hidden=(), maps=(1, 1), units=1, classes=2) == 130 + 62 + 37


def test_the_rnn_answers_after_the_last_frame_and_the_members_are_their_layers() -> None:
    learner, batch = made(BASE), batch_of(5)
    x, frames = batch["x"], batch["frames"]
    log_y = learner.members(batch)
    assert log_y.shape == (3, 5, 3) and torch.allclose(log_y.exp().sum(-1), torch.ones(3, 5))
    for i, n in enumerate(frames.tolist()):
        h = torch.zeros(5)
        w, u = learner.rnn.cell.weight_ih_l0.chunk(3), learner.rnn.cell.weight_hh_l0.chunk(3)
        b, c = learner.rnn.cell.bias_ih_l0.chunk(3), learner.rnn.cell.bias_hh_l0.chunk(3)
        for t in range(n):
            into, over = [[m[k] @ v + a[k] for k in range(3)] for m, v, a in ((w, x[i, t], b), (u, h, c))]
            r, z = torch.sigmoid(into[0] + over[0]), torch.sigmoid(into[1] + over[1])
            h = (1 - z) * torch.tanh(into[2] + r * over[2]) + z * h
        assert torch.allclose(log_y[2, i], learner.rnn.head(h).log_softmax(-1), atol=1e-5)
    first = torch.relu(x.flatten(1) @ learner.dnn.net[0].weight.T + learner.dnn.net[0].bias)
    assert torch.allclose(log_y[0], learner.dnn.net[2](first).log_softmax(-1), atol=1e-6)
    maps = F.conv2d(x[:, None], learner.cnn.c1.weight, learner.cnn.c1.bias, padding=2)
    pooled = torch.stack([maps[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0).relu()
    maps = F.conv2d(pooled, learner.cnn.c2.weight, learner.cnn.c2.bias, padding=2)[
        :, :, :, :2
    ]  # of 3 columns 2 are pooled
    pooled = torch.stack([maps[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0).relu()
    assert torch.allclose(log_y[1], learner.cnn.head(pooled.flatten(1)).log_softmax(-1), atol=1e-6)


@pytest.mark.parametrize("stacking", ["linear", "log_linear"])
@pytest.mark.parametrize("ridge", [0.01, 3.0])
def test_the_stack_is_scikit_learns_ridge_regression(stacking: str, ridge: float) -> None:
    learner, batch = made({**BASE, "stacking": stacking, "ridge": ridge, "hold_out": 2, "memory": 0.0}), batch_of()
    learner.update(batch, Engine(learner), 0)
    held_out = batch["id"] % 2 == 0
    log_y = torch.cat(list(learner.members(batch).detach()), 1).double()
    z = torch.cat([log_y.exp() if stacking == "linear" else log_y, torch.ones(40, 1)], 1)
    peer = Ridge(alpha=ridge, fit_intercept=False)
    peer.fit(z[held_out].numpy(), F.one_hot(batch["label"], 3)[held_out].numpy())
    assert abs(learner.coefficients().numpy() - peer.coef_.T).max() < 1e-8 < abs(peer.coef_).max()
    answers = torch.from_numpy(peer.predict(z.numpy())).argmax(1)
    assert float(learner.evaluate(batch)["accuracy"].total) == int((answers == batch["label"]).sum())


def test_sums_forget_once_a_step() -> None:
    learner, batch = made({**BASE, "memory": 0.5}), batch_of()
    once = made({**BASE, "memory": 0.5})
    once.update(batch, Engine(once), 0)
    for step in (0, 0, 1):  # two micro-batches, then one
        learner.update(batch, Engine(learner), step)
    assert torch.allclose(learner.gram, 2 * once.gram) and torch.allclose(learner.cross, 2 * once.cross)
    assert once.gram[-1, -1] == 5  # of 40 rows one in 8


def test_members_learn_from_the_other_rows_as_if_each_were_alone() -> None:
    learner, batch = made({**BASE, "hold_out": 4}), batch_of()
    loss, metrics = learner.loss(batch, 0)
    loss.backward()
    others = batch["id"] % 4 != 0
    for name in ("dnn", "cnn", "rnn"):
        alone = made({**BASE, "hold_out": 4})
        member = getattr(alone, name)
        F.cross_entropy(member(batch["x"][others], batch["frames"][others]), batch["label"][others]).backward()
        for ours, theirs in zip(getattr(learner, name).parameters(), member.parameters(), strict=True):
            assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    right = (learner.members(batch).argmax(-1) == batch["label"]).float().mean()
    assert float(metrics["member_accuracy"].total) / metrics["member_accuracy"].count == pytest.approx(float(right))


@pytest.mark.parametrize("stacking", ["linear", "log_linear"])
def test_the_stack_learns_whom_to_believe(stacking: str, monkeypatch: Any) -> None:
    """Two members guess and one knows: the average of the three is worse than the stack."""
    learner, batch = made({**BASE, "stacking": stacking, "hold_out": 2, "ridge": 0.1}), batch_of(200)
    guesses = torch.randn(2, 200, 3).mul(3).log_softmax(-1)
    knows = torch.randn(200, 3).mul(0.3).add(2 * F.one_hot(batch["label"], 3)).log_softmax(-1)
    monkeypatch.setattr(learner, "members", lambda batch: torch.cat([guesses, knows[None]]))
    learner.update(batch, Engine(learner), 0)
    metrics = {name: float(m.total) / m.count for name, m in learner.evaluate(batch).items()}
    assert metrics["accuracy"] > 0.95 > 0.8 > metrics["averaged_accuracy"] > metrics["member_accuracy"]
    assert metrics["member_accuracy"] == pytest.approx(
        sum(metrics[f"accuracy_{name}"] for name in ("dnn", "cnn", "rnn")) / 3, abs=1e-6
    )
