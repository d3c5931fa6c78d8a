"""Compositional vector grammar: a parser whose rules have probabilities and vectors (Socher, Bauer, Manning & Ng 2013).

    P(A -> B C) = (count(A -> B C) + s) / (count(A) + s * pairs), as P(word | tag) and P(root)           a PCFG, by counting
    p = tanh(W^(B,C) [b; c] + a^(B,C)),    score(tree) = log P(tree) + sum over its nodes of v^(B,C) . p
    loss = max over parses y' of [score(y') + kappa * nodes of y' that are not in y] - score(y),   y the given tree

The matrices depend on the labels B, C of the children (they are syntactically untied); at the start W averages b and c, and
v = 0. The rules are counted in the first `count_steps` steps, the vectors learn after that. `parses` y' are drawn from the
PCFG, by the inside probabilities of all spans (the paper takes the 200 best). In evaluation the vectors choose among them
and the PCFG's best parse. A tag, the label over a word, is never the label of a phrase, as in the Penn Treebank.
Parameters: V d + (2K)^2 (2d^2 + 2d) with K labels, 544,500 for 16,580 words, 5 labels and d = 25, and the counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Amount, Count, CountOrZero, Several
from distdl.layout import noise
from distdl.learner import Answer, Batch, Column, Learner, Verbs
from distdl.learner.answers import NOTHING
from distdl.learner.trees import NONE, Trees, node_labels, touched, tree_columns, trees_of
from distdl.metrics import Mean, Metrics, mean


@dataclass(frozen=True)
class Config:
    vocabulary: Several = 16580
    """Words that have a vector; the first is the unknown one."""
    labels: Several = 5
    """Labels K of the trees."""
    width: Count = 25
    """Size d of a node's vector."""
    count_steps: CountOrZero = 100
    """Steps in which rules are counted, before the vectors learn: enough to see every tree once."""
    smoothing: Amount = 0.01
    """Added to every count s, so that nothing is impossible."""
    parses: Count = 50
    """Parses drawn from the PCFG for a sentence, among which the vectors choose."""
    margin: Amount = 0.1
    """What a wrong node costs, kappa."""


def chosen(scores: Tensor, u: Tensor | None) -> Tensor:
    """(P, X) logarithms of shares -> (P,): the greatest, or one drawn by u (P,) in 0..1."""
    if u is None:
        return scores.argmax(-1)
    total = scores.softmax(-1).cumsum(-1)
    return (total < u[:, None] * total[:, -1:]).sum(-1).clamp(max=scores.shape[1] - 1)


