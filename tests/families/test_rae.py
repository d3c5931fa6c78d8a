"""The counts, every phrase against recursion by NumPy, its gradient by differences, greedy trees one merge at a time."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distdl.errors import InputError
from distdl.learner.trees import trees_of
from tests.families.common import Small, made, parameters, rows_of
from tests.small import MODELS, prepared, small

MODEL = MODELS["rae"] | {"supervision": 0.0}
D = MODEL["width"]


def batch_of(data: Any, rows: int = 9) -> dict[str, Tensor]:
    return rows_of(prepared(small("rae")["prepare"], data), range(rows))


def spread(model: dict[str, Any]) -> Any:
    """A learner in double precision whose weights are far from where they start."""
    learner = made(model).double()
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return learner


class Plain:
    """The equations of the docstring for one tree, by recursion."""

    def __init__(self, learner: Any, batch: dict[str, Tensor]) -> None:
        self.w = {name: p.detach().numpy() for name, p in learner.state_dict().items()}
        self.data, self.unfold = {name: column.numpy() for name, column in batch.items()}, learner.config.unfold

    def word(self, number: int) -> np.ndarray:
        x = self.w["words.weight"][number]
        return x / np.linalg.norm(x)

    def encode(self, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        p = np.tanh(self.w["encoder.weight"] @ np.concatenate([b, c]) + self.w["encoder.bias"])
        return p if self.unfold else p / np.linalg.norm(p)

    def decode(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        children = np.tanh(self.w["decoder.weight"] @ p + self.w["decoder.bias"])
        return children[:D], children[D:]

    def merged(self, b: tuple[np.ndarray, int], c: tuple[np.ndarray, int]) -> tuple[np.ndarray, float]:
        """A phrase of two parts of so many words, and the second kind of its error."""
        p = self.encode(b[0], c[0])
        errors = [((part - theirs) ** 2).sum() for (part, _), theirs in zip((b, c), self.decode(p))]
        return p, (b[1] * errors[0] + c[1] * errors[1]) / (b[1] + c[1])

    def taken_apart(self, row: int, node: int, p: np.ndarray) -> list[float]:
        """The squared error of each word below a node."""
        if self.data["height"][row, node] == 0:
            return [float(((p - self.word(self.data["word"][row, node])) ** 2).sum())]
        children = zip(self.data["children"][row, node], self.decode(p))
        return [error for child, part in children for error in self.taken_apart(row, int(child), part)]

    def node(self, row: int, node: int, errors: dict[tuple[int, int], float]) -> tuple[np.ndarray, int]:
        if self.data["height"][row, node] == 0:
            return self.word(self.data["word"][row, node]), 1
        parts = [self.node(row, int(child), errors) for child in self.data["children"][row, node]]
        p, error = self.merged(*parts)
        errors[row, node] = float(np.mean(self.taken_apart(row, node, p))) if self.unfold else error
        return p, parts[0][1] + parts[1][1]


def test_the_counts() -> None:
    for d in (50, 100):
        assert parameters("rae", width=d) == 2 * 2 * d**2 + 3 * d
    assert parameters("rae", train_words=True, vocabulary=2000) == 10_150 + 2000 * 50
    assert parameters("rae", supervision=0.2) == 10_150 + 5 * 51


@pytest.mark.parametrize("unfold", [True, False])
def test_every_phrase_is_what_recursion_makes_of_it(small_data: Any, unfold: bool) -> None:
    learner, batch = spread(MODEL | {"unfold": unfold}), batch_of(small_data)
    plain, expected = Plain(learner, batch), {}
    roots = [plain.node(b, int((h != 255).sum()) - 1, expected)[0] for b, h in enumerate(plain.data["height"])]
    trees, nodes, errors = learner.outputs(batch)
    places = [divmod(int(place), batch["height"].shape[1]) for place in trees.place[trees.sizes[0] :]]
    assert sorted(places) == sorted(expected)
    assert np.abs(errors.detach().numpy() - [expected[place] for place in places]).max() < 1e-12
    assert np.abs(nodes[trees.roots].detach().numpy() - np.stack(roots)).max() < 1e-12
    loss, metrics = learner.loss(batch, 0)
    assert float(loss.detach()) == pytest.approx(sum(expected.values()) / 9, rel=1e-6)
    assert metrics["error"].count == len(expected)


@pytest.mark.parametrize("unfold", [True, False])
def test_the_gradient_of_the_reconstruction_is_that_of_differences(small_data: Any, unfold: bool) -> None:
    learner, batch = spread(MODEL | {"unfold": unfold}), batch_of(small_data, 3)
    parameters = [learner.encoder.weight, learner.encoder.bias, learner.decoder.weight, learner.decoder.bias]
    gradients = torch.autograd.grad(learner.outputs(batch)[2].sum(), parameters)
    for p, gradient in zip(parameters, gradients):
        for place in (0, p.numel() // 2, p.numel() - 1):
            sums = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    p.view(-1)[place] += step
                    sums.append(float(learner.outputs(batch)[2].sum()))
                    p.view(-1)[place] -= step
            expected = (sums[0] - sums[1]) / 2e-5
            assert float(gradient.flatten()[place]) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("unfold", [True, False])
def test_a_greedy_tree_merges_the_best_neighbours_first(small_data: Any, unfold: bool) -> None:
    """As Huffman would: all pairs of neighbours of one sentence anew at each step; the given tree is not read."""
    learner, batch = spread(MODEL | {"unfold": unfold, "trees": "greedy"}), batch_of(small_data)
    plain, built = Plain(learner, batch), learner.built({**batch, "children": batch["children"] * 0})
    for b, height in enumerate(plain.data["height"]):
        words = (int((height != 255).sum()) + 1) // 2
        row = [(plain.word(w), 1, i) for i, w in enumerate(plain.data["word"][b, :words])]
        for new in range(words, 2 * words - 1):
            tried = [plain.merged(left[:2], right[:2]) for left, right in itertools.pairwise(row)]
            at = int(np.argmin([error for _, error in tried]))
            left, right = row[at : at + 2]
            assert built["children"][b, new].tolist() == [left[2], right[2]]
            row[at : at + 2] = [(tried[at][0], left[1] + right[1], new)]
        assert built["height"][b].ne(255).sum() == 2 * words - 1
    trees, nodes, _ = learner.outputs(batch)
    again = trees_of(built, learner.words)
    assert torch.equal(trees.children, again.children) and len(nodes) == len(again.place)


def test_supervision_adds_the_labels_loss(small_data: Any) -> None:
    model = MODEL | {"supervision": 0.25}
    batch = batch_of(small_data)
    for how in ("given", "greedy"):
        learner = made(model | {"trees": how})
        trees, nodes, errors = learner.outputs(batch)
        entropy, *_ = learner.of_labels(batch, trees, nodes)
        loss, metrics = learner.loss(batch, 0)
        assert float(loss.detach()) == pytest.approx(
            float((0.75 * errors.sum() + 0.25 * entropy.sum()).detach()) / 9, rel=1e-5
        )
        assert metrics["root"].count == 9 and metrics["accuracy"].count == len(nodes)
    with pytest.raises(InputError, match=r"model.classes is 3"):
        made(model | {"classes": 3}).loss(batch, 0)
    assert "label" not in type(learner).columns(made(MODEL).config)


@pytest.mark.slow
def test_greedy_trees_learn_and_words_that_stay_stay(small_data: Any) -> None:
    run = Small("rae", small_data, model=MODELS["rae"] | {"trees": "greedy", "unfold": False}, train__steps=40)
    before, words = run.evaluate(), run.learner.words.weight.clone()
    run.train(40)
    assert run.evaluate()["error"] < 0.7 * before["error"] and torch.equal(words, run.learner.words.weight)
