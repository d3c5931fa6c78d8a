"""Exact causal attention over a sequence whose slices lie on the ranks of an axis.

Slices are contiguous: rank r of S holds tokens r*T/S to (r+1)*T/S of every sample, and everything but attention works
on them alone. Two ways to attend, equal up to rounding:

    ulysses   an all-to-all trades the slices of all heads for whole sequences of H/S heads, and back (Jacobs et al. 2023).
              DeepSpeed has it; `engine/deepspeed.py` puts it in. Needs H/S whole.
    ring      keys and values go round the ranks while the queries stay, and a softmax is updated with each slice that
              passes (Liu et al. 2023; the update is Milakov & Gimelshein's of 2018). Any number of heads.

The ring does not balance its load: the last rank attends to S slices of keys and the first to its own only, so that a pass
takes as long as S slices, where interleaved ones (striped attention, Brandon et al. 2023; zig-zag) take about half of that.
Each slice's part is a fused kernel, flash attention's (Dao et al. 2022), which tells the softmax's denominator, too: on
CPUs, and on GPUs in half precision with heads whose width is a multiple of 8. Elsewhere scores are plain products in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distdl.layout.axes import Axis
from distdl.parallel.flash import flash_of

QUERIES = 1024
"""Queries whose scores are held at a time, (B, H, QUERIES, T/S) in fp32: memory stays linear in the slice."""


def ring(axis: Axis) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    """Ring attention along an axis: (B, H, T/S, D) queries, keys and values, and the tokens that one looks back on, itself
    among them (0: all) -> (B, H, T/S, D)."""

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int = 0) -> Tensor:
        return _Ring.apply(q, k, v, axis, window)

    return attend


class _Ring(torch.autograd.Function):
    """Keeps q, k, v, the output and the logarithm of the softmax's denominator; both passes send k and v round anew."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, axis: Axis, window: int) -> Tensor:
        out = torch.zeros_like(q, dtype=torch.float32, memory_format=torch.contiguous_format)
        lse = out.new_full(q.shape[:-1], -torch.inf)  # (B, H, T/S)
        with torch.autocast(q.device.type, enabled=False):
            for origin, kv in _round(torch.stack([k, v]), axis):
                behind = (axis.index - origin) * q.shape[2]
                if not _seen(behind, q, window):
                    continue
                if flash_of(q) and not window:
                    _add_slice_by_flash(q, kv, out, lse, causal=behind == 0)
                else:
                    _add_slice(q, kv, out, lse, behind=behind, window=window)
        out = out.to(q.dtype)
        ctx.axis, ctx.window = axis, window
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """The gradient of a slice's keys and values follows them round, each rank adding its part, until it is home."""
        axis: Axis = ctx.axis
        q, k, v, out, lse = ctx.saved_tensors
        delta = (grad.float() * out).sum(
            -1, keepdim=True
        )  # (B, H, T/S, 1), equal to sum_j p_ij dp_ij (Dao et al. 2022, B.2)
        d_q = torch.zeros_like(q, dtype=torch.float32, memory_format=torch.contiguous_format)
        moving, window = None, ctx.window
        flash = None if window else flash_of(q)
        with torch.autocast(q.device.type, enabled=False):
            for origin, kv in _round(torch.stack([k, v]), axis):
                d_kv = moving.arrived() if moving else d_q.new_zeros(kv.shape)
                behind = (axis.index - origin) * q.shape[2]
                if _seen(behind, q, window):
                    if flash:
                        parts = flash.backward(grad, q, kv[0], kv[1], out, lse, behind == 0)
                        for total, part in zip((d_q, *d_kv), parts):
                            total += part
                    else:
                        _add_gradients(q, kv, grad.float(), delta, lse, d_q, d_kv, behind=behind, window=window)
                moving = _Passing(d_kv, axis)
        assert moving is not None
        d_k, d_v = moving.arrived().to(k.dtype)
        return d_q.to(q.dtype), d_k, d_v, None, None


def _seen(behind: int, q: Tensor, window: int) -> bool:
    """Whether queries see anything of a slice as long as theirs that begins so many tokens before it."""
    return behind >= 0 and (not window or behind - q.shape[2] + 1 < window)


