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


def attend(q: Tensor, k: Tensor, v: Tensor, begins: Tensor | None = None, window: int = 0) -> Tensor:
    """Causal scaled dot-product attention (Vaswani et al. 2017, eq. 1): q (B, H, T, D), k and v (B, K, T, D) -> like q.

    Keys that have fewer heads than queries are each that of H/K neighbouring ones (Ainslie et al. 2023).
    `begins` (B, T): where a document begins. A token then attends to those of its own document only.
    `window`: the last tokens, itself among them, that a token attends to (Beltagy et al. 2020); 0: all before it.
    """
    if here.memory is not None:
        return here.memory.attend(q, k, v, window)
    k, v = of_each_query(k, q), of_each_query(v, q)
    if here.attention is not None:
        assert begins is None  # the plan refuses slices of rows with borders
        return here.attention(q, k, v, window)
    return causal(q, k, v, window, begins)


def causal(q: Tensor, k: Tensor, v: Tensor, window: int = 0, begins: Tensor | None = None) -> Tensor:
    """That of whole sequences: (B, H, T, D) each."""
    if begins is None and not window:
        shown("attention", lambda: {"shares": shares(q[0, :, :MOST_PLACES], k[0], causal=True)})
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    mask = _seen(q.shape[2], k.shape[2], window, q.device)[None]  # (1, T, T)
    if begins is not None:
        document = begins.long().cumsum(1)  # (B, T)
        mask = mask & (document[:, :, None] == document[:, None, :])  # (B, T, T)
    shown("attention", lambda: {"shares": shares(q[0, :, :MOST_PLACES], k[0], mask[0, :MOST_PLACES])})
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])


def of_each_query(keys: Tensor, q: Tensor) -> Tensor:
    """Keys or values (B, K, S, D) for the heads of queries (B, H, T, D): (B, H, S, D)."""
    return keys if keys.shape[1] == q.shape[1] else keys.repeat_interleave(q.shape[1] // keys.shape[1], 1)


def _seen(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """bool (T, S): which keys each query attends to, where the last query is that of the last key."""
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return seen.triu(keys - queries - window + 1) if window else seen


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
        """Of each block (B, K, length, D), in the order in which the blocks ask."""
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

    def attend(self, q: Tensor, k: Tensor, v: Tensor, window: int = 0) -> Tensor:
        """Causal attention of new tokens to all that were read, or the last of them."""
        if self._block < len(self._kept):
            keys, values = self._kept[self._block]
            k, v = torch.cat([keys, k], 2), torch.cat([values, v], 2)
            self._kept[self._block] = k, v
        else:
            self._kept.append((k, v))
        self._block += 1
        seen = _seen(q.shape[2], k.shape[2], window, q.device)
        return F.scaled_dot_product_attention(q, of_each_query(k, q), of_each_query(v, q), attn_mask=seen)


def logits(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., D) times the vocabulary's weights (V, D) -> (..., V); this rank's part (..., V/T) of a cut vocabulary.
    Padding that an engine has put behind a whole one is left out."""
    scores, shard = _scores(x, weight), shard_of(weight)
    return scores if shard is None or shard.axis.size > 1 else scores[..., : shard.full[0]]


def _scores(x: Tensor, weight: Tensor) -> Tensor:
    """With the padding."""
    return F.linear(copied(x) if shard_of(weight) else x, weight)


def token_losses(x: Tensor, weight: Tensor, targets: Tensor, chunk: int = 0, z: float = 0.0) -> Tensor:
    """Cross entropy of each token, -log softmax(x W^T)[target], in fp32. x (N, D), weight (V, D), targets (N,) -> (N,).

    `chunk`: tokens whose logits exist at a time, computed again in the backward pass; 0: all N.
    `z`: times the square of log sum exp x W^T is added, which keeps the logits from growing (z-loss).
    """
    if not chunk or len(x) <= chunk:
        return _token_losses(x, weight, targets, z)
    parts = [
        checkpoint(_token_losses, some, weight, target, z, use_reentrant=False, preserve_rng_state=False)
        for some, target in zip(x.split(chunk), targets.split(chunk))
    ]
    return torch.cat(parts)


def _token_losses(x: Tensor, weight: Tensor, targets: Tensor, z: float) -> Tensor:
    scores, shard = _scores(x, weight).float(), shard_of(weight)  # (N, V)
    if shard is not None and shard.axis.size > 1:
        losses, denominator = _CutVocabulary.apply(scores, targets, shard.full[0])
        return losses + z * denominator.square() if z else losses
    if shard is not None:
        scores = _NoWord.apply(scores, shard.full[0])
    losses = F.cross_entropy(scores, targets, reduction="none")
    return losses + z * scores.logsumexp(1).square() if z else losses


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
    """Cross entropy of scores (N, V/T) that are a rank's part of the vocabulary (Shoeybi et al. 2019, section 3), and the
    logarithm of the softmax's denominator; (N,) each."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, targets: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
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
        ctx.set_materialize_grads(False)
        denominator = total.log() + top
        return denominator - here.tensor.sum(at_target), denominator

    @staticmethod
    def backward(ctx: Any, grad: Tensor, of_denominator: Tensor | None) -> tuple[Tensor, None, None]:
        probabilities, local, mine = ctx.saved_tensors
        learned = probabilities.clone()
        learned.scatter_add_(1, local[:, None], -mine.to(probabilities.dtype)[:, None])
        learned = learned * grad[:, None]
        if of_denominator is not None:
            learned = learned + probabilities * of_denominator[:, None]
        return learned, None, None
