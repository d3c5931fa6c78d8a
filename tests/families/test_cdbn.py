"""The convolutional deep belief network against hand sums, and against the restricted Boltzmann machine that it can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from distdl.families import load_family
from distdl.layout import noise
from distdl.learner import bare
from tests.families.common import Small, made, parameters


def layer(**changes: object) -> object:
    """One layer of 3 filters of 3 x 3 on 2 channels of 6 x 6, in double precision, with weights that are not small."""
    model = {"family": "cdbn", "image": [2, 6, 6], "maps": [3], "filter": [3], "pool": [2], **changes}
    learner = made(model).double().stack()[0]
    with torch.no_grad():
        for p in learner.parameters():
            p.copy_(torch.randn_like(p) * 0.5)
    return learner


def test_parameters() -> None:
    one = parameters("cdbn", maps=(24,), filter=(9,), pool=(2,))
    assert one == 24 * 9 * 9 + 24 + 1 == 1969
    assert parameters("cdbn") == 40 * 11 * 11 + 40 + 1 + 40 * 40 * 6 * 6 + 40 + 40 == 62_561


def test_with_filters_of_full_size_and_no_pooling_it_is_sklearns_rbm() -> None:
    from sklearn.neural_network import BernoulliRBM

    x = np.random.default_rng(0).integers(0, 2, (40, 36)).astype(float)
    peer = BernoulliRBM(n_components=5, n_iter=3, random_state=0).fit(x)
    peer.intercept_visible_ = np.full(36, 0.3)  # one bias for the channel
    ours = layer(image=[1, 6, 6], maps=[5], filter=[6], pool=[1])
    with torch.no_grad():
        ours.weight.copy_(torch.from_numpy(peer.components_).view(5, 1, 6, 6))
        ours.hidden_bias.copy_(torch.from_numpy(peer.intercept_hidden_))
        ours.visible_bias.fill_(0.3)
        v = torch.from_numpy(x).view(40, 1, 6, 6)
        h = ours.probabilities(v)  # (B, K, 1, 1, 1)
        down = torch.sigmoid(h.flatten(1) @ torch.from_numpy(peer.components_) + 0.3)
        assert np.abs(h.flatten(1).numpy() - peer.transform(x)).max() < 1e-12
        assert np.abs(ours.free_energy(v).numpy() - peer._free_energy(x)).max() < 1e-12
        assert (ours.down(h).flatten(1) - down).abs().max() < 1e-12
    assert np.ptp(peer._free_energy(x)) > 0.1


def test_probabilities_of_a_block_and_of_no_unit_add_up_to_one() -> None:
    """P(h=1|v) by a sum over each block in plain loops; the rest is the probability that the block is silent."""
    rbm, v = layer(), torch.rand(2, 2, 6, 6, dtype=torch.float64)
    p, pooled = rbm.probabilities(v).detach(), rbm.up(v).detach()  # (2, 3, 2, 2, 4), (2, 3, 2, 2)
    W, b = rbm.weight.detach(), rbm.hidden_bias.detach()
    for n, k, i, j in np.ndindex(2, 3, 2, 2):
        places = [(2 * i + y, 2 * j + x) for y in (0, 1) for x in (0, 1)]
        sums = torch.stack([(W[k] * v[n, :, y : y + 3, x : x + 3]).sum() + b[k] for y, x in places]).exp()
        assert (p[n, k, i, j] - sums / (1 + sums.sum())).abs().max() < 1e-12
        assert float(pooled[n, k, i, j]) == pytest.approx(1 - 1 / (1 + float(sums.sum())), abs=1e-12)
    assert (p.sum(-1) <= 1).all() and p.std() > 0.05


def test_free_energy_sums_over_all_hidden_states() -> None:
    """Each block is silent or has one unit on: 5 states of it, 625 of a map of 2 x 2 blocks."""
    rbm, v = layer(maps=[1]), torch.rand(1, 2, 6, 6, dtype=torch.float64)
    one = torch.cat([torch.zeros(1, 4), torch.eye(4)]).double()
    states = torch.stack([one[list(np.unravel_index(n, (5,) * 4))] for n in range(625)]).view(625, 1, 2, 2, 4)
    inside = (states * rbm.blocks(v)).sum((1, 2, 3, 4)) + (v.sum((2, 3)) * rbm.visible_bias).sum()
    assert torch.allclose(rbm.free_energy(v), -inside.logsumexp(0), atol=1e-12)


def test_samples_have_the_probabilities_and_at_most_one_unit_of_a_block_on() -> None:
    rbm = layer()
    p = rbm.probabilities(torch.rand(1, 2, 6, 6, dtype=torch.float64)).expand(20_000, -1, -1, -1, -1)
    noise.begin(1, torch.arange(20_000))
    h = rbm.sampled(p)
    noise.begin(0, None)
    assert set(h.unique().tolist()) == {0.0, 1.0} and h.sum(-1).max() == 1
    assert (h.mean(0) - p[0]).abs().max() < 0.02


@pytest.mark.parametrize("k", [1, 2])
def test_the_gradient_is_contrastive_divergence(k: int) -> None:
    """The explicit statistics, correlations of hidden units with their patches, to 1e-12; per place of a map."""
    rbm, v = layer(k=k, sparsity_cost=0.0), torch.rand(5, 2, 6, 6, dtype=torch.float64)
    noise.begin(3, torch.arange(5))
    rbm(v)[0].backward()
    noise.begin(3, torch.arange(5))

    def statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = rbm.probabilities(x).unflatten(-1, (2, 2)).permute(0, 1, 2, 4, 3, 5).reshape(5, 3, 4, 4)
        patches = x.unfold(2, 3, 1).unfold(3, 3, 1)  # (B, C, 4, 4, 3, 3)
        return torch.einsum("bkyx,bcyxuv->kcuv", h, patches) / 5, h.sum((0, 2, 3)) / 5, x.sum((0, 2, 3)) / 5

    with torch.no_grad():
        model = v
        for _ in range(k):
            model = rbm.down(rbm.sampled(rbm.probabilities(model)))
        for parameter, data, free in zip(rbm.parameters(), statistics(v), statistics(model)):
            rule = (data - free) / 16
            assert (parameter.grad + rule).abs().max() < 1e-12 < rule.abs().max()
    noise.begin(0, None)


def test_down_is_the_transpose_of_up() -> None:
    """h . I(v) = v . (what h sends down), the bias left out: both are the energy's one term in h and v."""
    rbm = layer()
    with torch.no_grad():
        rbm.hidden_bias.zero_()
        rbm.visible_bias.zero_()
        v, h = torch.randn(4, 2, 6, 6, dtype=torch.float64), torch.rand(4, 3, 2, 2, 4, dtype=torch.float64)
        assert torch.allclose((rbm.blocks(v) * h).sum(), (rbm.down(h).logit() * v).sum(), atol=1e-12)


