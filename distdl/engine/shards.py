"""The flat tensors that DeepSpeed's ZeRO optimizers step on a rank, the states beside them, and which parameters' elements
lie in them. Some live on an NVMe disk, and are in memory only while they are at hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Held(NamedTuple):
    """A run of a parameter's elements, and where the tensor that an optimizer steps has them; both are seen as flat."""

    name: str
    first: int
    """Place in the parameter, or in this rank's part of it where an axis cuts it."""
    size: int
    tensor: Tensor
    begin: int
    """Place in `tensor`."""


def states(optimizers: Iterable[torch.optim.Optimizer], owner: Tensor) -> dict[str, Tensor]:
    """What torch optimizers keep of a tensor that one of them steps, and that has a number for each of its elements."""
    found: dict[str, Any] = next((o.state[owner] for o in optimizers if owner in o.state), {})
    return {
        key: value
        for key, value in sorted(found.items())
        if isinstance(value, Tensor) and value.shape == owner.shape and key != "step"
    }


@contextlib.contextmanager
def at_hand(optimizer: Any, group: int, keep: bool) -> Iterator[None]:
    """Within it a ZeRO-3 group's shard and state are in memory, where they live on a disk; then they go back there, or,
    without `keep`, are let go of."""
    on_disk = hasattr(optimizer, "swap_optimizer") and optimizer._swappable_optimizer_subgroup(group)
    if on_disk:
        optimizer._optimizer_states_and_gradient_swap_in(group)
    yield
    if on_disk and keep:
        optimizer._optimizer_states_and_gradient_swap_out(group)
    elif on_disk:
        optimizer._release_swap_buffers(group)


def shards(
    optimizer: Any, steppers: Sequence[torch.optim.Optimizer], flats: Sequence[Tensor], held: Iterable[Held], keep: bool
) -> Iterator[tuple[Tensor, dict[str, Tensor], list[Held]]]:
    """Each of a DeepSpeed optimizer's flat tensors, its states as `optimizer/KEY`, and what lies in it. One from a disk is
    in memory until the next one is asked for; `keep`: with what has been changed in it."""
    runs: dict[int, list[Held]] = {}
    for run in held:
        runs.setdefault(id(run.tensor), []).append(run)
    for index, flat in enumerate(flats):
        if id(flat) in runs:
            with at_hand(optimizer, index, keep):
                state = {f"optimizer/{key}": value for key, value in states(steppers, flat).items()}
                yield flat, state, runs[id(flat)]
