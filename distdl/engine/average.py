"""`train.ema`: a moving average of the weights (Polyak & Juditsky 1992), which the run is judged and later asked by.

    a = d a + (1 - d) w   after step n,     d = min(decay, (1 + n) / (10 + n))

so that the fresh weights are soon forgotten. It is kept in fp32, on each rank of what that rank has of each weight.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Average:
    """The average of some parameters, by their names."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = dict(parameters), decay
        self.values: dict[str, Tensor] = {name: p.detach().float().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """After the parameters have taken step number `step` (1-based)."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        now = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.values.values()), now, share)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the parameters are their averages; then they are what they were, to the bit."""
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._put(self.values)
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, p in self.parameters.items():  # into their own memory, of which an engine may hold views
            p.copy_(values[name])
