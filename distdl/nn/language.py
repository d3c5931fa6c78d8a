"""What language models share: places of tokens, causal attention, and the loss over a vocabulary.

Each is the plain thing on one device, and exact where the sequence or the vocabulary is cut (see `layout/axes.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from distdl.layout.axes import copied, here, shard_of
from distdl.nn.attention import shares
from distdl.nn.watch import MOST_PLACES, shown


def places(tokens: Tensor) -> Tensor:
    """(T,) position in the sequence of each of this rank's tokens (B, T)."""
    n = tokens.shape[1]
    return torch.arange(n * here.sequence.index, n * (here.sequence.index + 1), device=tokens.device)


def begins_of(documents: Tensor) -> Tensor:
    """Numbers of the documents that share a row (B, T) -> 1 where one begins, 0 elsewhere, int64 (B, T)."""
    numbers = documents.long()
    return F.pad((numbers[:, 1:] != numbers[:, :-1]).long(), (1, 0), value=1)


def places_within(begins: Tensor) -> Tensor:
    """(B, T) position of each token in its document."""
    place = torch.arange(begins.shape[1], device=begins.device)
    return place - (place * begins.bool()).cummax(1).values


def attend(q: Tensor, k: Tensor, v: Tensor, begins: Tensor | None = None) -> Tensor:
    """Causal scaled dot-product attention (Vaswani et al. 2017, eq. 1). (B, H, T, D) each -> (B, H, T, D).

    `begins` (B, T): where a document begins. A token then attends to those of its own document only.
    """
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


def logits(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., D) times the vocabulary's weights (V, D) -> (..., V); this rank's part (..., V/T) of a cut vocabulary."""
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
    scores, shard = logits(x, weight).float(), shard_of(weight)  # (N, V)
    if shard is None:
        return F.cross_entropy(scores, targets, reduction="none")
    return _CutVocabulary.apply(scores, targets, shard.full[0])


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
