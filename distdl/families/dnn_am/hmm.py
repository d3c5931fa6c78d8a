"""Hidden Markov models in log space: the likeliest path (Viterbi 1967), and the left-to-right models of words."""

from __future__ import annotations

import torch
from torch import Tensor

from distdl.nn.recurrence import over_time

NEVER = -1e30  # ln 0, finite: a sum of nothing but -inf cannot be compared


def left_to_right(states: int) -> tuple[Tensor, Tensor, Tensor]:
    """A word's states, passed one after the other, each for one frame or more: ln of the probabilities of the first
    state (S,), of state j after state i (S, S), and of the last state (S,)."""
    state = torch.arange(states)
    start = torch.where(state == 0, 0.0, NEVER)
    after = state - state[:, None]  # (S, S)
    step = torch.full((states, states), NEVER)
    step[(after == 0) | (after == 1)] = torch.tensor(0.5).log()
    return start, step, torch.where(state == states - 1, 0.0, NEVER)


def viterbi(
    start: Tensor, step: Tensor, end: Tensor, emit: Tensor, frames: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The likeliest path and ln of its joint probability with what is seen.

    delta_1 = start + emit_1,  delta_t(j) = emit_t(j) + max_i delta_{t-1}(i) + step(i, j),  score = max_i (delta_T + end)(i)

    start, end (S,); step (S, S); emit (..., T, S), of which the first `frames` (...,) count.
    Returns scores (...,) and states (..., T), 0 behind the end.
    """
    *shape, T, S = emit.shape
    emit = emit.reshape(-1, T, S)  # (N, T, S)
    lengths = torch.full((emit.shape[0],), T) if frames is None else frames.reshape(-1)
    lengths = lengths.to(emit.device)
    delta = start + emit[:, 0]  # (N, S)
    came_from = [torch.arange(S, device=emit.device).expand(emit.shape[0], S)]  # at t: the state at t - 1
    for t in range(1, T):
        best, source = (delta[:, :, None] + step).max(1)  # (N, S) each
        runs = (t < lengths)[:, None]
        delta = torch.where(runs, best + emit[:, t], delta)
        came_from.append(torch.where(runs, source, came_from[0]))  # behind the end: stay
    score, state = (delta + end).max(1)  # (N,)
    path = [state]
    for source in reversed(came_from[1:]):
        path.append(source.gather(1, path[-1][:, None]).squeeze(1))
    states = torch.stack(path[::-1], 1)  # (N, T)
    states = states * (torch.arange(T, device=emit.device) < lengths[:, None])
    return score.reshape(shape), states.reshape(*shape, T)


def likeliest(start: Tensor, step: Tensor, end: Tensor, emit: Tensor, frames: Tensor) -> Tensor:
    """The scores alone of `viterbi`, (...,)."""
    *shape, T, S = emit.shape
    emit, lengths = emit.reshape(-1, T, S), frames.reshape(-1)  # (N, T, S), (N,)

    def go(state: tuple[Tensor, Tensor], now: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        delta, t = state
        best = (delta[:, :, None] + step).amax(1)
        delta = torch.where((t < lengths)[:, None], best + now, delta)
        return (delta, t + 1), delta

    first = (start + emit[:, 0], torch.ones_like(lengths[:1]))
    _, (delta, _) = over_time(go, first, emit[:, 1:])
    return (delta + end).amax(1).reshape(shape)


def uniform_path(frames: Tensor, steps: int, states: int) -> Tensor:
    """A left-to-right path that stays equally long in every state, (B, steps): where training begins. frames (B,)."""
    t = torch.arange(steps, device=frames.device)
    return (t * states // frames[:, None].clamp(min=1)).clamp(max=states - 1)
