"""Deep Speech: its size, its layers against torch's and a loop, CTC and the prefix search against all paths."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.families.deep_speech import errors
from distdl.nn.ctc import best_path, ctc, prefix_beam
from tests.families.common import made, parameters

BASE = {"family": "deep_speech", "inputs": 5, "context": 2, "units": 6, "classes": 3, "dropout": 0.0}


def batch_of() -> dict[str, Tensor]:
    torch.manual_seed(1)
    frames = torch.tensor([12, 7, 9])
    x = torch.randn(3, 12, 5) * (torch.arange(12) < frames[:, None])[:, :, None]
    label, length = torch.tensor([[1, 0, 2], [2, 0, 0], [1, 2, 0]]), torch.tensor([3, 1, 2])
    return {"x": x, "frames": frames, "label": label, "length": length, "id": torch.arange(3)}


def test_the_size_of_the_paper() -> None:
    """(2 x 9 + 1) x 81 inputs, five layers of 2,048 and 29 outputs; both directions share the input weights."""
    assert parameters("deep_speech") == 1540 * 2048 + 5 * 2048 * 2048 + 4 * 2048 + 2048**2 + 2049 * 29 == 28_387_357


@pytest.mark.parametrize(("clip", "stride"), [(20.0, 1), (0.2, 2)])
def test_it_is_the_papers_equations(clip: float, stride: int) -> None:
    """Sample by sample, frame by frame, unit by unit, over the sample's own frames only."""
    learner, batch = made({**BASE, "clip": clip, "stride": stride}).double(), batch_of()
    batch["x"] = batch["x"].double() * 3
    got, frames = learner.log_y(batch)
    g = lambda z: torch.minimum(torch.relu(z), torch.tensor(clip, dtype=torch.float64))  # noqa: E731
    at = lambda layer, h: h @ layer.weight.T + layer.bias  # noqa: E731
    U, V = learner.layer4.recurrent
    largest = 0.0
    for i, n in enumerate([12, 7, 9]):
        x = batch["x"][i]
        seen = [x[t] if 0 <= t < 12 else torch.zeros(5).double() for t in range(-2, 14)]
        steps = range(0, n, stride)
        assert int(frames[i]) == len(steps)
        h3 = [
            g(at(learner.layer3, g(at(learner.layer2, g(at(learner.layer1, torch.cat(seen[t : t + 5])))))))
            for t in steps
        ]
        f, r = [torch.zeros(6).double()], [torch.zeros(6).double()]
        for h in h3:
            f.append(g(at(learner.layer4.input, h) + U @ f[-1]))
        for h in reversed(h3):
            r.append(g(at(learner.layer4.input, h) + V @ r[-1]))
        for t, (ahead, back) in enumerate(zip(f[1:], r[:0:-1])):
            expected = at(learner.head, g(at(learner.layer5, ahead + back))).log_softmax(0)
            assert (got[i, t] - expected).abs().max() < 1e-6  # log-probabilities are in fp32
            largest = max(largest, float(ahead.detach().max()))
    assert largest == 0.2 if clip == 0.2 else 0.2 < largest < 20  # the clip was in effect


def test_each_direction_is_torchs_network() -> None:
    """torch.nn.RNN with rectified units, which has no clip."""
    layer, peer = (
        made(BASE).layer4.double(),
        nn.RNN(6, 6, nonlinearity="relu", bidirectional=True, batch_first=True).double(),
    )
    with torch.no_grad():
        for suffix, recurrent in zip(("", "_reverse"), layer.recurrent):
            getattr(peer, f"weight_ih_l0{suffix}").copy_(layer.input.weight)
            getattr(peer, f"bias_ih_l0{suffix}").copy_(layer.input.bias)
            getattr(peer, f"weight_hh_l0{suffix}").copy_(recurrent)
            getattr(peer, f"bias_hh_l0{suffix}").zero_()
    h = torch.randn(4, 9, 6, dtype=torch.float64)
    ours, theirs = layer(h, torch.full((4,), 9)), peer(h)[0].unflatten(2, (2, 6)).sum(2)
    assert (ours - theirs).abs().max() < 1e-12 and theirs.abs().max() > 0.1
    weight = torch.randn_like(theirs)
    (a,) = torch.autograd.grad((ours * weight).sum(), layer.recurrent)
    b = torch.autograd.grad((theirs * weight).sum(), [peer.weight_hh_l0, peer.weight_hh_l0_reverse])
    assert (a - torch.stack(b)).abs().max() < 1e-11


