"""`train.ema`: a moving average of the weights (Polyak & Juditsky 1992), which the run is judged and later asked by.

    a = d a + (1 - d) w   after step n,     d = min(decay, (1 + n) / (10 + n))

so that the fresh weights are soon forgotten. It is kept in fp32, on each rank of what that rank has of each weight.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

Named = Iterable[tuple[str, str, nn.Parameter]]
"""Player, name and parameter."""


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


def averages(named: Named, decay: float) -> dict[str, Average]:
    """By player, of what is trained; {} where `decay` is 0: none is kept."""
    trained: dict[str, dict[str, nn.Parameter]] = {}
    for player, name, parameter in named if decay else ():
        if parameter.requires_grad:
            trained.setdefault(player, {})[name] = parameter
    return {player: Average(parameters, decay) for player, parameters in trained.items()}


@contextlib.contextmanager
def in_place(kept: Mapping[str, Average]) -> Iterator[None]:
    """Within it the weights are their averages, where there are such."""
    with contextlib.ExitStack() as stack:
        for average in kept.values():
            stack.enter_context(average.in_place())
        yield


def restore(kept: Mapping[str, Average], read: Callable[[str, nn.Parameter], Tensor], names: Collection[str]) -> None:
    """Puts back what was saved under `names`; what was saved without begins with the weights."""
    for average in kept.values():
        for name, value in average.values.items():
            if f"averages/{name}" in names:
                value.copy_(read(f"averages/{name}", average.parameters[name]))
