"""Rows of all ranks together, for losses that compare the samples of a batch with each other."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce


def gathered(x: Tensor) -> Tensor:
    """(B, ...) -> (B R, ...): the rows of all R ranks, in their order; a gradient flows back to the rank of its row.

    A sum of zeros but for the own rows: unlike all_gather, its gradient is the sum over ranks on every backend.
    """
    n = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if n == 1:
        return x
    rows = [x if other == rank() else torch.zeros_like(x) for other in range(n)]
    return all_reduce(torch.cat(rows))


def rank() -> int:
    """This process's place among the ranks."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