class Grammar(nn.Module):
    """Counts of rules and what follows from them. Symbols: the tags 0..K-1, then the phrases K..2K-1."""

    def __init__(self, labels: int, vocabulary: int, smoothing: float) -> None:
        super().__init__()
        self.K, self.smoothing = labels, smoothing
        self.roots = nn.Buffer(torch.zeros(labels))
        self.rules = nn.Buffer(torch.zeros(labels, 4 * labels**2))
        self.words = nn.Buffer(torch.zeros(vocabulary, labels))

    def logs(self) -> tuple[Tensor, Tensor, Tensor]:
        """log P of a phrase to be a root (K,), of a rule (K, 2K*2K), of a word by its tag (V, K)."""
        # In double precision: rounding, which depends on the batch's size, would now and then draw another parse.
        roots, rules, words = (c.double() + self.smoothing for c in self.buffers())
        return (roots / roots.sum()).log(), (rules / rules.sum(1, keepdim=True)).log(), (words / words.sum(0)).log()

    def inside(self, words: Tensor, best: bool) -> tuple[Tensor, Tensor]:
        """log P(words of a span | symbol) (B, T, T, 2K) by length - 1 and start, and the part of it whose left child has m
        words (B, T, T, K, T), at m - 1. `best`: of the best parse instead of all. CKY, all spans of a length at once."""
        (B, T), K, (_, rules, of_words) = words.shape, self.K, self.logs()
        chart = words.new_full((B, T, T, 2 * K), -torch.inf, dtype=rules.dtype)
        parts = chart.new_full((B, T, T, K, T), -torch.inf)
        chart[:, 0, :, :K] = of_words[words]
        for length in range(2, T + 1):
            m, start = torch.arange(1, length)[:, None], torch.arange(T - length + 1)
            left, right = chart[:, m - 1, start], chart[:, length - m - 1, start + m]  # (B, m, start, 2K)
            pairs = (left[..., None] + right[..., None, :]).flatten(-2)  # (B, m, start, 2K*2K)
            if best:
                of_m = (pairs[..., None, :] + rules).amax(-1)  # (B, m, start, K)
            else:
                top = pairs.amax(-1, keepdim=True)
                of_m = ((pairs - top).exp() @ rules.exp().T).log() + top
            parts[:, length - 1, : len(start), :, : length - 1] = of_m.permute(0, 2, 3, 1)
            chart[:, length - 1, : len(start), K:] = of_m.amax(1) if best else of_m.logsumexp(1)
        return chart, parts

    @torch.no_grad()
    def parse(self, words: Tensor, count: Tensor, u: Tensor | None) -> dict[str, Tensor]:
        """The best parse of each sentence (B, T), of which `count` words (B,) are real, or with u (B, N, 2, T, T) N parses
        drawn in proportion to their probabilities. Columns of B*N trees, as the source `trees` has them."""
        (B, T), K, N = words.shape, self.K, 1 if u is None else u.shape[1]
        (chart, parts), (roots, rules, _) = self.inside(words, best=u is None), self.logs()
        trees, rows = torch.arange(B * N, device=words.device), torch.arange(B, device=words.device)
        label = words.new_full((B * N, 2 * T - 1), NONE)
        children, height = label.new_zeros(*label.shape, 2), torch.full_like(label, NONE)
        height[:, :T].masked_fill_((torch.arange(T, device=words.device) < count[:, None]).repeat_interleave(N, 0), 0)
        label[:, 0] = 0  # of a sentence of one word, of which there is nothing to choose

        def of(kind: int, tree: Tensor, length: Tensor, start: Tensor) -> Tensor | None:
            return None if u is None else u.flatten(0, 1)[tree, kind, length - 1, start]

        tree = trees[count.repeat_interleave(N) > 1]
        length, start = count[tree // N], torch.zeros_like(tree)
        whole = chart[rows, count - 1, 0, K:][tree // N] + roots
        symbol = chosen(whole, of(0, tree, torch.ones_like(tree), start))
        above, levels = torch.full_like(tree, -1), []  # the parent's place, times two and 1 if it is the right child
        while len(tree):
            m = 1 + chosen(parts[tree // N, length - 1, start, symbol], of(0, tree, length, start))
            left, right = chart[tree // N, m - 1, start], chart[tree // N, length - m - 1, start + m]
            pairs = (left[:, :, None] + right[:, None]).flatten(1) + rules[symbol]
            pair = chosen(pairs, of(1, tree, length, start))
            place = T + start + m - 1  # no two nodes of a tree are split at the same gap
            label[tree, place] = symbol
            inner = above >= 0
            children[tree[inner], above[inner] // 2, above[inner] % 2] = place[inner]
            levels.append((tree, place))
            tree, above = tree.repeat(2), torch.cat([2 * place, 2 * place + 1])
            start, length = torch.cat([start, start + m]), torch.cat([m, length - m])
            symbol = torch.cat([pair // (2 * K), pair % (2 * K)])
            word = length == 1
            label[tree[word], start[word]] = symbol[word]
            children[tree[word], above[word] // 2, above[word] % 2] = start[word]
            tree, above, start, length, symbol = (x[~word] for x in (tree, above, start, length, symbol - K))
        for tree, place in reversed(levels):
            height[tree, place] = 1 + height[tree[:, None], children[tree, place]].amax(1)
        columns = {"children": children, "height": height, "label": label}
        return {"word": F.pad(words, (0, T - 1)).repeat_interleave(N, 0), **columns}


class CVG(Learner):
    learns = "counting rules, then back-propagation of a margin"
    primary, better = "f1", "higher"
    nothing_to_show = "its answers are trees of labels; the curves say how many of their brackets are right"
    no_graph = "a chart of parses grows as long as the sentence"
    # Not zero3: it gathers weights at each height, and the trees of one rank are higher than those of another.
    layouts = frozenset({"torch", "zero0", "zero1", "zero2"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, d, pairs = config, config.width, 4 * config.labels**2
        self.grammar = Grammar(config.labels, config.vocabulary, config.smoothing)
        self.before = (-1, self.grammar.logs())  # a step, and the grammar at its beginning
        self.words = nn.Embedding(config.vocabulary, d)
        nn.init.normal_(self.words.weight, std=0.1)
        self.weight = nn.Parameter(0.01 * torch.randn(pairs, d, 2 * d) + torch.eye(d).repeat(1, 2) / 2)
        self.bias, self.vote = nn.Parameter(torch.zeros(pairs, d)), nn.Parameter(torch.zeros(pairs, d))

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return tree_columns(config.vocabulary) | {"label": node_labels(config.labels, key="labels", missing=None)}

    def read(self, batch: Batch) -> tuple[Trees, Tensor]:
        """The trees and the labels of their nodes (R,)."""
        trees = trees_of(batch, self.words)
        return trees, trees.labels(batch["label"], self.config.labels, "labels")

    def pairs(self, trees: Trees, label: Tensor) -> Tensor:
        """(R - W,) number of the symbols of both children of each phrase."""
        symbol = label + self.config.labels * (torch.arange(len(label), device=label.device) >= trees.sizes[0])
        left, right = symbol[trees.children[trees.sizes[0] :]].unbind(1)
        return left * 2 * self.config.labels + right

    def whole(self, trees: Trees) -> Tensor:
        """Roots of the trees of two words or more."""
        return trees.roots[trees.roots >= trees.sizes[0]]

    def log_p(self, trees: Trees, label: Tensor, logs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """(B,) of the trees by the PCFG."""
        (roots, rules, words), first = logs, trees.sizes[0]
        of_nodes = torch.cat([words[trees.word, label[:first]], rules[label[first:], self.pairs(trees, label)]])
        whole = self.whole(trees)
        return trees.per_tree(of_nodes.index_add(0, whole, roots[label[whole]]))

    def scores(self, trees: Trees, label: Tensor) -> Tensor:
        """(B,) log P(tree) and the votes of its nodes."""
        pair, first = self.pairs(trees, label), trees.sizes[0]

        def merge(x: Tensor, span: slice) -> Tensor:
            of = pair[span.start - first : span.stop - first]
            return torch.tanh(torch.bmm(self.weight[of], x.flatten(1)[..., None])[..., 0] + self.bias[of])

        nodes = trees.compose(self.words(trees.word), merge)
        votes = (self.vote[pair] * nodes[first:]).sum(-1).float()
        return self.log_p(trees, label, self.grammar.logs()) + trees.per_tree(F.pad(votes, (first, 0)))

    def candidates(self, batch: Batch, best: bool) -> dict[str, Tensor]:
        """Parses of each sentence, drawn from the PCFG; `best`: and before them its best one. Columns of B*N trees."""
        T = (batch["height"].shape[1] + 1) // 2
        words, count = batch["word"].long()[:, :T], ((batch["height"] != NONE).sum(1) + 1) // 2
        B, N, longest = len(words), self.config.parses, int(count.max())
        u = noise.uniform(B, N * 2 * T * T, device=words.device).view(B, N, 2, T, T)[..., :longest, :longest]
        found = [self.grammar.parse(words[:, :longest], count, how) for how in ([None, u] if best else [u])]
        parts = {name: [one[name].unflatten(0, (B, -1)) for one in found] for name in found[0]}
        return {name: torch.cat(columns, 1).flatten(0, 1) for name, columns in parts.items()}

    @classmethod
    def asked(cls, config: Config) -> dict[str, Column]:
        return {name: column for name, column in tree_columns(config.vocabulary).items() if name != "children"}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        told = {"label": "of the best parse", "children": "places of both, of a phrase", "height": "0: a word"}
        return {name: Answer("nodes", meaning, of=name) for name, meaning in told.items()}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        """Sentence by sentence: where the nodes of a parse stand depends on the longest that is parsed with it."""
        found: dict[str, list[Tensor]] = {"label": [], "children": [], "height": []}
        for word, height in zip(batch["word"], batch["height"]):
            with noise.apart(0, torch.zeros(1, dtype=torch.long, device=word.device)):
                parses = self.candidates({"word": word[None], "height": height[None]}, best=True)
            best = self.scores(*self.read(parses)).argmax()
            for name, columns in found.items():
                behind = (0, 0) * (parses[name].ndim - 2) + (0, len(height) - parses[name].shape[1])
                columns.append(F.pad(parses[name][best], behind, value=NOTHING))
        return {name: torch.stack(columns) for name, columns in found.items()}

    def right(self, batch: Batch, parses: Batch) -> Tensor:
        """(2, B, N) phrases of each parse with the span and the label of one of the given tree's, and with its span."""
        (trees, label), (B, M) = self.read(batch), batch["height"].shape
        inner, ends = slice(trees.sizes[0], None), trees.ends(M)
        given = torch.full((B, M, M), -1, device=label.device)
        given[trees.tree[inner], ends[inner, 0], ends[inner, 1]] = label[inner]
        trees, label = self.read(parses)
        inner, ends, N = slice(trees.sizes[0], None), trees.ends(parses["height"].shape[1]), len(trees.roots) // B
        there = given[trees.tree[inner] // N, ends[inner, 0], ends[inner, 1]]
        kinds = (there == label[inner], there >= 0)
        return torch.stack([trees.per_tree(F.pad(k.float(), (trees.sizes[0], 0))).view(B, N) for k in kinds])

    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        if step >= self.config.count_steps:
            return super().update(batch, engine, step)
        if step != self.before[0]:  # all micro-batches of a step are measured by the counts before it
            self.before = (step, self.grammar.logs())
        trees, label = self.read(batch)
        grammar, first, loss = self.grammar, trees.sizes[0], -self.log_p(trees, label, self.before[1])
        pairs = label[first:] * grammar.rules.shape[1] + self.pairs(trees, label)
        words = trees.word * self.config.labels + label[:first]
        for counts, places in zip(grammar.buffers(), (label[self.whole(trees)], pairs, words)):
            counts += engine.all_sum(torch.bincount(places, minlength=counts.numel()).float()).view_as(counts)
        return {"loss": Mean(loss.sum(), float(len(loss)))}  # as a sum in double precision

    def margins(self, batch: Batch, parses: Batch, scores: Tensor, hits: Tensor) -> Tensor:
        """(B,) how much the worst parse comes too near to the given tree; scores and right phrases (B, N) of the parses."""
        wrong = self.config.margin * (((batch["height"] != NONE).sum(1, keepdim=True) - 1) // 2 - hits)
        worst = (scores + wrong).argmax(1, keepdim=True)
        rows = worst[:, 0] + scores.shape[1] * torch.arange(len(scores), device=worst.device)
        against = self.scores(*self.read({name: column[rows] for name, column in parses.items()}))
        return F.relu(against + wrong.gather(1, worst)[:, 0] - self.scores(*self.read(batch)))

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            parses = self.candidates(batch, best=False)
            hits, _ = self.right(batch, parses)
            scores = self.scores(*self.read(parses)).view_as(hits)
        return self.margins(batch, parses, scores, hits).mean().float() + touched(self), {}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        """Labelled brackets that are right: of the parse that the vectors choose, of the PCFG's best, of the best there is
        among the parses. In binary trees precision, recall and F1 are one. `spans`: the labels aside."""
        parses = self.candidates(batch, best=True)
        hits, spans = self.right(batch, parses)
        scores = self.scores(*self.read(parses)).view_as(hits)
        best, count = scores.argmax(1, keepdim=True), float(sum(self.read(batch)[0].sizes[1:]))
        found = {"f1": hits.gather(1, best), "pcfg_f1": hits[:, 0], "best_f1": hits.amax(1)}
        found |= {"spans": spans.gather(1, best), "pcfg_spans": spans[:, 0]}
        loss = {"loss": mean(self.margins(batch, parses, scores, hits))}
        return loss | {name: Mean(values.sum(), count) for name, values in found.items()}
