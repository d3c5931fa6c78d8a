"""What language models share: places of tokens, causal attention, and the loss over a vocabulary.

Each is the plain thing on one device, and exact where the sequence or the vocabulary is cut (see `layout/axes.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from distdl.layout.axes import copied, here, shard_of
from distdl.layout.process import alone
from distdl.nn.attention import shares
from distdl.nn.watch import MOST_PLACES, shown


def places(tokens: Tensor) -> Tensor:
    """(T,) position in the sequence of each of this rank's tokens (B, T)."""
    n = tokens.shape[1]
    first = n * here.sequence.index if here.memory is None else here.memory.length
    return torch.arange(first, first + n, device=tokens.device)


def begins_of(documents: Tensor) -> Tensor:
    """Numbers of the documents that share a row (B, T) -> 1 where one begins, 0 elsewhere, int64 (B, T)."""
    numbers = documents.long()
    return F.pad((numbers[:, 1:] != numbers[:, :-1]).long(), (1, 0), value=1)


def places_within(begins: Tensor) -> Tensor:
    """(B, T) position of each token in its document."""
    if here.memory is not None:  # of one document
        return places(begins).expand_as(begins)
    place = torch.arange(begins.shape[1], device=begins.device)
    return place - (place * begins.bool()).cummax(1).values


def attend(q: Tensor, k: Tensor, v: Tensor, begins: Tensor | None = None) -> Tensor:
    """Causal scaled dot-product attention (Vaswani et al. 2017, eq. 1). (B, H, T, D) each -> (B, H, T, D).

    `begins` (B, T): where a document begins. A token then attends to those of its own document only.
    """
    if here.memory is not None:
        return here.memory.attend(q, k, v)
    if begins is not None:
        assert here.attention is None  # the plan refuses slices of rows with borders
        document = begins.long().cumsum(1)  # (B, T)
        mask = (document[:, :, None] == document[:, None, :]).tril()  # (B, T, T)
        shown("attention", lambda: {"shares": shares(q[0, :, :MOST_PLACES], k[0], mask[0, :MOST_PLACES])})
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])
    if here.attention is not None:
        return here.attention(q, k, v)
    shown("attention", lambda: {"shares": shares(q[0, :, :MOST_PLACES], k[0], causal=True)})
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Memory:
    """Keys and values of the tokens that a model has read of one document, so that those that follow are read alone.

    memory = Memory(context)
    with memory.of(5):
        model(tokens[:, :5])
    with memory.of(1):
        model(tokens[:, 5:6])       # what model(tokens[:, :6]) says of its last token
    """

    def __init__(self, most: int) -> None:
        self.most = most
        """Tokens that it may hold: beyond, every token has another place, and all are read anew."""
        self.length = 0
        """Tokens that were read."""
        self._kept: list[tuple[Tensor, Tensor]] = []
        """Of each block (B, H, length, D), in the order in which the blocks ask."""
        self._block = 0

    @contextmanager
    def of(self, tokens: int) -> Iterator[None]:
        """The model reads so many further tokens within the block."""
        with alone:
            self._block, here.memory = 0, self
            try:
                yield
            finally:
                here.memory = None
        self.length += tokens

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention of new tokens to all that were read; the last query is that of the last key."""
        if self._block < len(self._kept):
            keys, values = self._kept[self._block]
            k, v = torch.cat([keys, k], 2), torch.cat([values, v], 2)
            self._kept[self._block] = k, v
        else:
            self._kept.append((k, v))
        self._block += 1
        new, all_read = q.shape[2], k.shape[2]
        seen = torch.ones(new, all_read, dtype=torch.bool, device=q.device).tril(all_read - new)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


def logits(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., D) times the vocabulary's weights (V, D) -> (..., V); this rank's part (..., V/T) of a cut vocabulary.
    Padding that an engine has put behind a whole one is left out."""
    scores, shard = _scores(x, weight), shard_of(weight)
    return scores if shard is None or shard.axis.size > 1 else scores[..., : shard.full[0]]


def _scores(x: Tensor, weight: Tensor) -> Tensor:
    """With the padding."""
    return F.linear(copied(x) if shard_of(weight) else x, weight)


def token_losses(x: Tensor, weight: Tensor, targets: Tensor, chunk: int = 0) -> Tensor:
    """Cross entropy of each token, -log softmax(x W^T)[target], in fp32. x (N, D), weight (V, D), targets (N,) -> (N,).

    `chunk`: tokens whose logits exist at a time, computed again in the backward pass; 0: all N.
    """
    if not chunk or len(x) <= chunk:
        return _token_losses(x, weight, targets)
    parts = [
        checkpoint(_token_losses, some, weight, target, use_reentrant=False, preserve_rng_state=False)
        for some, target in zip(x.split(chunk), targets.split(chunk))
    ]
    return torch.cat(parts)


def _token_losses(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    scores, shard = _scores(x, weight).float(), shard_of(weight)  # (N, V)
    if shard is None:
        return F.cross_entropy(scores, targets, reduction="none")
    if shard.axis.size == 1:
        return F.cross_entropy(_NoWord.apply(scores, shard.full[0]), targets, reduction="none")
    return _CutVocabulary.apply(scores, targets, shard.full[0])


class _NoWord(torch.autograd.Function):
    """Scores (N, V + padding), the padding -inf: in place, and without a pass of its own backwards, where the gradient of a
    score of -inf is 0 already."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, vocabulary: int) -> Tensor:
        ctx.mark_dirty(scores)
        scores[:, vocabulary:] = -torch.inf
        return scores

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _CutVocabulary(torch.autograd.Function):
    """Cross entropy of scores (N, V/T) that are a rank's part of the vocabulary (Shoeybi et al. 2019, section 3)."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, targets: Tensor, vocabulary: int) -> Tensor:
        width, first = scores.shape[1], scores.shape[1] * here.tensor.index
        if first + width > vocabulary:  # the padding of the last part stands for no word
            scores = scores.clone()
            scores[:, max(0, vocabulary - first) :] = -torch.inf
        top = here.tensor.max(scores.max(1).values)  # (N,)
        shares = (scores - top[:, None]).exp()
        total = here.tensor.sum(shares.sum(1))  # (N,)
        mine = (targets >= first) & (targets < first + width)
        local = (targets - first).clamp(0, width - 1)
        at_target = scores.gather(1, local[:, None]).squeeze(1).masked_fill(~mine, 0.0)
        ctx.save_for_backward(shares.div_(total[:, None]), local, mine)
        return total.log() + top - here.tensor.sum(at_target)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        probabilities, local, mine = ctx.saved_tensors
        probabilities = probabilities.clone()
        probabilities.scatter_add_(1, local[:, None], -mine.to(probabilities.dtype)[:, None])
        return probabilities * grad[:, None], None, None
