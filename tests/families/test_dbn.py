"""The deep belief network: its machines against scikit-learn's, its schedule, and what is left when it is unrolled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distdl.families import load_family
from distdl.layout import noise
from distdl.learner import bare
from tests.families.common import Small, made, parameters, rows_of

MODEL = {"family": "dbn", "inputs": [1, 8, 8], "hidden": [20, 16, 12], "pretrain_steps": 3}


def state(run: Small, player: str) -> dict[str, Tensor]:
    """A copy of a player's weights."""
    return {name: p.detach().clone() for name, p in bare(getattr(run.learner, player)).named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_parameters_of_the_paper_form() -> None:
    classifier = 785 * 500 + 501 * 500 + 501 * 2000 + 2001 * 10
    assert classifier == 1_665_010
    assert parameters("dbn") == classifier + 393_284 + 251_000 + 1_002_500
    with torch.device("meta"):
        dbn = load_family("dbn")(load_family("dbn").Config())
    assert sum(p.numel() for p in dbn.classifier.parameters()) == classifier
    assert dbn.players == ("layer0", "layer1", "layer2", "classifier") == type(dbn).players


def test_every_machine_is_sklearns() -> None:
    from sklearn.neural_network import BernoulliRBM

    dbn = made(MODEL).double()
    x = np.random.default_rng(0).integers(0, 2, (30, 64)).astype(float)
    for machine, hidden in zip(dbn.machines(), (20, 16, 12)):
        peer = BernoulliRBM(n_components=hidden, n_iter=3, random_state=0).fit(x)
        with torch.no_grad():
            machine.weight.copy_(torch.from_numpy(peer.components_))
            machine.visible_bias.copy_(torch.from_numpy(peer.intercept_visible_))
            machine.hidden_bias.copy_(torch.from_numpy(peer.intercept_hidden_))
            v = torch.from_numpy(x)
            assert np.abs(machine.up(v).numpy() - peer.transform(x)).max() < 1e-12
            assert np.abs(machine.free_energy(v).numpy() - peer._free_energy(x)).max() < 1e-12
        x = peer.transform(x)


@pytest.mark.parametrize("k", [1, 3])
def test_the_gradient_of_a_machine_is_contrastive_divergence(k: int) -> None:
    machine = made({**MODEL, "k": k}).double().machines()[1]
    with torch.no_grad():
        machine.weight.normal_()
    v = torch.rand(9, 20, dtype=torch.float64)
    noise.begin(4, torch.arange(9))
    machine(v).backward()
    noise.begin(4, torch.arange(9))
    with torch.no_grad():
        model = v
        for _ in range(k):
            model = machine.down(noise.bernoulli(machine.up(model)))
        noise.begin(0, None)
        rule = (machine.up(v).T @ v - machine.up(model).T @ model) / 9  # <h v>_data - <h v>_k
    assert (machine.weight.grad + rule).abs().max() < 1e-12 < rule.abs().max()


def test_players_take_turns_and_the_classifier_starts_from_them(small_data: Path) -> None:
    run = Small("dbn", small_data, model=MODEL, train__steps=12)
    players = run.learner.players
    for turn in range(3):
        before = {name: state(run, name) for name in players}
        run.train(3)
        assert [name for name in players if not same(before[name], state(run, name))] == [f"layer{turn}"]
    head = state(run, "classifier")["6.weight"]
    batch = run.engine.to_device(rows_of(run.plan.data.path, range(16)))
    run.engine.learning_rate = lambda step: 0.0  # so that the step after the switch goes nowhere
    for micro_batch in run.engine.feed(iter([batch]), 9):
        run.learner.update(micro_batch, run.engine, 9)
    v = run.learner.samples(batch)
    expected = v
    for machine in run.learner.machines():
        expected = torch.sigmoid(expected @ machine.weight.T + machine.hidden_bias)
    classifier = run.learner.classifier
    assert torch.equal(state(run, "classifier")["6.weight"], head)  # no machine stands for the last layer
    assert torch.allclose(classifier(v), expected @ classifier[6].weight.T + classifier[6].bias, atol=1e-6)
    assert expected.std() > 0.001


def test_without_pretraining_the_classifier_keeps_its_own_start(small_data: Path) -> None:
    run = Small("dbn", small_data, model=MODEL | {"pretrain_steps": 0}, train__steps=4)
    before = {name: state(run, name) for name in run.learner.players}
    run.train(4)
    moved = [name for name in run.learner.players if not same(before[name], state(run, name))]
    assert moved == ["classifier"]
    assert (state(run, "classifier")["0.weight"] - before["classifier"]["0.weight"]).abs().max() < 0.1


class Collect:
    """An engine that keeps the gradients of each loss."""

    def __init__(self, dbn: object) -> None:
        self.dbn, self.gradients = dbn, []

    def minimize(self, loss: Tensor, player: str) -> None:
        self.gradients.append(torch.autograd.grad(loss, list(self.dbn.classifier.parameters())))


def test_labels_of_some_rows_only_and_the_same_however_the_batch_is_cut() -> None:
    """The mean over parts is the loss of the whole, also where a part holds no labelled row."""
    dbn = made({**MODEL, "label_every": 5}).double()
    ids = torch.arange(3, 27)  # 24 rows, among them 5, 10, 15, 20, 25
    batch = {"image": torch.rand(24, 1, 8, 8).double(), "label": torch.arange(24) % 10, "id": ids}
    engine = Collect(dbn)
    whole = dbn.fine_tune(batch, engine)["loss"].total
    chosen = ids % 5 == 0
    assert chosen.sum() == 5
    losses = F.cross_entropy(dbn.classifier(batch["image"].flatten(1)), batch["label"], reduction="none")
    assert float(whole) == pytest.approx(float(losses[chosen].sum().detach()) / (24 / 5), abs=1e-12)
    parts = [dbn.fine_tune({n: c[i : i + 2] for n, c in batch.items()}, engine)["loss"].total for i in range(0, 24, 2)]
    assert 0.0 in [float(part) for part in parts]
    assert float(sum(parts) / 12) == pytest.approx(float(whole), abs=1e-12)
    for i, gradient in enumerate(engine.gradients[0]):
        assert torch.allclose(sum(g[i] for g in engine.gradients[1:]) / 12, gradient, atol=1e-12)


def test_reconstruction_goes_through_the_whole_stack() -> None:
    dbn = made(MODEL).double()
    a, b, c = dbn.machines()
    v = torch.rand(3, 64, dtype=torch.float64)
    assert torch.equal(dbn.reconstruct(v), a.down(b.down(c.down(c.up(b.up(a.up(v)))))))
