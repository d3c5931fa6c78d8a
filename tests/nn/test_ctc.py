"""Connectionist temporal classification by torch's kernel, as GPUs take it: the same numbers in a few launches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.kernels import kernels
from distdl.layout.process import ProcessState
from distdl.nn import ctc as module
from distdl.nn.ctc import by_kernel, ctc
from tests.pretended_gpu import PretendedGPU, put

Strings = tuple[Tensor, Tensor, Tensor, Tensor]


def strings(T: int, seed: int = 0) -> Strings:
    """Scores of 6 samples over T frames, of which some count, and strings with repeats, an empty one among them."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(6, T, 5, generator=draw, requires_grad=True)
    label = torch.randint(0, 4, (6, 4), generator=draw).to(torch.uint8)
    return scores, torch.tensor([T, T, T - 1, T - 2, T, T]), label, torch.tensor([4, 3, 2, 1, 0, 4])


@pytest.mark.parametrize("T", [9, 40])
def test_losses_and_gradients_are_torchs_to_the_last_digits(T: int) -> None:
    """In fp64, each sample's loss with a weight of its own, and what is no part of a string or a sound anything."""
    found = []
    for function in (ctc, F.ctc_loss):
        scores, frames, label, length = strings(T)
        scores = scores.detach().double().requires_grad_()
        label[torch.arange(4) >= length[:, None]] = 3
        log_y = scores.log_softmax(-1)
        if function is ctc:
            losses = ctc(log_y, frames, label.long(), length)
        else:
            losses = F.ctc_loss(log_y.transpose(0, 1), label.long(), frames, length, blank=4, reduction="none")
        (losses * torch.arange(1, 7)).sum().backward()
        found.append((losses.detach(), scores.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-12)


def test_a_long_string_is_as_exact_in_fp32() -> None:
    """800 frames of a model that is sure of the wrong thing: sums of thousands, whose differences are the gradient."""
    draw = torch.Generator().manual_seed(1)
    scores = 8 * torch.randn(2, 800, 30, generator=draw)
    label, frames, length = (
        torch.randint(0, 29, (2, 90), generator=draw),
        torch.tensor([800, 640]),
        torch.tensor([90, 7]),
    )
    found = []
    for dtype in (torch.float32, torch.float64):
        log_y = scores.to(dtype).log_softmax(-1).requires_grad_()
        losses = ctc(log_y, frames, label, length)
        losses.sum().backward()
        found.append((losses.detach().double(), log_y.grad.double()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    assert found[0][0].min() > 1000 and torch.equal(found[0][1].sum(2) < -0.5, torch.arange(800) < frames[:, None])


def test_what_cannot_be_said_teaches_nothing_and_the_others_learn() -> None:
    scores, _, label, length = strings(9)
    ctc(scores.log_softmax(-1), torch.tensor([3, 9, 9, 9, 9, 9]), label.long(), length).masked_fill(
        torch.arange(6) == 0, 0
    ).sum().backward()
    assert scores.grad is not None and not scores.grad[0].any() and scores.grad[1:].flatten(1).any(1).all()


@pytest.mark.parametrize("T", [9, 40])
def test_the_kernel_has_the_same_losses_and_gradients(T: int) -> None:
    found = []
    for function in (ctc, by_kernel):
        scores, frames, label, length = strings(T)
        losses = function(scores.log_softmax(-1), frames, label.long(), length)
        losses.sum().backward()
        found.append((losses.detach(), scores.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_too_few_frames_are_infinite_by_either() -> None:
    scores, _, label, length = strings(9)
    few = torch.tensor([3, 9, 9, 9, 9, 9])
    for function in (ctc, by_kernel):
        assert torch.isinf(function(scores.log_softmax(-1), few, label.long(), length)).tolist() == [True] + 5 * [False]


def launches(function: object, T: int) -> int:
    scores, frames, label, length = strings(T)
    log_y = scores.log_softmax(-1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        function(log_y, frames, label.long(), length)  # type: ignore[operator]
    return sum(event.name.startswith("aten::") for event in seen.events())


def test_deterministic_sums_take_four_kernels_a_frame_with_their_gradients() -> None:
    counts = []
    for T in (20, 30):
        scores, frames, label, length = strings(T)
        log_y = scores.detach().log_softmax(-1).requires_grad_()

        def both(log_y: Tensor = log_y, rest: tuple[Tensor, ...] = (frames, label.long(), length)) -> None:
            ctc(log_y, *rest).sum().backward()

        counts.append(kernels(both))
    assert counts[1] - counts[0] == 4 * 10 and counts[0] < 4 * 20 + 60


def test_its_launches_do_not_grow_with_the_frames() -> None:
    assert launches(by_kernel, 9) == launches(by_kernel, 90) < 60
    assert launches(ctc, 90) > 500


@pytest.mark.parametrize("deterministic", [False, True])
def test_gpus_take_it_where_the_bits_may_differ(monkeypatch: pytest.MonkeyPatch, deterministic: bool) -> None:
    taken: list[int] = []
    monkeypatch.setattr(module, "by_kernel", lambda *given: taken.append(1) or by_kernel(*given))
    scores, frames, label, length = strings(9)
    here = scores.detach().log_softmax(-1)
    with ProcessState(), PretendedGPU() as gpu:
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        ctc(here, frames, label.long(), length)
        assert not taken
        ctc(*put([here.clone(), frames.clone(), label.long(), length.clone()], True))
    assert len(taken) == (not deterministic) and not gpu.wrong
