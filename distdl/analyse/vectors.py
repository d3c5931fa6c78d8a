"""Tokens are numbers of things and have no gradient; the vectors that they become have one. Here is where a family
makes them, and how others are put in their place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distdl.learner import Learner
from distdl.learner.sequence import SequenceLearner

ENCODE = "encode"


@dataclass(frozen=True)
class Place:
    """Where the tokens of a row become vectors."""

    column: str
    """Of the tokens."""
    module: nn.Module | None
    """The embedding; None: the one-hot code of a recurrent family."""
    ids: tuple[int, ...]
    """The tokens that are read of the row, in their order: the last ones, where it has more than the model reads."""
    at: tuple[int, ...]
    """Where each of them stands in the column."""
    vectors: Tensor
    """(1, T, D)"""

    def vectors_of(self, learner: Learner, tokens: Tensor) -> Tensor:
        """(V, D): what tokens (V,) become there."""
        made: Tensor = (self.module or learner.encode)(tokens[None])  # type: ignore[operator]  # a recurrent family's
        return made.detach().reshape(len(tokens), -1).float()

    @contextlib.contextmanager
    def replaced(self, learner: Learner, vectors: Tensor) -> Iterator[None]:
        """Within it the learner reads these vectors (B, T, D) of B copies of the row, whatever its tokens are."""
        if self.module is None:
            object.__setattr__(learner, ENCODE, lambda tokens: vectors)
            try:
                yield
            finally:
                object.__delattr__(learner, ENCODE)
            return

        def instead(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            return vectors.reshape(output.shape).to(output.dtype) if output.numel() == vectors.numel() else None

        handle = self.module.register_forward_hook(instead)
        try:
            yield
        finally:
            handle.remove()


def place_of(learner: Learner, row: Mapping[str, Tensor], columns: Sequence[str]) -> Place | None:
    """Where one row's tokens, in one of these columns, become vectors; None: nowhere that can be seen from outside."""
    seen: list[tuple[nn.Module | None, Tensor, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda m, inputs, output: seen.append((m, inputs[0], output)))
        for module in learner.modules()
        if isinstance(module, nn.Embedding)
    ]
    own = learner.encode if isinstance(learner, SequenceLearner) else None
    if own is not None:

        def watched(tokens: Tensor) -> Tensor:
            vectors = own(tokens)
            seen.insert(0, (None, tokens, vectors))  # before the embedding that it may use
            return vectors

        object.__setattr__(learner, ENCODE, watched)
    try:
        learner.predict(dict(row))
    finally:
        for handle in handles:
            handle.remove()
        if own is not None:
            object.__delattr__(learner, ENCODE)
    for name in columns:
        at = _read(row, name)
        real = row[name][0].long().flatten()[at]
        for module, ids, vectors in seen:
            n = ids.numel()
            if 0 < n <= len(real) and vectors.numel() % n == 0 and torch.equal(ids.flatten().long(), real[-n:]):
                where, made = tuple(at[-n:].tolist()), vectors.detach().reshape(1, n, -1).float()
                return Place(name, module, tuple(ids.flatten().tolist()), where, made)
    return None


def _read(row: Mapping[str, Tensor], name: str) -> Tensor:
    """(T,) places of the tokens in a column of one row, without what fills it up: of a tree its words, which stand at
    the height 0."""
    places = torch.arange(row[name][0].numel(), device=row[name].device)
    if "length" in row:
        places = places[: max(1, int(row["length"][0]))]
    height = row.get("height")
    return places[height[0].flatten() == 0] if height is not None and height[0].numel() == len(places) else places
