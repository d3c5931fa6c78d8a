"""GPT against NumPy and transformers, its causality and its start."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distdl.families import build
from tests.families.common import made

GPT = {"family": "gpt", "vocabulary": 61, "context": 12, "layers": 3, "heads": 4, "width": 32}


def test_gpt_is_its_numpy_transcription() -> None:
    """Radford et al. 2019 in fp64, without torch: layer norm, masked attention head by head, tanh-GELU, tied head."""
    learner = made(GPT).double()
    with torch.no_grad():
        for p in learner.parameters():
            p.normal_(0, 0.3)  # gains and biases, too
    w = {name: p.detach().numpy() for name, p in learner.named_parameters()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    tokens = np.random.default_rng(0).integers(0, 61, 12)
    x = w["wte.weight"][tokens] + w["wpe.weight"]
    for i in range(3):
        q, k, v = np.split(linear(norm(x, f"blocks.{i}.ln1"), f"blocks.{i}.attn.qkv"), 3, axis=-1)
        heads = []
        for h in range(4):
            part = slice(8 * h, 8 * h + 8)
            scores = q[:, part] @ k[:, part].T / np.sqrt(8)
            scores[np.triu_indices(12, 1)] = -np.inf
            share = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(share / share.sum(-1, keepdims=True) @ v[:, part])
        x = x + linear(np.concatenate(heads, -1), f"blocks.{i}.attn.out")
        up = linear(norm(x, f"blocks.{i}.ln2"), f"blocks.{i}.up")
        up = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        x = x + linear(up, f"blocks.{i}.down")
    expected = norm(x, "ln") @ w["wte.weight"].T
    with torch.no_grad():
        got = learner.logits(torch.from_numpy(tokens)[None])[0].numpy()
    assert np.abs(got - expected).max() < 1e-10 and np.ptp(expected) > 1


@pytest.mark.slow
def test_gpt_is_transformers_gpt2() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (make bench installs it)")
    settings = transformers.GPT2Config(
        vocab_size=61, n_positions=12, n_embd=32, n_layer=3, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    torch.manual_seed(5)
    peer = transformers.GPT2LMHeadModel(settings).eval()
    with torch.no_grad():
        for p in peer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    names = {"wte": "wte", "wpe": "wpe", "ln": "ln_f"}
    parts = {"ln1": "ln_1", "attn.qkv": "attn.c_attn", "attn.out": "attn.c_proj", "ln2": "ln_2"}
    parts |= {"up": "mlp.c_fc", "down": "mlp.c_proj"}
    names |= {f"blocks.{i}.{ours}": f"h.{i}.{theirs}" for i in range(3) for ours, theirs in parts.items()}
    theirs_by_name = dict(peer.transformer.named_parameters())
    learner = made(GPT)
    with torch.no_grad():
        for name, p in learner.named_parameters():
            module, _, kind = name.rpartition(".")
            weight = theirs_by_name[f"{names[module]}.{kind}"]
            conv1d = kind == "weight" and any(part in names[module] for part in ("c_attn", "c_proj", "c_fc"))
            p.copy_(weight.T if conv1d else weight)  # Conv1D keeps [in, out]
    assert len(theirs_by_name) == len(list(learner.parameters()))
    tokens = torch.randint(0, 61, (3, 13))
    with torch.no_grad():
        expected = peer(tokens[:, :-1])
        got = learner.logits(tokens[:, :-1])
        theirs = F.cross_entropy(expected.logits.flatten(0, 1), tokens[:, 1:].flatten())
        ours, _ = learner.loss({"tokens": tokens}, 0)
    assert (got - expected.logits).abs().max() < 1e-5 and float(expected.logits.std()) > 0.1
    assert float(ours) == pytest.approx(float(theirs), abs=1e-6)


def test_gpt_does_not_see_the_future() -> None:
    learner = made(GPT).double()
    with torch.no_grad():
        for p in learner.parameters():
            p.normal_(0, 0.3)
        tokens = torch.randint(0, 61, (2, 12))
        before = learner.logits(tokens)
        for place in range(1, 12):
            other = tokens.clone()
            other[:, place:] = (other[:, place:] + 1 + torch.randint(0, 60, (2, 12 - place))) % 61
            after = learner.logits(other)
            assert torch.allclose(after[:, :place], before[:, :place], atol=1e-12)
            assert (after[:, place] - before[:, place]).abs().amax(-1).min() > 1e-3  # and it does see the present


def test_gpt_learns_the_next_token() -> None:
    """The target of place t is token t + 1: logits that know it have no loss."""
    learner = made(GPT | {"width": 64})
    tokens = torch.randint(0, 61, (2, 13))
    with torch.no_grad():
        learner.wte.weight.copy_(100.0 * torch.eye(61, 64))
        told = F.one_hot(tokens[:, 1:], 64).float()
        assert float(learner.criterion(told, {"tokens": tokens})[0]) < 1e-6
        told = F.one_hot(tokens[:, :-1], 64).float()
        assert float(learner.criterion(told, {"tokens": tokens})[0]) > 50


def test_gpt_starts_as_the_paper_says() -> None:
    torch.manual_seed(0)
    learner: Any = build({"family": "gpt", "vocabulary": 400, "context": 64, "layers": 8, "heads": 4, "width": 128})
    for name, p in learner.named_parameters():
        if p.ndim == 2:
            residual = name.endswith(("attn.out.weight", "down.weight"))
            assert float(p.detach().std()) == pytest.approx(0.02 / 4 if residual else 0.02, rel=0.05), (
                name
            )  # 1/sqrt(2 * 8) = 1/4
        else:
            assert bool((p == (0 if name.endswith("bias") else 1)).all()), name


@pytest.mark.parametrize(
    "more", [{}, {"labels": True, "documents": True}, {"experts": 4, "experts_every": 1, "capacity": 0}]
)
def test_tokens_read_one_by_one_are_told_what_all_at_once_are(more: dict[str, Any]) -> None:
    learner = made({**GPT, **more})
    with torch.no_grad():
        for p in learner.parameters():
            p.normal_(0, 0.3)
    tokens, read = torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(3)), []
    learner.wte.register_forward_hook(lambda module, inputs, output: read.append(inputs[0].shape[1]))
    memory = learner.memory()
    assert memory is not None and memory.most == 12
    for first, last in ((0, 5), (5, 6), (6, 9), (9, 10), (10, 12)):
        with memory.of(last - first):
            told = learner.predict({"tokens": tokens[:, first:last]})["next"]
        whole = learner.predict({"tokens": tokens[:, :last]})["next"]
        assert (told.log() - whole.log()).abs().max() < 1e-5
    assert read[::2] == [5, 1, 3, 1, 2] and read[1::2] == [5, 6, 9, 10, 12]


def test_experts_that_take_so_many_tokens_read_all_of_them_again() -> None:
    assert made({**GPT, "experts": 4, "experts_every": 1}).memory() is None
