"""Binary trees of a batch, computed together: all nodes of one height in one operation, from the words up.

A batch holds of each tree's nodes `word`, `height` (B, M) and `children` (B, M, 2), as the source `trees` writes them. Here
they stand in one row, by height, without padding; R nodes in all, the first of them the words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.columns import NO_LABEL, Column
from distdl.errors import InputError
from distdl.learner.labels import filled, known
from distdl.learner.learner import Batch
from distdl.nn.recurrence import over_time

NONE = 255
"""The height of what is no node."""


def tree_columns(vocabulary: int) -> dict[str, Column]:
    """What every family of trees reads."""
    return {
        "word": Column.tokens(vocabulary, (None,), meaning="word"),
        "children": Column.whole(0, None, (None, 2), meaning="place of a child in the row", within="word"),
        "height": Column.whole(0, NONE, (None,), meaning=f"height of a node ({NONE}: none)"),
    }


def node_labels(classes: int, key: str = "classes", missing: int | None = NO_LABEL) -> Column:
    """The label of each node."""
    return Column.label(classes, (None,), key=key, missing=missing, meaning="label of a node", filler=NONE)


@dataclass(frozen=True)
class Trees:
    """The nodes of B trees by height; of one height in the order of the batch."""

    word: Tensor
    """(W,) number of the word of each of the first nodes."""
    children: Tensor
    """(R, 2) places of a node's children; those of a word mean nothing."""
    sizes: tuple[int, ...]
    """Nodes of each height; the first is W."""
    place: Tensor
    """(R,) where the node is in the flattened columns (B * M,) of the batch."""
    tree: Tensor
    """(R,) number of its tree."""
    roots: Tensor
    """(B,) place of each tree's highest node."""

    def spans(self) -> Iterator[slice]:
        """The places of the nodes of each height above the words."""
        first = self.sizes[0]
        for size in self.sizes[1:]:
            yield slice(first, first + size)
            first += size

    def compose(self, leaves: Tensor, merge: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """(W, D) of the words -> (R, D) of all nodes; `merge` makes (n, D) of the children (n, 2, D) of a height's nodes,
        and is told their places."""
        nodes = leaves
        for span in self.spans():
            pairs = nodes.index_select(0, self.children[span].flatten()).view(-1, 2, nodes.shape[1])
            nodes = torch.cat([nodes, merge(pairs, span)])
        return nodes

    def unfold(self, nodes: Tensor, split: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What becomes of each inner node taken apart down to its words: place of the node (P,), of the word (P,), and the
        word's vector (P, D). `split` makes the children (n, 2, D) of (n, D)."""
        first = self.sizes[0]
        node = at = torch.arange(first, len(nodes), device=nodes.device)
        x, found = nodes[first:], []
        while len(at):
            x, at, node = split(x).flatten(0, 1), self.children[at].flatten(), node.repeat_interleave(2)
            word = at < first
            found.append((node[word], at[word], x[word]))
            x, at, node = x[~word], at[~word], node[~word]
        if not found:  # trees of single words
            return node, at, x
        return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found]), torch.cat([f[2] for f in found])

    def of(self, column: Tensor) -> Tensor:
        """(B, M, ...) -> (R, ...): a column's values of the nodes."""
        return column.flatten(0, 1)[self.place]

    def labels(self, column: Tensor, known: int, key: str) -> Tensor:
        """(B, M) -> (R,) labels. InputError: there are more of them than the model's `key` says."""
        label = self.of(column).long()
        if int(label.max()) >= known:
            what = f"model.{key} is {known}, and a node has the label number {int(label.max())}"
            raise InputError(what, fix=f"model.{key}: as many labels as the data set's manifest.json lists")
        return label

    def ends(self, nodes: int) -> Tensor:
        """(R, 2) the first and the last word of each phrase, as numbered in a tree of so many places M."""
        at = self.place[: self.sizes[0]] % nodes
        return self.compose(torch.stack([at, at], 1), lambda x, _: torch.stack([x[:, 0, 0], x[:, 1, 1]], 1))

    def per_tree(self, values: Tensor) -> Tensor:
        """(R,) -> (B,): the sum over each tree's nodes."""
        return values.new_zeros(len(self.roots)).index_add(0, self.tree, values)


def trees_of(batch: Batch, words: nn.Embedding) -> Trees:
    """The trees of a batch. InputError: they have words that the embedding lacks."""
    height = batch["height"].long()  # (B, M)
    B, M = height.shape
    real = height != NONE
    order = height.flatten().argsort(stable=True)  # what is no node comes last
    sizes = tuple(height[real].bincount().tolist())
    order = order[: sum(sizes)]
    at = torch.empty_like(height.flatten()).scatter_(0, order, torch.arange(len(order), device=order.device))
    children = batch["children"].long() + M * torch.arange(B, device=order.device)[:, None, None]
    word = batch["word"].long().flatten()[order[: sizes[0]]]
    if len(word) and int(word.max()) >= words.num_embeddings:
        what = f"model.vocabulary is {words.num_embeddings}, and a tree has the word number {int(word.max())}"
        raise InputError(what, fix="model.vocabulary: as many words as the data set's manifest.json lists, or more")
    highest = height.masked_fill(~real, -1).argmax(1) + M * torch.arange(B, device=order.device)
    return Trees(word, at[children.view(-1, 2)[order]], sizes, order, order // M, at[highest])


def grown(batch: Batch, leaves: Tensor, merge: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The same nodes for a graph, which cannot ask how high a tree is: node by node, the lower first. `leaves` (B, M, D) as
    if all were words. The vectors (B, M, D), those of the roots (B, D), and which are nodes at all (B, M)."""
    height = batch["height"].long()
    _, M, D = leaves.shape
    children = batch["children"].long().clamp(0, M - 1)  # (B, M, 2); those of a word mean nothing

    def step(nodes: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        below = children.gather(1, at[:, None, None].expand(-1, 1, 2)).squeeze(1)  # (B, 2)
        merged = merge(nodes.gather(1, below[:, :, None].expand(-1, -1, D)))  # (B, D)
        here = at[:, None, None].expand(-1, 1, D)
        high = height.gather(1, at[:, None])  # (B, 1)
        new = torch.where((high > 0) & (high != NONE), merged, nodes.gather(1, here).squeeze(1))
        return nodes.scatter(1, here, new[:, None]), at

    _, nodes = over_time(step, leaves, height.argsort(dim=1))
    real = height != NONE
    highest = height.masked_fill(~real, -1).argmax(1)
    return nodes, nodes.gather(1, highest[:, None, None].expand(-1, 1, D)).squeeze(1), real


def touched(module: nn.Module) -> Tensor:
    """Zero, by way of every weight but words' vectors: a rank whose trees are single words merges nothing, and its
    gradients must be there all the same when the ranks add theirs up."""
    weights = [p for m in module.modules() if not isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)]
    return torch.stack([p.sum() for p in weights if p.requires_grad]).sum() * 0.0


def of_nodes(logits: Tensor, label: Tensor) -> Tensor:
    """The cross entropy of every node, (R, K), (R,) -> (R,); 0 where it has no label. Losses are per tree, however many of
    its nodes have one."""
    losses = F.cross_entropy(logits.float(), filled(label), reduction="none")
    return losses.masked_fill(~known(label), 0.0)
