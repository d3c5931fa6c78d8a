"""The restricted Boltzmann machine against scikit-learn's, its loss against the rule, its chains over ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distdl.errors import InputError
from distdl.layout import noise
from tests.families.common import made, parameters

DOUBLE = torch.float64


def machine(**changes: object) -> object:
    """A machine of 12 visible and 7 hidden units in double precision whose weights are not small."""
    learner = made({"family": "rbm", "inputs": [12], "column": "x", "hidden": 7, **changes}).double()
    with torch.no_grad():
        for p in learner.parameters():
            p.copy_(torch.randn_like(p))
    return learner


def test_parameters_of_the_paper_form() -> None:
    assert parameters("rbm") == 784 * 500 + 784 + 500 == 393_284


def test_it_is_sklearns_machine() -> None:
    from sklearn.datasets import load_digits
    from sklearn.neural_network import BernoulliRBM

    x = load_digits().data / 16
    peer = BernoulliRBM(n_components=24, n_iter=2, learning_rate=0.05, random_state=0).fit(x[:500])
    v = (x[500:620] > 0.5).astype(np.float64)
    v_again, rng = torch.from_numpy(v), np.random.RandomState(0)
    unit = torch.from_numpy(rng.randint(0, 64, len(v)))  # the flips that their score_samples draws
    peer.random_state = 0
    for dtype, tolerance in ((DOUBLE, 1e-12), (torch.float32, 1e-5)):
        ours = made({"family": "rbm", "inputs": [64], "hidden": 24}).to(dtype)
        with torch.no_grad():
            ours.weight.copy_(torch.from_numpy(peer.components_))
            ours.visible_bias.copy_(torch.from_numpy(peer.intercept_visible_))
            ours.hidden_bias.copy_(torch.from_numpy(peer.intercept_hidden_))
            w = v_again.to(dtype)
            hidden, energy = ours.hidden(w).numpy(), ours.free_energy(w).numpy()
            score = 64 * ours.pseudo_likelihood(w, unit).numpy()
        assert np.abs(hidden - peer.transform(v)).max() < tolerance
        assert np.abs(energy / peer._free_energy(v) - 1).max() < tolerance
        assert np.abs(score / peer.score_samples(v) - 1).max() < max(tolerance * 10, 1e-10)
    assert np.ptp(energy) > 1 and np.ptp(hidden) > 0.1


def test_free_energy_sums_over_all_hidden_states() -> None:
    rbm = machine()
    v = torch.randint(0, 2, (5, 12)).double()
    h = torch.tensor([[n >> i & 1 for i in range(7)] for n in range(2**7)], dtype=DOUBLE)
    energy = -(v @ rbm.visible_bias)[:, None] - h @ rbm.hidden_bias - v @ rbm.weight.T @ h.T  # (5, 128)
    assert torch.allclose(rbm.free_energy(v), -(-energy).logsumexp(1), atol=1e-12)


@pytest.mark.parametrize("changes", [{}, {"k": 3}, {"sample_visible": True}, {"k": 2, "chains": 16}])
def test_the_gradient_is_contrastive_divergence(changes: dict[str, object]) -> None:
    """The explicit statistics <h v>_data - <h v>_model to 1e-12: what the loss descends is what the rule climbs."""
    rbm = machine(**changes)
    if rbm.config.chains:
        rbm.chains.bernoulli_(0.5)
    v, position = torch.rand(16, 12, dtype=DOUBLE), torch.arange(32, 48)
    noise.begin(5, position)
    rbm.loss({"x": v, "position": position, "id": position}, 0)[0].backward()
    noise.begin(5, position)  # the same draws by hand
    w, a, b = (p.detach() for p in (rbm.weight, rbm.visible_bias, rbm.hidden_bias))
    model = rbm.chains.clone() if rbm.config.chains else v
    for _ in range(rbm.config.k):
        h = noise.bernoulli(torch.sigmoid(model @ w.T + b))
        model = torch.sigmoid(h @ w + a)
        if rbm.config.sample_visible:
            model = noise.bernoulli(model)
            assert set(model.unique().tolist()) == {0.0, 1.0}
    noise.begin(0, None)
    up, up_model = torch.sigmoid(v @ w.T + b), torch.sigmoid(model @ w.T + b)
    for got, rule in (
        (rbm.weight.grad, (up.T @ v - up_model.T @ model) / 16),
        (rbm.visible_bias.grad, (v - model).mean(0)),
        (rbm.hidden_bias.grad, (up - up_model).mean(0)),
    ):
        assert (got + rule).abs().max() < 1e-12 < rule.abs().max()


class TwoRanks:
    """An engine whose other rank moved the chains that were given to it."""

    def __init__(self, *others: Tensor) -> None:
        self.others = list(others)

    def all_sum(self, tensor: Tensor) -> Tensor:
        return tensor.add_(self.others.pop(0)) if self.others else tensor


def test_every_rank_keeps_the_chains_of_all() -> None:
    rbm = machine(chains=5)
    before = rbm.chains.bernoulli_(0.5).clone()
    mine, theirs = torch.rand(2, 12, dtype=DOUBLE), torch.rand(1, 12, dtype=DOUBLE)
    theirs_moved, theirs_new = torch.zeros(5, dtype=torch.int64), torch.zeros(5, 12, dtype=DOUBLE)
    theirs_moved[4], theirs_new[4] = 1, theirs
    rbm.advance(torch.tensor([3, 0]), mine, TwoRanks(theirs_moved, theirs_new), 7)
    assert torch.equal(rbm.chains, torch.stack([mine[1], before[1], before[2], mine[0], theirs[0]]))
    assert rbm.moved_in.tolist() == [7, -1, -1, 7, 7]
    rbm.advance(torch.tensor([1, 2]), mine, TwoRanks(), 7)  # the second micro-batch of the step
    rbm.advance(torch.tensor([1, 2]), mine, TwoRanks(), 8)
    for which, step in (([1, 1], 9), ([2, 3], 8)):  # twice in a micro-batch, or in a step
        with pytest.raises(InputError, match="5 persistent chains are fewer") as caught:
            rbm.advance(torch.tensor(which), mine, TwoRanks(), step)
        assert "model.chains = train.global_batch" in str(caught.value)


def test_evaluation_does_not_sample_the_reconstruction() -> None:
    rbm = machine()
    v, index = torch.rand(8, 12, dtype=DOUBLE), torch.arange(8)
    batch = {"x": v, "id": index, "position": index}
    total, count = rbm.evaluate(batch)["reconstruction"]
    expected = F.mse_loss(rbm.visible(rbm.hidden(v)), v).detach()
    assert float(total) / count == pytest.approx(float(expected), abs=1e-7)
    assert rbm.evaluate(batch)["reconstruction"].total == total


def test_pictures_are_probabilities() -> None:
    rbm = made({"family": "rbm", "inputs": [1, 4, 4], "hidden": 3})
    picture = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    assert torch.equal(rbm.samples({"image": picture}), picture.flatten(1) / 255)
