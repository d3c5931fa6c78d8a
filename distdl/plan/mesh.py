"""The ranks laid out over the axes: pipeline, data, sequence, tensor, the last one varying fastest. Pure arithmetic.

    rank = ((pipeline * D + data) * S + sequence) * T + tensor

Ranks that talk most (tensor, then sequence) are neighbours, so that they share a node. Experts live within the data axis:
neighbouring data ranks hold different experts, and every E-th the same ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

AXES = ("pipeline", "data", "sequence", "tensor")


@dataclass(frozen=True)
class Mesh:
    """Ranks along each axis. `expert` divides `data`."""

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    sequence: int = 1
    expert: int = 1

    @property
    def world(self) -> int:
        return self.pipeline * self.data * self.sequence * self.tensor

    @property
    def model_parallel(self) -> bool:
        """Whether a sample is worked on by more than one rank, or the ranks hold different weights."""
        return max(self.pipeline, self.sequence, self.tensor, self.expert) > 1

    def place(self, rank: int) -> dict[str, int]:
        """Axis -> index of a rank."""
        place = {}
        for axis in reversed(AXES):
            rank, place[axis] = divmod(rank, getattr(self, axis))
        return {**place, "expert": place["data"] % self.expert}

    def line(self, rank: int, *axes: str) -> list[int]:
        """The ranks that differ from `rank` in the given axes only, itself among them, in order.

        `expert`: those that hold the other experts of the same set. `replica`: those that hold the same experts.
        """
        return next(line for line in self.lines(*axes) if rank in line)

    def lines(self, *axes: str) -> list[list[int]]:
        """Every such line, in the order of their first ranks."""
        lines: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.world):
            place = self.place(rank)
            same = {axis: place[axis] for axis in AXES if axis not in axes}
            if "expert" in axes:
                same["data"] = place["data"] // self.expert
            if "replica" in axes:
                same["data"] = place["expert"]
            lines.setdefault(tuple(same.values()), []).append(rank)
        return list(lines.values())

    def picture(self, stages: list[str] | None = None) -> str:
        """Which rank holds what: a line per pipeline stage and data rank. `stages`: what each stage holds, in words."""
        lines = []
        for rank in range(0, self.world, self.sequence * self.tensor):
            place = self.place(rank)
            ranks = range(rank, rank + self.sequence * self.tensor)
            parts = [f"samples {place['data'] + 1}/{self.data}"]
            if self.pipeline > 1:
                holds = f" ({stages[place['pipeline']]})" if stages else ""
                parts.insert(0, f"stage {place['pipeline'] + 1}/{self.pipeline}{holds}")
            if self.expert > 1:
                parts.append(f"experts {place['expert'] + 1}/{self.expert}")
            if len(ranks) > 1:
                cuts = [f"{n} slices of the sequence" for n in (self.sequence,) if n > 1]
                cuts += [f"{n} parts of every cut tensor" for n in (self.tensor,) if n > 1]
                parts.append(" x ".join(cuts))
            name = f"rank {rank}" if len(ranks) == 1 else f"ranks {rank}-{ranks[-1]}"
            lines.append(f"{name}: {', '.join(parts)}")
        return "\n".join(lines)


def balanced(weights: list[float], parts: int) -> list[int]:
    """Boundaries [0, ..., len(weights)] of contiguous parts, none empty, whose heaviest is as light as can be.

    Binary search on the bottleneck with a greedy filling, as in the chain partitioning of Pinar & Aykanat (2004).
    """
    assert 1 <= parts <= len(weights)

    def filled(limit: float) -> list[int] | None:
        bounds, load = [0], 0.0
        for i, weight in enumerate(weights):
            left = parts - len(bounds)  # parts that must still open after this one
            if i > bounds[-1] and left and (load + weight > limit or len(weights) - i == left):
                bounds.append(i)
                load = 0.0
            load += weight
            if load > limit:
                return None
        return [*bounds, len(weights)]

    low, high = max(weights), math.fsum(weights)
    best = filled(math.inf)  # summed in another order, `high` may be a rounding error too small
    for _ in range(60):
        middle = (low + high) / 2
        if (found := filled(middle)) is not None:
            best, high = found, middle
        else:
            low = middle
    if (found := filled(low)) is not None:
        best = found
    assert best is not None and len(best) == parts + 1
    return best
