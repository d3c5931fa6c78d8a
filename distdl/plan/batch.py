"""Batch arithmetic: the user gives the global batch; what one worker takes at a time follows.

global_batch = world x accumulate x micro_batch
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from distdl.errors import InputError, Problem


@dataclass(frozen=True)
class BatchSplit:
    """One optimizer step's samples, laid over workers and forwards."""

    world: int
    micro_batch: int
    """Samples of one forward on one worker."""
    accumulate: int
    """Forwards per worker and optimizer step."""

    @property
    def global_batch(self) -> int:
        return self.world * self.micro_batch * self.accumulate


def split_batch(global_batch: int, world: int, micro_batch: int | None, replica: int = 1) -> BatchSplit:
    """Splits a global batch evenly over `world` data-parallel workers, each of `replica` ranks that share a model.

    Raises InputError that says in words why it cannot, and what could.
    """
    if global_batch % world:
        below, above = global_batch // world * world, (global_batch // world + 1) * world
        sizes = " or ".join(str(n) for n in (below, above) if n)
        divisors = [n for n in range(1, min(global_batch, 4 * world) + 1) if global_batch % n == 0]
        near = sorted(sorted(divisors, key=lambda n: abs(n - world))[:3])
        raise InputError(
            Problem(
                f"a global batch of {global_batch} samples cannot be shared evenly by {world} workers "
                f"({global_batch} / {world} = {global_batch / world:.2f} each)",
                allowed="train.global_batch = a multiple of the number of data-parallel workers",
                fix=f"train.global_batch={sizes}, or runtime.workers={', '.join(str(n * replica) for n in near)}",
            )
        )
    share = global_batch // world
    if micro_batch is None or micro_batch >= share:  # many workers: none has so much to do at a time
        return BatchSplit(world, share, 1)
    if share % micro_batch:
        divisors = [n for n in range(1, share + 1) if share % n == 0]
        near = sorted(sorted(divisors, key=lambda n: abs(math.log(n / micro_batch)))[:3])
        raise InputError(
            Problem(
                f"each of {world} workers has {share} of the {global_batch} samples of a step, "
                f"and that is no whole number of micro-batches of {micro_batch}",
                allowed=f"train.micro_batch = a divisor of {share}",
                fix=f"train.micro_batch={', '.join(map(str, near))}, or null",
            )
        )
    return BatchSplit(world, micro_batch, share // micro_batch)
