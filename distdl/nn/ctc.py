"""Connectionist temporal classification (Graves et al. 2006): strings from frames, without saying where a label stands.

A softmax over K labels and a blank, the last, at every frame; a path becomes a string by merging repeats and then dropping
blanks; the probability of a string is the sum over all paths that become it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distdl.columns import Column

NEVER = -1e30  # ln 0, finite: the gradient of a sum of nothing but -inf is not a number


def strings(classes: int) -> dict[str, Column]:
    """The columns of the strings that are learned: the K labels, of which the blank, number K, is none."""
    return {
        "label": Column.label(classes, (None,), missing=None, meaning="label (the blank is none of them)"),
        "length": Column.whole(0, None, meaning="length of a string", within="label"),
    }


def ctc(log_y: Tensor, frames: Tensor, label: Tensor, length: Tensor) -> Tensor:
    """-ln p(z | x), (B,): log-probabilities (B, T, K + 1), blank last, of which `frames` (B,) count; z is the first
    `length` (B,) of `label` (B, L). Infinite where the frames are too few for the string, which the guard stops at."""
    if log_y.is_cuda and not torch.are_deterministic_algorithms_enabled():
        return by_kernel(log_y, frames, label, length)
    losses: Tensor = _ByTrellis.apply(log_y, frames, label, length)
    return losses


class _ByTrellis(torch.autograd.Function):
    """The paths' sums and, where they are asked for, the losses' gradients, which are the paths' shares: four kernels a
    frame in all. The sums from the end are those of the string and the frames turned around, in the same recursion."""

    @staticmethod
    def forward(ctx: Any, log_y: Tensor, frames: Tensor, label: Tensor, length: Tensor) -> Tensor:
        B, T, K = log_y.shape
        z = label.new_full((B, 2 * label.shape[1] + 1), K - 1, dtype=torch.long)  # (B, S) blanks,
        z[:, 1::2] = label  # with the labels between them
        S = z.shape[1]
        # In fp64, as sums of hundreds of logarithms are subtracted from each other: of a small array, once a frame.
        emit = log_y.double().gather(2, z[:, None].expand(B, T, S))  # (B, T, S)
        end = 2 * length.long()[:, None]  # a path ends with the last label or the blank behind it
        t, s = torch.arange(T, device=z.device), torch.arange(S, device=z.device)
        turned = (frames.long()[:, None] - 1 - t).clamp(min=0), (end - s).clamp(min=0)  # (B, T), (B, S)
        wanted = ctx.needs_input_grad[0]
        if wanted:
            sums = _sums(torch.cat([emit, _turn(emit, *turned)]), torch.cat([z, z.gather(1, turned[1])]))
        else:
            sums = _sums(emit, z)
        last = sums[:B].gather(1, turned[0][:, :1, None].expand(B, 1, S))[:, 0]
        log_p = last.masked_fill((s != end) & (s != end - 1), NEVER).logsumexp(1)
        never = log_p < NEVER / 2
        if wanted:
            shares = (sums[:B] + _turn(sums[B:], *turned) - emit - log_p[:, None, None]).exp()
            counts = (t < frames[:, None])[:, :, None] & (s <= end)[:, None] & ~never[:, None, None]
            of_state = (z[:, :, None] == torch.arange(K, device=z.device)).double()  # (B, S, K)
            ctx.save_for_backward((-shares.masked_fill(~counts, 0) @ of_state).to(log_y.dtype))
        return -log_p.masked_fill(never, -math.inf).to(torch.promote_types(log_y.dtype, torch.float32))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *of_losses: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return of_losses[0][:, None, None] * gradient, None, None, None


def _sums(emit: Tensor, z: Tensor) -> Tensor:
    """ln of the sums over all beginnings of a path, (B, T, S): those that are in state s of z at frame t."""
    B, T, S = emit.shape
    emit = emit.transpose(0, 1).contiguous()  # (T, B, S)
    # (B, S): no way leads over a label from blank to blank, nor over the blank between two labels that are the same
    skip = F.pad(z[:, 2:] == z[:, :-2], (2, 0), value=True).double() * NEVER
    sums = emit.new_full((T, B, S + 2), NEVER)  # with two states before the first, where no path is
    sums[0, :, 2:4] = emit[0, :, :2]  # a path begins with the blank or the first label
    for t in range(1, T):
        before = sums[t - 1]
        stay_or_one = torch.logaddexp(before[:, 2:], before[:, 1:-1])
        any_way = torch.logaddexp(stay_or_one, before[:, :-2] + skip)
        torch.add(any_way, emit[t], out=sums[t, :, 2:])
    return sums[:, :, 2:].transpose(0, 1)


def _turn(values: Tensor, frame: Tensor, state: Tensor) -> Tensor:
    """Values (B, T, S) of frames (B, T) and states (B, S)."""
    values = values.gather(1, frame[:, :, None].expand(values.shape))
    return values.gather(2, state[:, None].expand(values.shape))


def by_kernel(log_y: Tensor, frames: Tensor, label: Tensor, length: Tensor) -> Tensor:
    """The same by torch's own kernel: two launches, whatever the frames. On GPUs its sums are not deterministic."""
    log_y = log_y.transpose(0, 1).float()
    return F.ctc_loss(log_y, label.long(), frames, length, blank=log_y.shape[-1] - 1, reduction="none")


