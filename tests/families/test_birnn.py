"""The bidirectional network against torch's, CTC against all paths and torch's, decoding and its error rate."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from distdl.nn.ctc import best_path, ctc, edit_distance
from tests.families.common import made, parameters

BASE = {"family": "birnn", "task": "ctc", "inputs": 5, "steps": 12, "classes": 3, "units": 6}


def test_birnn_has_the_agreed_number_of_parameters() -> None:
    assert parameters("birnn") == 104_000 + 2_211
    assert parameters("birnn", frame=2) == 128_611
    assert parameters("birnn", task="rows", steps=28, units=128) == 2 * 4 * (128 * 156 + 256) + 2_570


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("cell", "peer_class"), [("rnn", nn.RNN), ("lstm", nn.LSTM), ("gru", nn.GRU)])
def test_birnn_is_torchs_bidirectional_network(cell: str, peer_class: type, layers: int) -> None:
    """On packed sequences of different lengths: states within them, and gradients of every weight."""
    learner = made({**BASE, "cell": cell, "layers": layers}).double()
    peer = peer_class(5, 6, layers, batch_first=True, bidirectional=True).double()
    ours = [p for pair in zip(learner.forwards, learner.backwards) for net in pair for p in net.parameters()]
    theirs = list(peer.parameters())
    with torch.no_grad():
        for to, value in zip(theirs, ours, strict=True):
            to.copy_(value)
    x, frames = torch.randn(4, 12, 5, dtype=torch.float64), torch.tensor([12, 3, 1, 8])
    real = (torch.arange(12) < frames[:, None])[:, :, None]
    got = torch.cat(learner.states(x, frames), -1) * real
    packed = pack_padded_sequence(x, frames, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(peer(packed)[0], batch_first=True)
    assert (got - expected).abs().max() < 1e-12 and expected.std() > 0.05
    weight = torch.randn(4, 12, 12, dtype=torch.float64)
    wanted = torch.autograd.grad((expected * weight).sum(), theirs)
    for a, b in zip(torch.autograd.grad((got * weight).sum(), ours), wanted, strict=True):
        assert (a - b).abs().max() < 1e-11 and b.abs().max() > 1e-2


def test_rows_are_classified_by_the_last_state_of_each_direction() -> None:
    learner = made({**BASE, "task": "rows"})
    image, label = torch.randint(0, 256, (4, 1, 12, 5), dtype=torch.uint8), torch.tensor([0, 1, 2, 1])
    x = image[:, 0] / 255
    last, first = learner.forwards[0](x)[0][:, -1], learner.backwards[0](x.flip(1))[0][:, -1]
    logits = learner.head(torch.cat([last, first], -1))
    loss, metrics = learner.loss({"image": image, "label": label}, 0)
    assert torch.allclose(loss, F.cross_entropy(logits, label), atol=1e-6) and learner.primary == "accuracy"
    assert float(metrics["accuracy"].total) == int((logits.argmax(-1) == label).sum())


def all_paths(y: torch.Tensor, string: tuple[int, ...]) -> torch.Tensor:
    """p(string): the probabilities of all paths (T, K + 1)^T that become it, added up."""
    total = y.new_zeros(())
    blank = y.shape[1] - 1
    for path in itertools.product(range(y.shape[1]), repeat=len(y)):
        if tuple(k for k, _ in itertools.groupby(path) if k != blank) == string:
            total = total + y[torch.arange(len(y)), list(path)].prod()
    return total


@pytest.mark.parametrize("string", [(), (0,), (1, 0), (1, 1), (0, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize("frames", [5, 6])
def test_ctc_is_the_sum_over_all_paths(string: tuple[int, ...], frames: int) -> None:
    """Values and gradients, with frames and labels behind the ends of the sample that must not count."""
    torch.manual_seed(0)
    logits = torch.randn(1, 7, 3, dtype=torch.float64, requires_grad=True)
    label = torch.tensor([[*string, *[1] * (4 - len(string))]])
    loss = ctc(logits.log_softmax(-1), torch.tensor([frames]), label, torch.tensor([len(string)]))
    expected = -all_paths(logits.softmax(-1)[0, :frames], string).log()
    assert (loss - expected).abs().max() < 1e-12
    (a,), (b,) = torch.autograd.grad(loss.sum(), logits), torch.autograd.grad(expected, logits)
    assert (a - b).abs().max() < 1e-12 and b[:, frames:].abs().max() == 0 and b.abs().max() > 1e-2


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_ctc_is_torchs_ctc(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(8, 50, 11, dtype=dtype, requires_grad=True)
    label, length = torch.randint(0, 10, (8, 6)), torch.tensor([1, 6, 3, 4, 2, 6, 5, 1])
    frames = torch.tensor([50, 13, 20, 50, 49, 31, 30, 2])
    log_y = logits.log_softmax(-1)
    got = ctc(log_y, frames, label, length)
    expected = F.ctc_loss(log_y.transpose(0, 1), label, frames, length, blank=10, reduction="none")
    assert (got - expected).abs().max() < tolerance and expected.min() > 1
    (a,), (b,) = (torch.autograd.grad(v.sum(), logits, retain_graph=True) for v in (got, expected))
    assert (a - b).abs().max() < tolerance


def test_probabilities_of_all_strings_add_up_to_one() -> None:
    log_y = torch.randn(1, 4, 3, dtype=torch.float64).log_softmax(-1)
    total = 0.0
    for n in range(5):
        for string in itertools.product(range(2), repeat=n):
            label = torch.tensor([[*string, *[0] * (4 - n)]])
            total += float(torch.exp(-ctc(log_y, torch.tensor([4]), label, torch.tensor([n]))))
    assert total == pytest.approx(1, abs=1e-12)


def test_best_path_merges_repeats_and_then_drops_blanks() -> None:
    paths = torch.tensor([[0, 0, 2, 0, 1, 1, 2], [2, 2, 2, 2, 2, 2, 2], [1, 0, 1, 2, 2, 1, 1]])  # 2 is the blank
    log_y = 10.0 * F.one_hot(paths, 3)
    assert best_path(log_y, torch.tensor([7, 7, 7])) == [[0, 0, 1], [], [1, 0, 1, 1]]
    assert best_path(log_y, torch.tensor([4, 1, 5])) == [[0, 0], [], [1, 0, 1]]


def test_edit_distance() -> None:
    for a, b, distance in (("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("ab", "ba", 2), ("flaw", "lawn", 2)):
        assert (
            edit_distance([*map(ord, a)], [*map(ord, b)]) == edit_distance([*map(ord, b)], [*map(ord, a)]) == distance
        )


def test_the_error_rate_is_edits_per_label() -> None:
    learner = made(BASE)
    paths = torch.tensor([[0, 0, 3, 1], [3, 2, 3, 3], [3, 3, 3, 3]])
    log_y, frames = 10.0 * F.one_hot(paths, 4), torch.tensor([4, 4, 4])
    label, length = torch.tensor([[0, 1, 0], [1, 0, 0], [2, 2, 2]]), torch.tensor([2, 1, 3])
    error = learner.label_error(log_y, frames, {"label": label, "length": length})
    assert (float(error.total), error.count) == (0 + 1 + 3, 6)


def test_a_strip_is_read_column_by_column_in_frames() -> None:
    """What stands behind the width does not matter, and a frame holds its columns from left to right."""
    learner = made({**BASE, "frame": 3})
    image = torch.randint(0, 256, (2, 1, 5, 12), dtype=torch.uint8)
    batch = {"image": image, "width": torch.tensor([12, 7])}
    x, frames = learner.frames(batch)
    assert x.shape == (2, 4, 15) and frames.tolist() == [4, 3]
    assert torch.equal(x[1, 2, 5:10], image[1, 0, :, 7] / 255)
    batch |= {"label": torch.tensor([[0, 1], [2, 0]]), "length": torch.tensor([2, 1])}
    before = learner.losses(batch, decode=True)[0]
    image[1, :, :, 9:] = 255 - image[1, :, :, 9:]
    after = learner.losses(batch, decode=True)[0]
    assert torch.equal(before, after)
    image[1, :, :, :9] = 255 - image[1, :, :, :9]
    assert (learner.losses(batch, decode=True)[0] - before)[1].abs() > 1e-3
    with pytest.raises(ValueError, match="12 steps are no whole frames of 5"):
        made({**BASE, "frame": 5})