def test_the_loss_is_torchs_ctc() -> None:
    learner, batch = made(BASE), batch_of()
    log_y, frames = learner.log_y(batch)
    told = batch["label"], frames, batch["length"]
    expected = F.ctc_loss(log_y.transpose(0, 1), *told, blank=3, reduction="none")
    assert torch.allclose(learner.loss(batch, 0)[0], expected.mean(), atol=1e-5)
    assert float(learner.evaluate(batch)["loss"].total) == pytest.approx(float(expected.detach().sum()), abs=1e-4)


def strings_of(log_y: Tensor) -> dict[tuple[int, ...], float]:
    """The probability of every string, the sum over all paths that become it."""
    y, blank = log_y.exp(), log_y.shape[1] - 1
    total: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(blank + 1), repeat=len(y)):
        string = tuple(k for k, _ in itertools.groupby(path) if k != blank)
        total[string] = total.get(string, 0.0) + float(y[torch.arange(len(y)), list(path)].prod())
    return total


@pytest.mark.parametrize("seed", range(4))
def test_the_prefix_search_finds_the_likeliest_of_all_strings(seed: int) -> None:
    torch.manual_seed(seed)
    log_y = torch.randn(6, 3, dtype=torch.float64).log_softmax(-1)
    strings = strings_of(log_y)
    best = max(strings, key=strings.__getitem__)
    string, log_p = prefix_beam(log_y, beam=200)
    assert tuple(string) == best and log_p == pytest.approx(math.log(strings[best]), abs=1e-12)
    for string in ([0], [1, 1], [0, 1, 0]):
        loss = ctc(log_y[None], torch.tensor([6]), torch.tensor([string]), torch.tensor([len(string)]))
        assert float((-loss).exp()) == pytest.approx(strings[tuple(string)], abs=1e-12)


def test_the_search_sums_where_the_best_path_cannot() -> None:
    """Two frames of blank 0.6 and label 0.4: the best path is empty (0.36), the label is likelier (0.64)."""
    log_y = torch.tensor([[0.4, 0.6], [0.4, 0.6]]).log()
    assert best_path(log_y[None], torch.tensor([2])) == [[]]
    string, log_p = prefix_beam(log_y, 2)
    assert string == [0] and log_p == pytest.approx(math.log(0.64), abs=1e-6)
    assert prefix_beam(log_y, 1)[0] == []  # a beam of one drops the label in the first frame


def test_error_rates_are_edits_per_label_and_per_word(monkeypatch: Any) -> None:
    assert errors([[1], [2, 2]], [[1, 2], [2]], torch.zeros(1))[:] == (2.0, 3.0)
    learner, batch = made({**BASE, "beam": 4}), batch_of()  # wanted: 1_2, 2, 12 (0 parts words)
    paths = torch.tensor([[1, 0, 1, 3, 3, 3], [2, 2, 2, 3, 3, 3], [1, 0, 2, 3, 3, 3]])
    log_y = (10.0 * F.one_hot(paths, 4)).log_softmax(-1)
    monkeypatch.setattr(learner, "log_y", lambda batch: (log_y, torch.tensor([6, 6, 6])))
    metrics = learner.evaluate(batch)
    told = {name: (float(m.total), m.count) for name, m in metrics.items() if name != "loss"}
    assert told == {"label_error": (2, 6), "word_error": (3, 4), "beam_error": (2, 6)}
    assert learner.words([0, 1, 2, 0, 0, 1]) == [(1, 2), (1,)]


def test_what_stands_behind_the_frames_does_not_matter_and_dropout_is_for_training() -> None:
    learner, batch = made({**BASE, "context": 0, "dropout": 0.5}), batch_of()
    before = learner.loss(batch, 0)[0]
    batch["x"][1, 7:] = 5.0
    assert torch.equal(learner.loss(batch, 0)[0], before)
    learner.train()
    assert not torch.equal(learner.loss(batch, 0)[0], before)