def best_path(log_y: Tensor, frames: Tensor) -> list[list[int]]:
    """The string of the likeliest path of each sample: merge repeats, then drop blanks."""
    return [row[kept].tolist() for row, kept in zip(*_kept(log_y, frames), strict=True)]


def _kept(log_y: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest label or blank of each frame (B, T), and which of them are of the string."""
    path = log_y.argmax(-1)  # (B, T)
    new = F.pad(path[:, 1:] != path[:, :-1], (1, 0), value=True)
    t = torch.arange(path.shape[1], device=path.device)
    return path, new & (path != log_y.shape[-1] - 1) & (t < frames[:, None])


def heard(log_y: Tensor, frames: Tensor) -> Tensor:
    """The same as numbers in rows, -1 behind the end of each: (B, longest), in a graph (B, T)."""
    path, keep = _kept(log_y, frames)
    T = path.shape[1]
    place = torch.where(keep, keep.cumsum(1) - 1, T)  # what is dropped goes behind all
    rows = path.new_full((path.shape[0], T + 1), -1).scatter(1, place, path)[:, :T]
    return rows if torch.compiler.is_exporting() else rows[:, : int(keep.sum(1).max())]


def prefix_beam(log_y: Tensor, beam: int) -> tuple[list[int], float]:
    """The likeliest string of one sample (T, K + 1), and ln of its probability: after each frame the `beam` likeliest
    beginnings of a string go on (Hannun et al. 2014, arXiv:1408.2873). Exact where `beam` holds all of them."""
    beams: dict[tuple[int, ...], tuple[float, float]] = {
        (): (0.0, NEVER)
    }  # ln p of the paths that end in a blank, a label
    for row in log_y.tolist():
        ahead: dict[tuple[int, ...], tuple[float, float]] = {}
        for prefix, (blank, label) in beams.items():
            both = _add(blank, label)
            was = ahead.get(prefix, (NEVER, NEVER))
            again = label + row[prefix[-1]] if prefix else NEVER
            ahead[prefix] = (_add(was[0], both + row[-1]), _add(was[1], again))
            for k, log_p in enumerate(row[:-1]):
                longer = (*prefix, k)
                was = ahead.get(longer, (NEVER, NEVER))
                before = blank if prefix and k == prefix[-1] else both  # only a blank parts two equal labels
                ahead[longer] = (was[0], _add(was[1], before + log_p))
        kept = sorted(ahead, key=lambda prefix: -_add(*ahead[prefix]))[:beam]
        beams = {prefix: ahead[prefix] for prefix in kept}
    best = next(iter(beams))
    return list(best), _add(*beams[best])


def _add(a: float, b: float) -> float:
    """ln(e^a + e^b)."""
    high, low = max(a, b), min(a, b)
    return high + math.log1p(math.exp(low - high))


def edit_distance(a: list[int], b: list[int]) -> int:
    """Least number of insertions, deletions and substitutions that turn a into b (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]