def test_sparsity_moves_the_biases_alone_towards_the_target() -> None:
    v = torch.rand(5, 2, 6, 6, dtype=torch.float64)
    gradients = []
    for cost in (0.0, 3.0):
        rbm = layer(sparsity_cost=cost, sparsity=0.125)
        noise.begin(3, torch.arange(5))
        loss, active = rbm(v)
        loss.backward()
        noise.begin(0, None)
        gradients.append([p.grad for p in (rbm.weight, rbm.visible_bias, rbm.hidden_bias)])
    (weight, visible, hidden), (weight_too, visible_too, hidden_too) = gradients
    assert torch.equal(weight, weight_too) and torch.equal(visible, visible_too)
    assert torch.allclose(active, rbm.probabilities(v).mean((0, 2, 3, 4)), atol=1e-12)
    assert torch.allclose(hidden_too - hidden, 3 * (active - 0.125), atol=1e-12)


def test_layers_take_turns(small_data: Path) -> None:
    run = Small("cdbn", small_data, train__steps=20)  # 7 steps each
    first, second = (
        {n: p.detach().clone() for n, p in bare(getattr(run.learner, name)).named_parameters()}
        for name in run.learner.players
    )

    def moved(player: str, before: dict[str, Tensor]) -> bool:
        return any(not torch.equal(before[n], p) for n, p in bare(getattr(run.learner, player)).named_parameters())

    run.train(7)
    assert moved("layer0", first) and not moved("layer1", second)
    first = {n: p.detach().clone() for n, p in bare(run.learner.layer0).named_parameters()}
    run.train(13)
    assert moved("layer1", second) and not moved("layer0", first)


def test_features_are_the_pooling_probabilities_of_every_layer() -> None:
    cdbn = made({"family": "cdbn", "image": [1, 8, 8], "maps": [4, 5], "filter": [3, 2], "pool": [2, 1]})
    image = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    first, second = cdbn.features(image)
    assert first.shape == (3, 4, 3, 3) and second.shape == (3, 5, 2, 2)
    assert torch.equal(first, cdbn.stack()[0].up(image / 255)) and torch.equal(second, cdbn.stack()[1].up(first))


def test_maps_that_blocks_do_not_fill_are_refused() -> None:
    config = load_family("cdbn").Config
    with pytest.raises(ValueError, match=r"layer 0 has maps of 17 x 17 places .*blocks of 2 x 2 do not fill"):
        config(filter=(12, 6))
    with pytest.raises(ValueError, match="layer 1 has maps of 0 x 0"):
        config(filter=(11, 10))
    with pytest.raises(ValueError, match="one number for each layer"):
        config(maps=(24,))