def _add_slice(q: Tensor, kv: Tensor, out: Tensor, lse: Tensor, *, behind: int, window: int) -> None:
    """Online softmax: out (B, H, t, D) and lse (B, H, t) of the keys so far, made those of this slice's keys too."""
    q, (k, v) = q.float(), kv.float()
    for rows in _rows(q):
        scores = _scores(q, k, rows, behind, window)
        total = torch.logaddexp(lse[..., rows], scores.logsumexp(-1))
        out[..., rows, :] *= (lse[..., rows] - total).exp_().unsqueeze(-1)
        out[..., rows, :] += scores.sub_(total.unsqueeze(-1)).exp_() @ v
        lse[..., rows] = total


def _add_slice_by_flash(q: Tensor, kv: Tensor, out: Tensor, lse: Tensor, *, causal: bool) -> None:
    """The same: what the kernel makes of this slice alone and what was there, by their shares of the denominator."""
    flash = flash_of(q)
    assert flash is not None
    own, own_lse = flash.forward(q, kv[0], kv[1], causal)
    total = torch.logaddexp(lse, own_lse)
    out.mul_((lse - total).exp_().unsqueeze(-1)).addcmul_(own.to(out.dtype), (own_lse - total).exp_().unsqueeze(-1))
    lse.copy_(total)


def _add_gradients(
    q: Tensor,
    kv: Tensor,
    grad: Tensor,
    delta: Tensor,
    lse: Tensor,
    d_q: Tensor,
    d_kv: Tensor,
    *,
    behind: int,
    window: int,
) -> None:
    """Adds what one slice of keys gives to d_q, and all of this rank's queries to that slice's d_kv (2, B, H, t, D)."""
    q, (k, v) = q.float(), kv.float()
    for rows in _rows(q):
        p = _scores(q, k, rows, behind, window).sub_(lse[..., rows].unsqueeze(-1)).exp_()  # (B, H, n, t)
        d_out = grad[..., rows, :]
        d_scores = (d_out @ v.mT).sub_(delta[..., rows, :]).mul_(p).mul_(q.shape[-1] ** -0.5)
        d_q[..., rows, :] += d_scores @ k
        d_kv[0] += d_scores.mT @ q[..., rows, :]
        d_kv[1] += p.mT @ d_out


def _scores(q: Tensor, k: Tensor, rows: slice, behind: int, window: int) -> Tensor:
    """q k^T / sqrt(D) of some queries, (B, H, n, t); -inf where the key comes after the query, or before its window. The
    slice of keys begins so many tokens `behind` that of queries."""
    scores = (q[..., rows, :] @ k.mT).mul_(q.shape[-1] ** -0.5)
    every = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device)
    if behind == 0:
        scores.masked_fill_(every.triu(rows.start + 1), -torch.inf)
    if window:
        scores.masked_fill_(every.tril(rows.start + behind - window), -torch.inf)
    return scores


def _rows(q: Tensor) -> Iterator[slice]:
    for first in range(0, q.shape[-2], QUERIES):
        yield slice(first, min(first + QUERIES, q.shape[-2]))


class _Passing:
    """A tensor on its way to the next rank of the ring, while the previous rank's comes in."""

    def __init__(self, tensor: Tensor, axis: Axis) -> None:
        self.sent, self.received = tensor, torch.empty_like(tensor)  # both must live until the transfer is over
        following, previous = (axis.rank((axis.index + step) % axis.size) for step in (1, -1))
        send = dist.P2POp(dist.isend, self.sent, following, axis.group)
        receive = dist.P2POp(dist.irecv, self.received, previous, axis.group)
        self.works = dist.batch_isend_irecv([send, receive])

    def arrived(self) -> Tensor:
        """The previous rank's tensor."""
        for work in self.works:
            work.wait()
        return self.received


def _round(tensor: Tensor, axis: Axis) -> Iterator[tuple[int, Tensor]]:
    """(rank it comes from, its tensor) of every rank along the axis, this one first; the next is fetched meanwhile."""
    for step in range(axis.size):
        moving = _Passing(tensor, axis) if step < axis.size - 1 else None
        yield (axis.index - step) % axis.size, tensor
        if moving:
            tensor = moving.arrived()
