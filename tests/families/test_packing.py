"""Documents that share a row: the loss is that of the documents one by one, on one process and on two, in gpt and in
huggingface."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distdl.config.load import config_from_dict
from distdl.data.text.packing import Layout, Packer
from distdl.errors import InputError
from distdl.families import build
from distdl.nn.language import begins_of, places_within
from distdl.train.survey import survey
from tests.families.common import made
from tests.ranks import run_ranks
from tests.small import BASE, curves, layout, written

CONTEXT, WORDS = 12, 61
GPT = {"family": "gpt", "vocabulary": WORDS, "context": CONTEXT, "layers": 2, "heads": 4, "width": 16}
SIZES = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 64, "max_position_embeddings": 32}
THEIRS = {
    "gpt2": {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "llama": {**SIZES, "pad_token_id": 0},
    "mistral": {**SIZES, "sliding_window": 3, "num_key_value_heads": 2},  # a mask of ours would undo its windows
    "biogpt": SIZES,  # whose positions alone tell it nothing
}


def documents(number: int = 9) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.integers(1, WORDS, n) for n in generator.integers(2, CONTEXT + 2, number)]


def laid(packing: str, texts: list[np.ndarray]) -> dict[str, np.ndarray]:
    packer = Packer(Layout(packing, CONTEXT, 100, "uint16", 0, True))
    parts = [*(part for text in texts for part in packer.add(text.astype(np.uint16))), *packer.end()]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def batch_of(rows: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {
        **{name: torch.from_numpy(values) for name, values in rows.items()},
        "id": torch.arange(len(rows["tokens"])),
    }


def model_of(kind: str, **more: Any) -> dict[str, Any]:
    if kind == "gpt":
        return {**GPT, **more}
    theirs = {"family": "huggingface", "architecture": kind, "overrides": THEIRS[kind], "context": CONTEXT}
    return {**theirs, **more}


@pytest.mark.parametrize("kind", ["gpt", *THEIRS])
def test_the_loss_of_a_packed_batch_is_the_documents_one_by_one(kind: str) -> None:
    """Each alone in a row of its own length, of a model that knows no borders: the sum over the number of its learned
    tokens."""
    texts = documents()
    packed = laid("best_fit", texts)
    assert packed["documents"].max() >= 2 and (packed["documents"] == 0).any()
    torch.manual_seed(0)
    borders, plain = made(model_of(kind, labels=True, documents=True)), made(model_of(kind))
    with torch.no_grad():
        for p in borders.parameters():
            p.normal_(0, 0.2 if p.ndim > 1 else 0.02)
    plain.load_state_dict(borders.state_dict())
    total = torch.zeros(())
    for text in map(torch.from_numpy, texts):
        logits = (
            plain.logits(text[None, :-1]) if kind == "gpt" else plain.model(text[None, :-1], use_cache=False).logits
        )
        total = total + F.cross_entropy(logits[0], text[1:], reduction="sum")
    alone = total / sum(len(text) - 1 for text in texts)
    loss, _ = borders.loss(batch_of(packed), 0)
    assert loss.item() == pytest.approx(alone.item(), abs=1e-6 * max(1, alone.item()))
    mean = borders.evaluate(batch_of(packed))["loss"]
    assert mean.count == sum(len(text) - 1 for text in texts) and mean.total.item() / mean.count == pytest.approx(
        alone.item()
    )
    loss.backward()
    ours = {name: p.grad.clone() for name, p in borders.named_parameters() if p.grad is not None}
    alone.backward()
    for name, p in plain.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(ours[name], p.grad, rtol=1e-4, atol=1e-6)


def test_borders_and_places_by_hand() -> None:
    begins = begins_of(torch.tensor([[1, 1, 2, 2, 2, 0], [1, 2, 3, 3, 0, 0]], dtype=torch.int32))
    assert begins.tolist() == [[1, 0, 1, 0, 0, 1], [1, 1, 1, 0, 1, 0]]
    assert places_within(begins).tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 0, 1, 0, 1]]


@pytest.mark.parametrize("kind", ["mamba", "jamba", "bloom"])
def test_a_model_that_cannot_keep_documents_apart_is_refused(kind: str) -> None:
    sizes = {"bloom": {"vocab_size": WORDS, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "jamba": SIZES}
    overrides = sizes.get(kind, {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2})
    with pytest.raises(InputError, match=f"a {kind} cannot be told where a document in a row begins"):
        build({**model_of("gpt2", labels=True, documents=True), "architecture": kind, "overrides": overrides})


# -- on several processes ----------------------------------------------------------------------------------------------


def values(kind: str, path: str, batch: int, **model: Any) -> dict[str, Any]:
    told = {**copy.deepcopy(BASE), "name": kind, "model": model_of(kind, **model)}
    told["data"] |= {"path": path, "shuffle": "none"}
    told["train"] |= {"global_batch": batch, "steps": 4, "clip_norm": None, "threads_per_worker": 1}
    return {**told, "optimizer": {"name": "sgd", "lr": 0.3}, "schedule": {"name": "constant"}}


def loss_of(found: dict[str, Any]) -> list[float]:
    losses: list[float] = found["loss"]
    assert len(losses) == 4 and losses[0] > losses[-1] + 0.01, "it learns"
    return losses


@pytest.mark.slow
def test_two_ranks_learn_the_same_from_packed_rows_as_one_from_documents(tmp_path: Path) -> None:
    """Every step sees all documents: packed into four rows, unequally full, and by themselves."""
    texts = documents(6)
    one, packed = laid("none", texts), laid("best_fit", texts)
    assert len(one["tokens"]) == 6 and len(packed["tokens"]) == 4
    alone = written(tmp_path / "alone", one)
    together = written(tmp_path / "packed", packed)
    reference = {kind: values(kind, alone, 6, labels=True) for kind in ("gpt", "llama")}
    shared = {kind: values(kind, together, 4, labels=True, documents=True) for kind in reference}
    cases = {
        f"{kind}/{name}": layout(told, name, 2)
        for kind, told in shared.items()
        for name in ("torch", "zero1", "zero3", *(("zero1+tensor2", "zero1+pipeline2") if kind == "gpt" else ()))
    }
    for told in cases.values():
        told["train"]["micro_batch"] = 1  # each with another number of tokens that count
    cases["gpt/labels alone, a cut sequence"] = layout(reference["gpt"], "zero1+sequence2", 2)
    expected = run_ranks(curves, 1, reference)[0]
    found = run_ranks(curves, 2, cases)[0]
    for name in cases:
        assert loss_of(found[name]) == pytest.approx(loss_of(expected[name.split("/")[0]]), abs=2e-6), name
        ends = found[name]["evaluation"]["loss"], expected[name.split("/")[0]]["evaluation"]["loss"]
        assert ends[0] == pytest.approx(ends[1], abs=2e-6), name


def test_slices_of_a_row_with_borders_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "d", laid("best_fit", documents()))
    told = layout(values("gpt", path, 4, labels=True, documents=True), "zero1+sequence2", 2)
    with pytest.raises(
        InputError, match=r"1 row with borders between documents cannot be shared evenly by parallel.sequence=2"
    ):
        survey(config_from_dict(told))


@pytest.mark.parametrize(
    ("model", "word"),
    [
        ({"documents": True}, "documents without labels"),
        ({"documents": True, "labels": True, "experts": 2}, "the tokens of a row compete"),
    ],
)
def test_what_does_not_go_together(model: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        build({**GPT, **model})
    if "experts" not in model:
        with pytest.raises(ValueError, match=word):
            build(model_of("gpt2", **model))
        with pytest.raises(ValueError, match="documents with task masked"):
            build(model_of("gpt2", task="masked", labels=True, documents=True))


@pytest.mark.parametrize("kind", ["gpt", "mamba", "gpt2"])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_tokens_of_any_width_are_the_same_tokens(kind: str, dtype: type) -> None:
    """As they are stored: 2 bytes where the vocabulary allows it, else 4."""
    sizes = {"family": "mamba", "vocabulary": WORDS, "context": CONTEXT, "layers": 2, "width": 16, "chunk": 4}
    learner = made(sizes if kind == "mamba" else model_of(kind))
    tokens = np.random.default_rng(0).integers(0, WORDS, (3, CONTEXT + 1))
    losses = [learner.loss(batch_of({"tokens": tokens.astype(each)}), 0)[0].item() for each in (np.int64, dtype)]
    assert losses[0] == losses[1] > 1
