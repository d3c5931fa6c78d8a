"""Recursive network over trees: the meaning of a phrase from those of its parts (Socher et al. 2011, 2013).

    words: their vectors L[w]        nodes: p = tanh(W [b; c] + a)       of the children b and c
    `tensor`:  p = tanh([b; c]^T V/d [b; c] + W [b; c] + a), V of (2d, 2d, d)     (recursive neural tensor network)
    label of each node, words too: softmax(U p + u)

The loss is the mean over trees of the sum over their nodes of the cross entropy. V is kept times d, as Adagrad moves each
of its many numbers as far as one of W. Parameters: |L| + 2d^2 + d, with the tensor 4d^3 more, and d + 1 for each class. The
16,580 words and 5 classes of the Stanford Sentiment Treebank: 499,385 for d = 30; 478,405 with the tensor for d = 25.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distdl.config.fields import Amount, Count, Several
from distdl.learner import Answer, Batch, Column, Learner
from distdl.learner.answers import CLASSES, NOTHING, of_logits
from distdl.learner.labels import known, mean_known
from distdl.learner.trees import Trees, grown, node_labels, of_nodes, touched, tree_columns, trees_of
from distdl.metrics import Metrics, mean
from distdl.nn.watch import seen


@dataclass(frozen=True)
class Config:
    vocabulary: Several = 16580
    """Words that have a vector; the first is the unknown one."""
    classes: Several = 5
    """Labels of a node, from the most negative to the most positive."""
    width: Count = 30
    """Size d of a node's vector."""
    tensor: bool = False
    """Let the children multiply each other, too: the recursive neural tensor network."""
    scale: Amount = 0.01
    """Standard deviation of the words' vectors at the start; that of the unknown word may never change."""


class Merge(nn.Module):
    """(n, 2, d) children -> (n, d)."""

    def __init__(self, width: int, tensor: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, width)
        with torch.no_grad():  # at the start a parent is about the mean of its children (Socher et al. 2013, CVG)
            self.linear.weight.normal_(std=0.01 / width**0.5).add_(torch.eye(width).repeat(1, 2) / 2)
            self.linear.bias.zero_()
        self.tensor = nn.Parameter(torch.empty(2 * width, 2 * width, width)) if tensor else None
        if self.tensor is not None:
            nn.init.normal_(self.tensor, std=0.01)

    def forward(self, pairs: Tensor) -> Tensor:
        x = pairs.flatten(1)  # (n, 2d)
        out = self.linear(x)
        if self.tensor is not None:
            right = (x @ self.tensor.flatten(1)).view(x.shape[0], *self.tensor.shape[1:])  # (n, 2d, d)
            out = out + (x[:, None] @ right).squeeze(1) / out.shape[1]
        return torch.tanh(out)


class RecNN(Learner):
    primary, better = "all_nodes", "higher"
    # Not zero3: it gathers weights at each height, and the trees of one rank are higher than those of another.
    layouts = frozenset({"torch", "zero0", "zero1", "zero2"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocabulary, config.width)
        nn.init.normal_(self.words.weight, std=config.scale)
        self.merge = Merge(config.width, config.tensor)
        self.head = nn.Linear(config.width, config.classes)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {**tree_columns(config.vocabulary), "label": node_labels(config.classes)}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {**CLASSES, "nodes": Answer("nodes", "class of each node", of="label")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        """`class` and `probabilities` are those of the root."""
        if torch.compiler.is_exporting():
            all_, roots, real = grown(batch, self.words(batch["word"].long()), self.merge)
            told = self.head(all_).float().argmax(-1).masked_fill(~real, NOTHING)
            return {**of_logits(self.head(roots).float()), "nodes": told}
        trees = trees_of(batch, self.words)
        logits = self.head(self.nodes(trees)).float()
        nodes = torch.full_like(batch["height"].long(), NOTHING)
        nodes.view(-1)[trees.place] = logits.argmax(-1)
        return {**of_logits(logits[trees.roots]), "nodes": nodes}

    def nodes(self, trees: Trees) -> Tensor:
        """(R, d) vectors of all nodes."""
        return trees.compose(self.words(trees.word), lambda pairs, _: self.merge(pairs))

    def outputs(self, batch: Batch) -> tuple[Trees, Tensor, Tensor]:
        """The trees, the logits (R, K) and the labels (R,) of their nodes."""
        trees = trees_of(batch, self.words)
        label = trees.labels(batch["label"], self.config.classes, "classes")
        return trees, self.head(self.nodes(trees)), label

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        trees, logits, label = self.outputs(batch)
        losses = of_nodes(logits, label)  # (R,)
        metrics = {"all_nodes": mean_known((logits.argmax(-1) == label).float(), label)}
        return losses.sum() / len(trees.roots) + touched(self), metrics

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        """Of all nodes, of the roots, and of the roots that are not neutral: negative against positive."""
        trees, logits, label = self.outputs(batch)
        losses = trees.per_tree(of_nodes(logits, label))
        seen("classes", logits, label)
        right, roots, half = logits.argmax(-1) == label, trees.roots, self.config.classes // 2
        share = logits[roots].softmax(-1)
        positive, truth = share[:, -half:].sum(-1) > share[:, :half].sum(-1), label[roots]
        chosen = known(truth) & (truth < half) | (truth >= self.config.classes - half)
        return {
            "loss": mean(losses),
            "all_nodes": mean_known(right.float(), label),
            "root": mean_known(right[roots].float(), truth),
            "root_binary": mean((positive == (truth >= half))[chosen].float()),
        }
