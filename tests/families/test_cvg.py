"""The counts, the PCFG against every parse there is, the score by recursion, the margin by hand, and what vectors add."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distdl.errors import InputError
from distdl.layout import noise
from distdl.learner.trees import trees_of
from tests.families.common import Small, made, parameters, rows_of
from tests.small import MODELS, prepared, small

MODEL = MODELS["cvg"]
Parse = tuple[int, int, int, "tuple[Parse, Parse] | None"]
"""First word, last word, label, and the children."""


class OneRank:
    def all_sum(self, tensor: Tensor) -> Tensor:
        return tensor


def batch_of(data: Any, rows: int = 30) -> dict[str, Tensor]:
    return rows_of(prepared(small("cvg")["prepare"], data), range(rows))


def counted(data: Any, **model: Any) -> tuple[Any, dict[str, Tensor]]:
    """A learner that has counted the batch, with weights far from where they start."""
    learner, batch = made(MODEL | model), batch_of(data)
    learner.update(batch, OneRank(), 0)
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return learner.double(), batch


def trees_in(columns: dict[str, Tensor]) -> list[Parse]:
    data = {name: columns[name].numpy() for name in ("height", "children", "label")}

    def node(row: int, at: int) -> Parse:
        if data["height"][row, at] == 0:
            return at, at, int(data["label"][row, at]), None
        left, right = (node(row, int(child)) for child in data["children"][row, at])
        assert left[1] + 1 == right[0]
        return left[0], right[1], int(data["label"][row, at]), (left, right)

    return [node(row, int(np.where(h == 255, -1, h.astype(int)).argmax())) for row, h in enumerate(data["height"])]


def test_the_counts() -> None:
    assert parameters("cvg") == 16_580 * 25 + 10**2 * (2 * 25**2 + 2 * 25) == 544_500
    assert sum(b.numel() for b in made(MODEL).buffers()) == 10 + 4 * 10**3 + 32 * 10


def test_the_rules_are_counted(small_data: Any) -> None:
    learner, batch = counted(small_data)
    rules: Counter[tuple[int, int]] = Counter()
    words: Counter[tuple[int, int]] = Counter()
    roots: Counter[int] = Counter()

    def visit(row: int, tree: Parse) -> int:
        """The symbol of a node."""
        first, _, label, children = tree
        if children is None:
            words[int(batch["word"][row, first]), label] += 1
            return label
        left, right = (visit(row, child) for child in children)
        rules[label, left * 20 + right] += 1
        return label + 10

    for row, tree in enumerate(trees_in(batch)):
        roots[tree[2]] += 1
        visit(row, tree)
    grammar = learner.grammar
    for counts, buffer in ((rules, grammar.rules), (words, grammar.words)):
        assert buffer.sum() == counts.total()
        assert all(buffer[place] == n for place, n in counts.items())
    assert [int(n) for n in grammar.roots] == [roots[label] for label in range(10)]
    assert all(float(p.exp().sum()) == pytest.approx(1) for p in grammar.logs()[1])


def every_parse(first: int, last: int, labels: int) -> Iterator[Parse]:
    for label in range(labels):
        if first == last:
            yield first, last, label, None
            continue
        for middle in range(first, last):
            parts = (list(every_parse(*span, labels)) for span in ((first, middle), (middle + 1, last)))
            for children in itertools.product(*parts):
                yield first, last, label, children


def log_p(learner: Any, words: list[int], tree: Parse, root: bool = True) -> float:
    """By the definition, one node after the other."""
    first, _, label, children = tree
    roots, rules, of_words = (x.detach().numpy() for x in learner.grammar.logs())
    K = learner.config.labels
    if children is None:
        return float(of_words[words[first], label])
    left, right = (child[2] + (K if child[3] else 0) for child in children)
    below = sum(log_p(learner, words, child, root=False) for child in children)
    return float(rules[label, left * 2 * K + right] + below + (roots[label] if root else 0))


def small_grammar(seed: int = 0) -> Any:
    """Two labels, five words, rules drawn at random."""
    learner = made(MODEL | {"labels": 2, "vocabulary": 5, "width": 3}).double()
    random = torch.Generator().manual_seed(seed)
    for counts in learner.grammar.buffers():
        counts.copy_(20 * torch.rand(counts.shape, generator=random, dtype=torch.float64))
    return learner


@pytest.mark.parametrize("n", [2, 3, 4])
def test_inside_and_best_are_those_of_every_parse(n: int) -> None:
    """The sum of the probabilities of all parses of a sentence (640 of four words), and the greatest of them."""
    learner, words = small_grammar(), [3, 1, 4, 2][:n]
    every = {tree: log_p(learner, words, tree) for tree in every_parse(0, n - 1, 2)}
    assert len(every) == {2: 8, 3: 64, 4: 640}[n]
    grammar, padded = learner.grammar, torch.tensor([[*words, 0, 0]])  # what follows the sentence changes nothing
    (chart, parts), (top, _) = grammar.inside(padded, best=False), grammar.inside(padded, best=True)
    whole = chart[0, n - 1, 0, 2:]
    assert float((whole + grammar.logs()[0]).logsumexp(0)) == pytest.approx(
        math.log(sum(map(math.exp, every.values())))
    )
    assert torch.allclose(parts[0, n - 1, 0, :, : n - 1].logsumexp(-1), whole)
    best = max(every, key=lambda tree: every[tree])
    assert float((top[0, n - 1, 0, 2:] + grammar.logs()[0]).max()) == pytest.approx(every[best])
    (parse,) = trees_in(grammar.parse(padded, torch.tensor([n]), None))
    assert parse == best


@pytest.mark.slow
def test_inside_of_six_words() -> None:
    """Against the recursion over all splits and symbols, of which nothing is kept."""
    learner = made(MODEL | {"labels": 2, "vocabulary": 5, "width": 3}).double()
    for counts in learner.grammar.buffers():
        counts.copy_(torch.rand(counts.shape, dtype=torch.float64))
    words = [3, 1, 4, 2, 0, 3]
    chart, _ = learner.grammar.inside(torch.tensor([words]), best=False)
    roots, rules, of_words = (x.exp().detach() for x in learner.grammar.logs())

    def total(first: int, last: int) -> Tensor:
        """(2K,) of a span."""
        if first == last:
            return torch.cat([of_words[words[first]], torch.zeros(2, dtype=torch.float64)])
        pairs = [torch.outer(total(first, m), total(m + 1, last)).flatten() for m in range(first, last)]
        return torch.cat([torch.zeros(2, dtype=torch.float64), rules @ sum(pairs)])

    assert torch.allclose(chart[0, 5, 0].exp(), total(0, 5)) and float(total(0, 5)[2:] @ roots) > 0


def test_parses_are_drawn_in_proportion_to_their_probabilities() -> None:
    learner, words, draws = small_grammar(1), [3, 1, 4], 10_000
    u = torch.rand(1, draws, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    columns = learner.grammar.parse(torch.tensor([words]), torch.tensor([3]), u)
    seen = Counter(trees_in(columns))
    every = {tree: math.exp(log_p(learner, words, tree)) for tree in every_parse(0, 2, 2)}
    total = sum(every.values())
    assert len(seen) > 40
    for tree, p in every.items():
        share = p / total
        assert seen[tree] / draws == pytest.approx(share, abs=5 * math.sqrt(share / draws) + 1e-4)
    trees = trees_of({**columns, "id": u}, learner.words)
    found = learner.log_p(trees, trees.of(columns["label"]), learner.grammar.logs())
    expected = [log_p(learner, words, tree) for tree in trees_in(columns)[:50]]
    assert torch.allclose(found[:50], torch.tensor(expected, dtype=torch.float64))


def test_the_score_is_the_recursion_of_the_docstring(small_data: Any) -> None:
    learner, batch = counted(small_data)
    w = {name: p.detach().numpy() for name, p in learner.named_parameters()}

    def visit(row: int, tree: Parse) -> tuple[np.ndarray, int, float]:
        """Vector, symbol, and the votes so far."""
        first, _, label, children = tree
        if children is None:
            return w["words.weight"][batch["word"][row, first]], label, 0.0
        (b, left, votes), (c, right, more) = (visit(row, child) for child in children)
        pair = left * 20 + right
        p = np.tanh(w["weight"][pair] @ np.concatenate([b, c]) + w["bias"][pair])
        return p, label + 10, votes + more + float(w["vote"][pair] @ p)

    found = learner.scores(*learner.read(batch))
    for row, tree in enumerate(trees_in(batch)):
        expected = log_p(learner, batch["word"][row].tolist(), tree) + visit(row, tree)[2]
        assert float(found[row].detach()) == pytest.approx(expected, abs=1e-5)


def test_the_margin_and_the_brackets(small_data: Any) -> None:
    """Of the parses that are drawn: their right phrases, the worst of them, and the loss, all one by one."""
    learner, batch = counted(small_data)
    given, words = trees_in(batch), batch["word"].tolist()

    def brackets(tree: Parse) -> set[tuple[int, int, int]]:
        first, last, label, children = tree
        return set() if children is None else {(first, last, label)}.union(*map(brackets, children))

    noise.begin(7, batch["position"])
    parses = learner.candidates(batch, best=False)
    hits, spans = learner.right(batch, parses)
    scores = learner.scores(*learner.read(parses)).view(30, 4).tolist()
    gold = learner.scores(*learner.read(batch)).tolist()
    noise.begin(7, batch["position"])
    loss = float(learner.loss(batch, 50)[0].detach())
    noise.begin(0, None)
    expected, drawn = 0.0, trees_in(parses)
    assert len(drawn) == 120 and len(set(map(str, drawn))) > 15 and len(words) == 30
    for row, tree in enumerate(given):
        gaps = []
        for n in range(4):
            theirs, ours = brackets(drawn[4 * row + n]), brackets(tree)
            assert len(theirs & ours) == hits[row, n]
            assert len({b[:2] for b in theirs} & {b[:2] for b in ours}) == spans[row, n]
            gaps.append(scores[row][n] + 0.1 * len(theirs - ours) - gold[row])
        expected += max(0.0, *gaps) / 30
    assert loss == pytest.approx(expected, abs=1e-5) and loss > 0


@pytest.mark.slow
def test_vectors_tell_what_rules_cannot(small_data: Any) -> None:
    """Whether `with care` belongs to the verb or to the noun."""
    run = Small("cvg", small_data, train__steps=70)
    run.train(10)
    before = run.evaluate()
    assert before["f1"] == before["pcfg_f1"] < 0.97  # no vector has a vote yet
    run.train(60)
    after = run.evaluate()
    assert after["pcfg_f1"] == before["pcfg_f1"] and after["f1"] > before["f1"] + 0.02


def test_labels_that_are_too_few_are_named(small_data: Any) -> None:
    with pytest.raises(InputError, match=r"model.labels is 7, and a node has the label number 9"):
        made(MODEL | {"labels": 7}).update(batch_of(small_data), OneRank(), 0)
