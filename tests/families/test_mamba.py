"""Mamba against transformers, both ways, its scan against the recurrence, its causality and its counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distdl.checkpoint.convert import Wish, convert, open_source
from distdl.config.load import config_from_dict
from distdl.families.mamba import Recurrence, selective_scan
from tests.families.common import made, parameters
from tests.small import BASE

MAMBA = {"family": "mamba", "vocabulary": 61, "context": 19, "layers": 3, "width": 24, "states": 5, "chunk": 7}


def test_the_published_sizes() -> None:
    assert parameters("mamba") == 129_135_360
    sizes = {371_516_416: (48, 1024), 793_204_224: (48, 1536), 1_372_178_432: (48, 2048), 2_768_345_600: (64, 2560)}
    assert {
        parameters("mamba", layers=layers, width=width): (layers, width) for layers, width in sizes.values()
    } == sizes


@pytest.mark.parametrize("length", [1, 2, 3, 8, 13])
def test_the_scan_is_the_recurrence_and_so_is_its_gradient(length: int) -> None:
    torch.manual_seed(0)
    a = torch.rand(2, length, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
    states = [b[:, 0]]
    for t in range(1, length):
        states.append(a[:, t] * states[-1] + b[:, t])
    expected = torch.stack(states, 1)
    assert torch.allclose(Recurrence.apply(a, b), expected, atol=1e-14)
    assert torch.autograd.gradcheck(Recurrence.apply, (a, b))


def test_the_chunk_changes_nothing_but_the_memory() -> None:
    torch.manual_seed(0)
    x, delta = torch.randn(2, 19, 6), torch.rand(2, 19, 6)
    A, B, C = -torch.rand(6, 4) * 16, torch.randn(2, 19, 4), torch.randn(2, 19, 4)
    results = []
    for chunk in (19, 7, 1):
        arguments = [t.clone().requires_grad_() for t in (x, delta, A, B, C)]
        y = selective_scan(*arguments, chunk)
        results.append([y, *torch.autograd.grad(y.square().sum(), arguments)])
    for other in results[1:]:
        assert all(torch.allclose(one, two, atol=1e-4, rtol=1e-4) for one, two in zip(results[0], other))


def test_large_steps_do_not_overflow() -> None:
    """exp of sums of delta A over a chunk would leave fp32 either way; products of shares do not."""
    x = torch.ones(1, 64, 2)
    y = selective_scan(x, 50 * x, torch.full((2, 3), -16.0), torch.ones(1, 64, 3), torch.ones(1, 64, 3), 64)
    assert torch.isfinite(y).all() and torch.allclose(y, torch.full_like(y, 150.0))  # only the present is left: 3 x 50


def test_mamba_does_not_see_the_future() -> None:
    learner = made(MAMBA)
    tokens = torch.randint(0, 61, (2, 19))
    with torch.no_grad():
        before = learner.logits(tokens)
        for place in (1, 7, 18):
            other = tokens.clone()
            other[:, place:] = (other[:, place:] + 1) % 61
            after = learner.logits(other)
            assert torch.allclose(after[:, :place], before[:, :place], atol=1e-6)
            assert (after[:, place] - before[:, place]).abs().max() > 1e-3


def test_only_the_answer_is_asked_for() -> None:
    learner = made(MAMBA | {"answer": 4})
    tokens = torch.randint(0, 61, (2, 20))
    with torch.no_grad():
        loss, metrics = learner.loss({"tokens": tokens}, 0)
        scores = learner.logits(tokens[:, :-1])[:, -4:].flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(scores, tokens[:, -4:].flatten())
    assert float(loss) == pytest.approx(float(expected))
    assert metrics["answered"].count == 8


@pytest.mark.slow
def test_mamba_is_transformers_mamba_and_its_weights_cross_both_ways(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (make bench installs it)")
    settings = transformers.MambaConfig(
        vocab_size=61,
        hidden_size=24,
        state_size=5,
        num_hidden_layers=3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(5)
    peer = transformers.MambaForCausalLM(settings).eval()
    with torch.no_grad():
        for p in peer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    peer.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours.safetensors", Wish("safetensors"))
    model = open_source(tmp_path / "theirs").model
    assert model == {key: MAMBA[key] for key in ("family", "vocabulary", "layers", "width", "states")} | {
        "expand": 2,
        "convolution": 4,
        "delta_rank": 2,
    }
    learner: Any = made({**model, "context": 19, "chunk": 7})
    tokens = torch.randint(0, 61, (3, 19))
    with torch.no_grad():
        learner.load_state_dict(load_file(tmp_path / "ours.safetensors"))
        expected, got = peer(tokens).logits, learner.logits(tokens)
        assert (got - expected).abs().max() < 1e-5 and float(expected.std()) > 0.1
        for p in learner.parameters():
            p.add_(0.01 * torch.randn_like(p))
        changed = learner.logits(tokens)
    save_file(learner.state_dict(), tmp_path / "changed.safetensors")
    config = config_from_dict({"name": "mamba", **BASE, "model": MAMBA, "data": {"path": "none"}})
    convert(tmp_path / "changed.safetensors", tmp_path / "back", Wish("huggingface", config))
    again = transformers.MambaForCausalLM.from_pretrained(tmp_path / "back").eval()
    with torch.no_grad():
        assert (again(tokens).logits - changed).abs().max() < 1e-5
