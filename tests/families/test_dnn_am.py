"""Acoustic models: counts, layers against plain loops, alignment, decoding by all paths, contrastive divergence."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distdl.families.dnn_am.dnn_am import slope
from distdl.families.dnn_am.hmm import left_to_right, uniform_path, viterbi
from tests.families.common import Small, made, parameters

BASE = {"family": "dnn_am", "bands": 12, "deltas": 1, "context": 3, "hidden": [7, 6], "classes": 4, "states": 2}
CNN = {**BASE, "trunk": "cnn", "maps": 3, "filter": 3, "pool": 4, "pool_stride": 2}
TIMIT = {"context": 15, "hidden": (1000, 1000)}


def batch_of(label: list[int] = [0, 3, 1], frames: list[int] = [9, 4, 6]) -> dict[str, Tensor]:  # noqa: B006
    torch.manual_seed(1)
    x, lengths = torch.randn(len(label), 9, 12), torch.tensor(frames)
    x = x * (torch.arange(9) < lengths[:, None])[:, :, None]
    return {"x": x, "frames": lengths, "label": torch.tensor(label), "id": torch.arange(len(label))}


def test_the_published_sizes() -> None:
    assert parameters("dnn_am") == 19_865_783
    assert parameters("dnn_am", trunk="cnn", **TIMIT) == 2_709_503
    assert parameters("dnn_am", trunk="cnn", weight_sharing="full", maps=150, **TIMIT) == 3_339_333


def test_a_frame_enters_with_its_derivatives_and_neighbours() -> None:
    ramp = torch.arange(9.0)[None, :, None] * torch.tensor([1.0, -2.0])
    assert torch.allclose(slope(ramp)[0, 2:-2], torch.tensor([1.0, -2.0]).expand(5, 2))
    learner, x = made(BASE), batch_of()["x"]
    maps = learner.stacked(x)  # (B*T, context * 2, F)
    assert maps.shape == (27, 6, 12)
    orders = torch.stack([x, slope(x)], 2)
    for place, (frame, order) in enumerate(itertools.product(range(3), range(2))):
        assert torch.equal(maps.view(3, 9, 6, 12)[:, 1:-1, place], orders[:, frame : frame + 7, order])


def test_limited_weight_sharing_is_a_convolution_of_its_own_in_every_section() -> None:
    bands = made(CNN).bands
    x = torch.randn(5, 6, 12)
    assert bands.sections == 4 and bands.conv.weight.shape == (12, 6, 3)
    expected = []
    for s in range(4):
        weight, bias = bands.conv.weight[3 * s : 3 * s + 3], bands.conv.bias[3 * s : 3 * s + 3]
        expected.append(F.conv1d(x[:, :, 2 * s : 2 * s + 6], weight, bias).amax(-1))  # 4 outputs, pooled to one
    assert torch.allclose(bands(x), torch.cat(expected, 1), atol=1e-6)


def test_limited_weight_sharing_with_equal_weights_is_full_weight_sharing() -> None:
    limited, full = made(CNN).bands, made({**CNN, "weight_sharing": "full"}).bands
    with torch.no_grad():
        limited.conv.weight.copy_(full.conv.weight.repeat(4, 1, 1))
        limited.conv.bias.copy_(full.conv.bias.repeat(4))
    x = torch.randn(5, 6, 12)
    ours, theirs = limited(x).view(5, 4, 3).transpose(1, 2), full(x).view(5, 3, 4)
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("model", [BASE, CNN])
def test_the_trunk_is_a_chain_of_layers(model: dict[str, Any]) -> None:
    learner = made({**model, "activation": "sigmoid"})
    h = learner.entered(batch_of()["x"])
    for layer in learner.hidden:
        h = 1 / (1 + torch.exp(-(h @ layer.weight.T + layer.bias)))
    expected = F.log_softmax(h @ learner.head.weight.T + learner.head.bias, -1).view(3, 9, 8)
    assert torch.allclose(learner.posteriors(batch_of()["x"]), expected, atol=1e-5)


def all_paths(emit: Tensor, start: Tensor, step: Tensor, end: Tensor) -> dict[tuple[int, ...], float]:
    """ln of the joint probability of every path (states,)^T."""
    scores = {}
    for path in itertools.product(range(emit.shape[1]), repeat=len(emit)):
        inner = sum(float(step[i, j]) for i, j in itertools.pairwise(path))
        scores[path] = (
            float(start[path[0]]) + inner + float(end[path[-1]]) + sum(float(emit[t, s]) for t, s in enumerate(path))
        )
    return scores


@pytest.mark.parametrize("kind", ["any", "left to right"])
def test_viterbi_finds_the_best_of_all_paths(kind: str) -> None:
    torch.manual_seed(2)
    emit, frames = torch.randn(4, 6, 3), torch.tensor([6, 3, 5, 4])
    start, step, end = (
        left_to_right(3) if kind == "left to right" else (torch.randn(3), torch.randn(3, 3), torch.randn(3))
    )
    score, path = viterbi(start, step, end, emit, frames)
    for i, n in enumerate(frames.tolist()):
        scores = all_paths(emit[i, :n], start, step, end)
        best = max(scores, key=scores.__getitem__)
        assert tuple(path[i, :n].tolist()) == best and not path[i, n:].any()
        assert float(score[i]) == pytest.approx(scores[best], abs=1e-5)


def test_viterbi_is_hmmlearns() -> None:
    """On models of 5 states and 7 symbols, strings of 40; a model and its strings in one call here, one by one there."""
    hmm = pytest.importorskip("hmmlearn.hmm", reason="the oracle hmmlearn is not installed")
    torch.manual_seed(3)
    start, step, table = (torch.rand(*shape, dtype=torch.float64) + 0.01 for shape in ((5,), (5, 5), (5, 7)))
    start, step, table = start / start.sum(), step / step.sum(1, keepdim=True), table / table.sum(1, keepdim=True)
    peer = hmm.CategoricalHMM(n_components=5, n_features=7)
    peer.startprob_, peer.transmat_, peer.emissionprob_ = start.numpy(), step.numpy(), table.numpy()
    seen = torch.randint(0, 7, (10, 40))
    score, path = viterbi(start.log(), step.log(), torch.zeros(5).double(), table.log().T[seen])
    for i in range(10):
        wanted, states = peer.decode(seen[i][:, None].numpy(), algorithm="viterbi")
        assert float(score[i]) == pytest.approx(wanted, abs=1e-10) and path[i].tolist() == states.tolist()


def test_a_word_is_the_one_whose_best_path_is_likeliest_under_scaled_likelihoods() -> None:
    learner, batch = made(BASE), batch_of()
    learner.counts.copy_(torch.tensor([5, 9, 1, 30, 2, 2, 7, 4]))
    log_p, prior = learner.posteriors(batch["x"]).detach(), torch.tensor([5, 9, 1, 30, 2, 2, 7, 4]).div(60).log()
    scores = learner.decode(learner.emissions(log_p, learner.counts), batch["frames"])  # (B, K)
    for i, n in enumerate([9, 4, 6]):
        for k in range(4):
            emit = (log_p[i, :n] - prior)[:, 2 * k : 2 * k + 2]
            # The path is in the first state for m frames; n - 1 times it stays or goes on with probability 1/2.
            best = max(float(emit[:m, 0].sum() + emit[m:, 1].sum()) for m in range(1, n)) + (n - 1) * math.log(0.5)
            assert float(scores[i, k]) == pytest.approx(best, abs=1e-4)
    right = float(learner.evaluate(batch)["accuracy"].total)
    assert right == int((scores.argmax(1) == batch["label"]).sum())


def test_alignment_is_flat_at_first_and_then_the_best_path_of_the_word() -> None:
    assert uniform_path(torch.tensor([6, 4, 3]), 6, 3)[:, :4].tolist() == [[0, 0, 1, 1], [0, 0, 1, 2], [0, 1, 2, 2]]
    learner, batch = made({**BASE, "flat_steps": 5}), batch_of()
    emit = learner.emissions(learner.posteriors(batch["x"]).detach(), learner.counts)
    flat, own = (learner.align(emit, batch, is_flat) for is_flat in (True, False))
    assert not torch.equal(flat, own)
    for i, (n, k) in enumerate([(9, 0), (4, 3), (6, 1)]):
        scores = all_paths(emit[i, k, :n], *left_to_right(2))
        assert tuple((own[i, :n] - 2 * k).tolist()) == max(scores, key=scores.__getitem__)
        assert flat[i, :n].tolist() == [2 * k] * -(-n // 2) + [2 * k + 1] * (n // 2)
    for step, states in ((4, flat), (5, own)):
        picked = learner.posteriors(batch["x"]).gather(2, states[:, :, None]).squeeze(2)
        wanted = -sum(picked[i, :n].mean() for i, n in enumerate([9, 4, 6])) / 3
        assert torch.allclose(learner.loss(batch, step)[0], wanted, atol=1e-5)


def test_priors_count_the_aligned_frames_of_the_steps_before() -> None:
    class Engine:
        def forward(self, batch: Any, step: int) -> Any:
            return learner.loss(batch, step)

        def minimize(self, loss: Tensor, player: str = "learner") -> None: ...

        def all_sum(self, tensor: Tensor) -> Tensor:
            return 2 * tensor  # another rank with the same samples

    learner, batch = made(BASE), batch_of()
    for micro_batch in range(2):
        learner.update(batch, Engine(), 0)
        assert learner.settled.tolist() == [1] * 8, (
            micro_batch
        )  # the second one does not see what the first one counted
    expected = [1 + 4 * n for n in (5, 4, 3, 3, 0, 0, 2, 2)]
    assert learner.counts.tolist() == expected
    learner.update(batch, Engine(), 1)
    assert learner.settled.tolist() == expected


@pytest.mark.parametrize("layer", [0, 1])
def test_pre_training_is_contrastive_divergence(layer: int) -> None:
    """The gradient of the gap of free energies is <v h> of the data less that of one step of Gibbs sampling."""
    learner, batch = (
        made({**BASE, "activation": "sigmoid", "pretrain_steps": 10, "pretrain_scale": 1.0}),
        batch_of([2], [9]),
    )
    for weight in learner.hidden:
        torch.nn.init.normal_(weight.weight, std=0.3)
    torch.manual_seed(5)
    loss, metrics = learner.loss(batch, 10 * layer + 3)
    loss.backward()
    W, c, b = (
        learner.hidden[layer].weight.detach(),
        learner.hidden[layer].bias.detach(),
        learner.visible[layer].detach(),
    )
    v = learner.entered(batch["x"])
    v = torch.sigmoid(learner.hidden[0](v)).detach() if layer else v
    torch.manual_seed(5)
    up = torch.sigmoid(v @ W.T + c)
    h = (torch.rand(up.shape).clamp_(2**-25, 1 - 2**-24) < up).float()
    model = h @ W + b
    model = torch.sigmoid(model) if layer else model
    up_model = torch.sigmoid(model @ W.T + c)
    assert torch.allclose(learner.hidden[layer].weight.grad, -(up.T @ v - up_model.T @ model) / 9, atol=1e-5)
    assert torch.allclose(learner.hidden[layer].bias.grad, -(up - up_model).mean(0), atol=1e-5)
    assert torch.allclose(learner.visible[layer].grad, -(v - model).mean(0), atol=1e-5)
    assert not learner.head.weight.grad.any() and not learner.hidden[1 - layer].weight.grad.any() and metrics == {}


def test_dropout_is_off_in_evaluation_and_what_does_not_fit_is_refused() -> None:
    learner, batch = made({**BASE, "dropout": 0.5}), batch_of()
    assert torch.equal(learner.posteriors(batch["x"]), learner.posteriors(batch["x"]))
    learner.train()
    assert not torch.equal(learner.posteriors(batch["x"]), learner.posteriors(batch["x"]))
    with pytest.raises(ValueError, match="choose an odd number"):
        made({**BASE, "context": 4})
    with pytest.raises(ValueError, match="logistic layers"):
        made({**BASE, "activation": "relu", "pretrain_steps": 3})
    with pytest.raises(ValueError, match="12 bands are too few"):
        made({**CNN, "filter": 10})


@pytest.mark.slow
def test_a_convolutional_model_learns_telephone_tones(small_data: Path) -> None:
    model = {**CNN, "maps": 8, "hidden": [32], "classes": 10, "dropout": 0.2, "flat_steps": 20}
    run = Small("dnn_am", small_data, model=model, train__steps=100)
    run.train(100)
    assert run.evaluate()["accuracy"] > 0.8
