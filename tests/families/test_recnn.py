"""The counts, all trees at once against one after the other, the measures by hand, and what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distdl.data.manifest import read_manifest
from distdl.errors import InputError
from tests.families.common import made, parameters, rows_of
from tests.small import MODELS, prepared, small

MODEL = MODELS["recnn"]


def batch_of(data: Any, rows: int = 9) -> dict[str, Tensor]:
    return rows_of(prepared(small("recnn")["prepare"], data), range(rows))


def test_the_counts_of_the_sentiment_treebank() -> None:
    assert parameters("recnn") == 16_580 * 30 + 2 * 30**2 + 30 + 5 * 31 == 499_385
    assert parameters("recnn", tensor=True, width=25) == 16_580 * 25 + 2 * 25**2 + 25 + 5 * 26 + 4 * 25**3 == 478_405


@pytest.mark.parametrize("tensor", [False, True])
def test_all_trees_at_once_are_each_by_recursion(small_data: Any, tensor: bool) -> None:
    """Every node by NumPy, from the root down, in double precision: logits, and the loss as the mean of the trees' sums."""
    learner, batch = made(MODEL | {"tensor": tensor, "scale": 0.5}).double(), batch_of(small_data)
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(0.1 * torch.randn_like(p))
    weights = {name: p.detach().numpy() for name, p in learner.named_parameters()}
    data = {name: column.numpy() for name, column in batch.items()}
    d, expected, total = MODEL["width"], {}, 0.0

    def vector(b: int, node: int) -> np.ndarray:
        if data["height"][b, node] == 0:
            p = weights["words.weight"][data["word"][b, node]]
        else:
            x = np.concatenate([vector(b, int(child)) for child in data["children"][b, node]])
            a = weights["merge.linear.weight"] @ x + weights["merge.linear.bias"]
            if tensor:
                a += np.array([x @ weights["merge.tensor"][:, :, k] @ x for k in range(d)]) / d
            p = np.tanh(a)
        expected[b, node] = weights["head.weight"] @ p + weights["head.bias"]
        return p

    for b, height in enumerate(data["height"]):
        vector(b, int((height != 255).sum()) - 1)
        for node in np.flatnonzero(height != 255):
            scores = expected[b, int(node)]
            total += np.log(np.exp(scores).sum()) - scores[data["label"][b, node]]
    trees, logits, _ = learner.outputs(batch)
    nodes = batch["height"].shape[1]
    places = [divmod(int(place), nodes) for place in trees.place]
    assert sorted(places) == sorted(expected) and logits.std() > 0.1
    theirs = np.stack([expected[place] for place in places])
    assert np.abs(logits.detach().numpy() - theirs).max() < 1e-12
    assert float(learner.loss(batch, 0)[0].detach()) == pytest.approx(
        total / 9, rel=1e-6
    )  # it is summed in single precision


def test_gradients_are_those_of_the_trees_alone(small_data: Any) -> None:
    learner, batch = made(MODEL).double(), batch_of(small_data)

    def gradients(rows: slice) -> list[Tensor]:
        loss, _ = learner.loss({name: column[rows] for name, column in batch.items()}, 0)
        return list(torch.autograd.grad(loss, list(learner.parameters())))

    alone = [gradients(slice(b, b + 1)) for b in range(9)]
    for whole, *parts in zip(gradients(slice(9)), *alone):
        assert torch.allclose(whole, sum(parts) / 9, rtol=1e-5, atol=1e-6) and whole.abs().max() > 0


def test_the_measures_of_an_evaluation(small_data: Any) -> None:
    """Roots are in the column where the tree ends; the binary measure leaves the neutral ones out."""
    learner, batch = made(MODEL), batch_of(small_data, 60)
    trees, logits, label = learner.outputs(batch)
    last = (batch["height"] != 255).sum(1) - 1
    truth = batch["label"].gather(1, last[:, None])[:, 0]
    assert torch.equal(label[trees.roots], truth.long())
    found, share = learner.evaluate(batch), logits[trees.roots].softmax(-1)
    positive = share[:, 3] + share[:, 4] > share[:, 0] + share[:, 1]
    clear = truth != 2
    assert found["root_binary"].count == int(clear.sum()) and 0 < int(clear.sum()) < 60
    assert float(found["root_binary"].total) == float((positive == (truth > 2))[clear].sum())
    assert float(found["root"].total) == float((logits[trees.roots].argmax(-1) == truth).sum())
    assert found["all_nodes"].count == int((batch["height"] != 255).sum()) and found["loss"].count == 60


def test_a_vocabulary_or_classes_that_are_too_few_are_named(small_data: Any) -> None:
    batch = batch_of(small_data)
    info = read_manifest(prepared(small("recnn")["prepare"], small_data)).info
    assert len(info["words"]) == MODEL["vocabulary"] and len(info["labels"]) == 5
    with pytest.raises(InputError, match=r"model.vocabulary is 20, and a tree has the word number \d+"):
        made(MODEL | {"vocabulary": 20}).loss(batch, 0)
    with pytest.raises(InputError, match=r"model.classes is 3, and a node has the label number 4"):
        made(MODEL | {"classes": 3}).loss(batch, 0)
