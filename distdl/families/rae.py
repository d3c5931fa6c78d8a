"""Recursive autoencoder: a vector for every phrase, from which its words can be restored (Socher et al. 2011).

    words: x = L[w] / |L[w]|        phrases: p = tanh(W [b; c] + a)      restored children: [b'; c'] = tanh(V p + v)
    `unfold`           p is taken apart down to its words x' (NIPS 2011):  E(p) = mean over its words of |x - x'|^2
    otherwise          p has length 1, of the children of n_b and n_c words (EMNLP 2011):
                       E(p) = n_b / (n_b + n_c) |b - b'|^2 + n_c / (n_b + n_c) |c - c'|^2
    `trees: greedy`    the neighbours whose second E is the least become a phrase, again and again: no tree is read
    `supervision` s    loss = (1 - s) E + s times the cross entropy of a node's label, softmax(U p + u); the nodes of a
                       greedy tree have the label of the whole

Unlike the papers, the leaves' errors are averaged, children are restored through a tanh, and single words have labels, too.
The loss is the mean over trees of the sum over their phrases. Parameters: 2 * 2d^2 + 3d; trained words have V d more, and a
supervised model d + 1 for each class. Words that are not trained keep their random directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Count, OpenShare, Several
from distdl.learner import Answer, Batch, Column, Learner
from distdl.learner.answers import CLASSES, of_logits
from distdl.learner.labels import mean_known
from distdl.learner.trees import NONE, Trees, grown, node_labels, of_nodes, touched, tree_columns, trees_of
from distdl.metrics import Metrics, mean
from distdl.nn.watch import FEW, shown


@dataclass(frozen=True)
class Config:
    vocabulary: Several = 16580
    """Words that have a vector; the first is the unknown one."""
    width: Count = 50
    """Size d of a phrase's vector."""
    unfold: bool = True
    """Take a phrase apart down to its words, not to its two children."""
    trees: Literal["given", "greedy"] = "given"
    """The trees of the data set, or trees that the autoencoder builds."""
    train_words: bool = False
    """Learn the words' vectors, too."""
    supervision: OpenShare = 0.0
    """Share s of the labels' cross entropy in the loss; 0: no labels are read."""
    classes: Several = 5
    """Labels of a node, if it is supervised."""


