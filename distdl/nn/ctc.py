"""Connectionist temporal classification (Graves et al. 2006): strings from frames, without saying where a label stands.

A softmax over K labels and a blank, the last, at every frame; a path becomes a string by merging repeats and then dropping
blanks; the probability of a string is the sum over all paths that become it.
"""

from __future__ import annotations

import math

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
    B, T, K = log_y.shape
    z = label.new_full((B, 2 * label.shape[1] + 1), K - 1)  # (B, S) blanks,
    z[:, 1::2] = label  # with the labels between them
    emit = log_y.gather(2, z[:, None].expand(B, T, -1))  # (B, T, S)
    same = F.pad(z[:, 2:] == z[:, :-2], (2, 0), value=True)  # (B, S): blanks, and labels that only a blank can part
    s = torch.arange(z.shape[1], device=z.device)
    alpha = emit[:, 0].masked_fill(s > 1, NEVER)  # (B, S): a path begins with the blank or the first label
    for t in range(1, T):
        one = F.pad(alpha[:, :-1], (1, 0), value=NEVER)
        two = F.pad(alpha[:, :-2], (2, 0), value=NEVER).masked_fill(same, NEVER)
        after = emit[:, t] + torch.stack([alpha, one, two]).logsumexp(0)
        alpha = torch.where((t < frames)[:, None], after, alpha)
    end = 2 * length[:, None]  # a path ends with the last label or the blank behind it
    losses = -alpha.masked_fill((s != end) & (s != end - 1), NEVER).logsumexp(1)
    return losses.masked_fill(losses > -NEVER / 2, math.inf)


def by_kernel(log_y: Tensor, frames: Tensor, label: Tensor, length: Tensor) -> Tensor:
    """The same by torch's own kernel: a launch and not eight for every frame. On GPUs its sums are not deterministic."""
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
