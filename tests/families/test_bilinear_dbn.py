"""The bilinear deep belief network: matrices against the Kronecker product, one step and the projection against NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distdl.config.load import config_from_dict
from distdl.errors import InputError
from distdl.families import load_family
from distdl.families.bilinear_dbn import discriminant, projection
from distdl.layout import noise
from distdl.learner import bare
from tests.families.common import Small, made, parameters, rows_of

MODEL = {"family": "bilinear_dbn", "image": [8, 8], "hidden": [[6, 5], [5, 4]], "gather_steps": 3, "pretrain_steps": 3}


def state(run: Small, player: str) -> dict[str, Tensor]:
    """A copy of a player's weights."""
    return {name: p.detach().clone() for name, p in bare(getattr(run.learner, player)).named_parameters()}


def moved(run: Small, steps: int) -> list[str]:
    """The players whose weights so many steps change."""
    before = {name: state(run, name) for name in run.learner.players}
    run.train(steps)
    return [n for n, old in before.items() if any(not torch.equal(p, old[k]) for k, p in state(run, n).items())]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def labelled_rows(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (n, 6, 5) of 4 classes, whose means differ along a few rows and columns only."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, n)
    return rng.normal(size=(n, 6, 5)) + 2 * rng.normal(size=(4, 6, 1))[label] * rng.normal(size=(4, 1, 5))[label], label


def test_parameters_of_the_default() -> None:
    classifier = 785 * 576 + 577 * 441 + 442 * 361 + 362 * 10
    assert classifier == 869_799
    assert parameters("bilinear_dbn") == classifier + 452_944 + 255_033 + 160_003
    with torch.device("meta"):
        learner = load_family("bilinear_dbn")(load_family("bilinear_dbn").Config())
    assert sum(p.numel() for p in learner.classifier.parameters()) == classifier
    assert [sum(p.numel() for p in m.parameters()) for m in learner.machines()] == [452_944, 255_033, 160_003]
    assert learner.players == ("layer0", "layer1", "layer2", "classifier") == type(learner).players


def test_a_bilinear_layer_is_a_dense_one_with_the_kronecker_matrix() -> None:
    machine = made(MODEL).double().machines()[0]
    x, u, v = (torch.randn(*shape, dtype=torch.float64) for shape in ((7, 8, 8), (8, 6), (8, 5)))
    b, c = torch.randn(6, 5, dtype=torch.float64), torch.randn(8, 8, dtype=torch.float64)
    with torch.no_grad():
        machine.weight.copy_(torch.kron(u, v).T)
        machine.hidden_bias.copy_(b.flatten())
        machine.visible_bias.copy_(c.flatten())
        h = machine.up(x.flatten(1)).view(7, 6, 5)
        assert (h - torch.sigmoid(u.T @ x @ v + b)).abs().max() < 1e-12
        assert (machine.down(h.flatten(1)).view(7, 8, 8) - torch.sigmoid(u @ h @ v.T + c)).abs().max() < 1e-12


def test_a_step_of_contrastive_divergence_is_that_of_numpy_on_matrices() -> None:
    """Second order: the gradient of the four-fold weight A_ijpq is <x_ij h_pq> of the model less that of the data."""
    machine = made(MODEL).double().machines()[1]  # 6 x 5 visible, 5 x 4 hidden
    with torch.no_grad():
        for p in machine.parameters():
            p.normal_()
    data = torch.rand(9, 30, dtype=torch.float64)
    a = machine.weight.detach().numpy().reshape(5, 4, 6, 5)
    b, c = (p.detach().numpy() for p in (machine.hidden_bias.view(5, 4), machine.visible_bias.view(6, 5)))

    def up(x: np.ndarray) -> np.ndarray:
        return sigmoid(np.einsum("pqij,nij->npq", a, x) + b)

    x = data.numpy().reshape(9, 6, 5)
    noise.begin(4, torch.arange(9))
    sampled = noise.bernoulli(torch.from_numpy(up(x)).flatten(1)).numpy().reshape(9, 5, 4)
    model = sigmoid(np.einsum("pqij,npq->nij", a, sampled) + c)
    rule = (np.einsum("npq,nij->pqij", up(model), model) - np.einsum("npq,nij->pqij", up(x), x)) / 9
    noise.begin(4, torch.arange(9))
    machine(data).backward()
    noise.begin(0, None)
    assert np.abs(machine.weight.grad.numpy().reshape(a.shape) - rule).max() < 1e-12 < np.abs(rule).max()
    assert np.abs(machine.hidden_bias.grad.numpy().reshape(b.shape) - (up(model) - up(x)).mean(0)).max() < 1e-12
    assert np.abs(machine.visible_bias.grad.numpy().reshape(c.shape) - (model - x).mean(0)).max() < 1e-12


def sums_of(x: np.ndarray, label: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """What the learner gathers of all rows."""
    rows, member = torch.from_numpy(x).flatten(1), torch.nn.functional.one_hot(torch.from_numpy(label), 5).double()
    return member.sum(0), member.T @ rows, rows.T @ rows  # a fifth class that nobody has


def numpy_scatter(x: np.ndarray, label: np.ndarray, between: float) -> np.ndarray:
    """D (m, n, m, n), picture by picture."""
    mean = {k: x[label == k].mean(0) for k in set(label)}
    among = sum(np.multiply.outer(mean[k] - x.mean(0), mean[k] - x.mean(0)) for k in label)
    within = sum(np.multiply.outer(one - mean[k], one - mean[k]) for one, k in zip(x, label))
    share = [d / np.einsum("ijij->", d) for d in (among, within)]
    return between * share[0] - (1 - between) * share[1]


@pytest.mark.parametrize("between", [0.5, 1.0])
def test_the_projection_is_numpys(between: float) -> None:
    x, label = labelled_rows()
    d = numpy_scatter(x, label, between)
    ours = discriminant(*sums_of(x, label), between).view(6, 5, 6, 5)
    assert np.abs(ours.numpy() - d).max() < 1e-12
    v = np.eye(5)
    for _ in range(10):
        values_u, vectors = np.linalg.eigh(np.einsum("ijkl,jm,lm->ik", d, v, v))
        u = vectors[:, -3:]
        values_v, vectors = np.linalg.eigh(np.einsum("ijkl,im,km->jl", d, u, u))
        v = vectors[:, -2:]
    our_u, our_v, positive = projection(ours, (3, 2))
    assert positive == ((values_u > 0).sum(), (values_v > 0).sum())
    # The subspaces, which are all that J depends on; eigenvectors have no sign.
    assert np.abs((our_u @ our_u.T).numpy() - u @ u.T).max() < 1e-9
    assert np.abs((our_v @ our_v.T).numpy() - v @ v.T).max() < 1e-9
    assert (our_u.T @ our_u - torch.eye(3)).abs().max() < 1e-12

    def j(u: np.ndarray, v: np.ndarray) -> float:
        return float(np.einsum("ijkl,ip,kp,jq,lq->", d, u, u, v, v, optimize=True))

    rng = np.random.default_rng(1)
    others = [[np.linalg.qr(rng.normal(size=shape))[0] for shape in ((6, 3), (5, 2))] for _ in range(50)]
    assert j(our_u.numpy(), our_v.numpy()) > max(j(*pair) for pair in others)


def test_players_take_turns_after_the_scatter(small_data: Path) -> None:
    """Three steps move nothing; layer0 then begins as the projection, and the classifier as the machines."""
    run = Small("bilinear_dbn", small_data, model=MODEL, train__steps=12)
    learner = run.learner
    assert moved(run, 3) == [] and learner.counts.sum() == 3 * 16
    weights, told = learner.projected()
    told = {name: value.total / value.count for name, value in told.items()}
    assert 1 <= told["positive_rows"] <= 8 and 1 <= told["positive_columns"] <= 8
    gram = weights["weight"] @ weights["weight"].T
    assert (gram - torch.eye(30)).abs().max() < 1e-5  # orthonormal, as U and V are
    centre = learner.sums.sum(0).float() / learner.counts.sum().float()
    assert (weights["weight"] @ centre + weights["hidden_bias"]).abs().max() < 1e-5
    assert moved(run, 3) == ["layer0"] and learner.counts.sum() == 3 * 16
    assert moved(run, 3) == ["layer1"]
    batch = run.engine.to_device(rows_of(run.plan.data.path, range(16)))
    run.engine.learning_rate = lambda step: 0.0  # so that the step after the switch goes nowhere
    for micro_batch in run.engine.feed(iter([batch]), 9):
        learner.update(micro_batch, run.engine, 9)
    expected = learner.samples(batch)
    for machine in learner.machines():
        expected = machine.up(expected)
    assert torch.equal(learner.classifier[:4](learner.samples(batch)), expected) and expected.std() > 0.001


@pytest.mark.parametrize("change", [{"pretrain_steps": 0}, {"gather_steps": 0}])
def test_without_a_phase(small_data: Path, change: dict[str, int]) -> None:
    """No pre-training: the classifier keeps its own start. No scatter: the first machine begins with small weights."""
    run = Small("bilinear_dbn", small_data, model=MODEL | change, train__steps=4)
    assert moved(run, 3) == ["classifier" if "pretrain_steps" in change else "layer0"]
    assert run.learner.counts.sum() == 0
    assert state(run, "layer0")["weight"].abs().max() < 0.1


class Whole:
    """An engine of one process that keeps the gradients of each loss."""

    def __init__(self, learner: Any) -> None:
        self.learner = learner
        self.gradients: list[tuple[Tensor, ...]] = []

    def all_sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def minimize(self, loss: Tensor, player: str) -> None:
        self.gradients.append(torch.autograd.grad(loss, list(self.learner.classifier.parameters())))


def test_labels_of_some_rows_only_and_the_same_however_the_batch_is_cut() -> None:
    """The scatter and the mean gradient over parts are those of the whole, also where a part holds no labelled row."""
    rng = torch.Generator().manual_seed(0)
    ids, image = torch.arange(3, 27), torch.rand(24, 1, 8, 8, generator=rng, dtype=torch.float64)
    batch = {"image": image, "label": torch.arange(24) % 10, "id": ids}
    parts = [{name: column[i : i + 2] for name, column in batch.items()} for i in range(0, 24, 2)]
    told = []
    for pieces in ([batch], parts):
        learner = made({**MODEL, "label_every": 5}).double()
        engine = Whole(learner)
        for piece in pieces:
            learner.gather(piece, engine)
            learner.fine_tune(piece, engine)
        mean = [sum(each) / len(pieces) for each in zip(*engine.gradients)]
        told.append([learner.counts, learner.sums, learner.products, *mean])
    assert told[0][0].sum() == 5 == (ids % 5 == 0).sum()
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*told))


def test_refuses_more_projections_than_pixels(small_data: Path) -> None:
    run = Small("bilinear_dbn", small_data, model=MODEL)
    with pytest.raises(InputError, match="9 x 5 units"):
        config_from_dict({**run.values, "model": {**MODEL, "hidden": [[9, 5]]}})
    config_from_dict({**run.values, "model": {**MODEL, "hidden": [[9, 5]], "gather_steps": 0}})