class RAE(Learner):
    primary, better = "error", "lower"
    # Not zero3: it gathers weights at each height, and the trees of one rank are higher than those of another.
    layouts = frozenset({"torch", "zero0", "zero1", "zero2"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        d = config.width
        self.words = nn.Embedding(config.vocabulary, d)
        if not config.train_words:
            directions = self.words.weight.data
            del self.words.weight
            self.words.register_buffer("weight", directions)
        self.encoder, self.decoder = nn.Linear(2 * d, d), nn.Linear(d, 2 * d)
        with torch.no_grad():  # at the start a phrase is the mean of its parts, and its parts are like it
            halves = torch.eye(d).repeat(1, 2)
            self.encoder.weight.normal_(std=0.1 / d**0.5).add_(halves / 2)
            self.decoder.weight.normal_(std=0.1 / d**0.5).add_(halves.T)
            self.encoder.bias.zero_()
            self.decoder.bias.zero_()
        self.head = nn.Linear(d, config.classes) if config.supervision else None
        if config.trees == "greedy":
            self.no_graph = "each row decides which of its words come together first; trees that are given have a graph"

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        label = {"label": node_labels(config.classes)} if config.supervision else {}
        return {**tree_columns(config.vocabulary), **label}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        vector = {"embedding": Answer("embedding", "of the whole sentence, at the root of its tree")}
        return {**CLASSES, **vector} if config.supervision else vector

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        if torch.compiler.is_exporting() and self.config.trees != "greedy":
            _, roots, _ = grown(batch, self.leaves(batch["word"].long()), self.encode)
        else:
            trees, nodes, _ = self.outputs(batch)
            roots = nodes[trees.roots]
        return {**(of_logits(self.head(roots)) if self.head is not None else {}), "embedding": roots.float()}

    def encode(self, pairs: Tensor) -> Tensor:
        """(n, 2, d) -> (n, d)."""
        p = torch.tanh(self.encoder(pairs.flatten(1)))
        return p if self.config.unfold else F.normalize(p, dim=-1)

    def decode(self, p: Tensor) -> Tensor:
        """(n, d) -> (n, 2, d)."""
        return torch.tanh(self.decoder(p)).unflatten(1, (2, -1))

    def leaves(self, words: Tensor) -> Tensor:
        """(...) numbers -> (..., d) of length 1."""
        return F.normalize(self.words(words), dim=-1)

    def outputs(self, batch: Batch) -> tuple[Trees, Tensor, Tensor]:
        """The trees, their nodes (R, d), and the error of each phrase (R - W,)."""
        trees = trees_of(batch, self.words)
        if self.config.trees == "greedy":
            trees = trees_of(self.built(batch), self.words)
        leaves = self.leaves(trees.word)
        nodes, first = trees.compose(leaves, lambda pairs, _: self.encode(pairs)), len(leaves)
        count = trees.compose(nodes.new_ones(first, 1), lambda pairs, _: pairs.sum(1))[:, 0]  # words of a node
        if not self.config.unfold:
            children = trees.children[first:]
            return trees, nodes, self.of_children(nodes[children], count[children])
        node, word, restored = trees.unfold(nodes, self.decode)
        errors = (restored - leaves[word]).square().sum(-1)
        return trees, nodes, nodes.new_zeros(len(nodes)).index_add(0, node, errors)[first:] / count[first:]

    def of_children(self, pairs: Tensor, counts: Tensor) -> Tensor:
        """The error of children (n, 2, d) of so many words (n, 2): (n,)."""
        errors = (self.decode(self.encode(pairs)) - pairs).square().sum(-1)  # (n, 2)
        return (errors * counts).sum(-1) / counts.sum(-1)

    @torch.no_grad()
    def built(self, batch: Batch) -> dict[str, Tensor]:
        """The batch with trees over the same words: of each step, the best two neighbours of every sentence are merged."""
        height = torch.full_like(batch["height"], NONE).long()
        B, M = height.shape
        children = torch.zeros(B, M, 2, dtype=torch.long, device=height.device)
        row = torch.arange(B, device=height.device)
        length = ((batch["height"] != NONE).sum(1) + 1) // 2  # words of a sentence
        T = int(length.max())
        x = self.leaves(batch["word"].long()[:, :T])  # (B, T, d), the phrases that there are
        node = torch.arange(T, device=height.device).expand(B, T).contiguous()
        count = torch.ones(B, T, device=height.device, dtype=x.dtype)
        height[:, :T].masked_fill_(node < length[:, None], 0)
        for step in range(T - 1):
            neighbours = torch.stack([x[:, :-1], x[:, 1:]], 2).flatten(0, 1)  # (B*(T-1), 2, d)
            counts = torch.stack([count[:, :-1], count[:, 1:]], 2).flatten(0, 1)
            errors = self.of_children(neighbours, counts).view(B, -1)
            left = length - step  # phrases that are left of a sentence
            behind = torch.arange(T - 1 - step, device=height.device) >= (left - 1)[:, None]
            at = errors.masked_fill(behind, torch.inf).argmin(1)  # (B,)
            going = torch.nonzero(left > 1)[:, 0]
            new = (length + step)[going]
            pair = torch.stack([node[row, at], node[row, at + 1]], 1)[going]
            children[going, new] = pair
            height[going, new] = 1 + height[going[:, None], pair].amax(1)
            merged = self.encode(torch.stack([x[row, at], x[row, at + 1]], 1))
            x[going, at[going]], node[going, at[going]] = merged[going].to(x.dtype), new
            count[going, at[going]] += count[going, at[going] + 1]
            kept = torch.arange(T - 1 - step, device=height.device)
            kept = kept + (kept > at[:, None])  # all but the right one of the pair
            x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[2]))
            node, count = node.gather(1, kept), count.gather(1, kept)
        return {**batch, "children": children, "height": height}

    def of_labels(self, batch: Batch, trees: Trees, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The cross entropy of every node (R,), whether its label is right (R,), and the label (R,)."""
        assert self.head is not None
        given = trees_of(batch, self.words) if self.config.trees == "greedy" else trees
        label = given.labels(batch["label"], self.config.classes, "classes")
        if given is not trees:
            label = label[given.roots][trees.tree]
        logits = self.head(nodes).float()
        return of_nodes(logits, label), (logits.argmax(-1) == label).float(), label

    def again(self, trees: Trees, nodes: Tensor) -> dict[str, Tensor]:
        """Of the first phrases: their children, and what is decoded from the phrase."""
        some = slice(trees.sizes[0], trees.sizes[0] + FEW)
        return {"given": nodes[trees.children[some]].flatten(1), "told": self.decode(nodes[some]).flatten(1)}

    def per_tree(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss of each tree (B,), and what is measured."""
        trees, nodes, errors = self.outputs(batch)
        losses, share = trees.per_tree(F.pad(errors.float(), (trees.sizes[0], 0))), self.config.supervision
        metrics = {"error": mean(errors)}
        shown("reconstructions: children and what their parent makes of them", lambda: self.again(trees, nodes))
        if share:
            entropy, right, label = self.of_labels(batch, trees, nodes)
            losses = (1 - share) * losses + share * trees.per_tree(entropy)
            root = mean_known(right[trees.roots], label[trees.roots])
            metrics |= {"accuracy": mean_known(right, label), "root": root}
        return losses, metrics

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        losses, metrics = self.per_tree(batch)
        return losses.mean() + touched(self), metrics

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        losses, metrics = self.per_tree(batch)
        return {"loss": mean(losses), **metrics}
