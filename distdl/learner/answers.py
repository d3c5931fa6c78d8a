"""What a family answers. `Learner.predict` gives tensors by name, whose first dimension is the rows; `tells` says of each
what it means, so that whoever shows it (a table, a picture, a server) knows how without knowing the family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal[
    "class",
    "probabilities",
    "scores",
    "chances",
    "values",
    "picture",
    "mask",
    "tokens",
    "embedding",
    "cell",
    "boxes",
    "action",
    "nodes",
]
KINDS: dict[str, str] = {
    "class": "the number of a class (B,), or of each thing of a row (B, ...); -1: of nothing",
    "probabilities": "of each class (B, ..., K), which add up to 1",
    "scores": "of each class (B, ..., K): the larger the likelier, and no more",
    "chances": "of each of K things that do not exclude each other (B, K)",
    "values": "numbers (B, ...), in the units of the file where there was one",
    "picture": "pixels from 0 to 1 (B, C, H, W)",
    "mask": "the class of each pixel (B, H, W)",
    "tokens": "numbers of tokens, words or labels in a row (B, T); -1: there is none",
    "embedding": "a vector that stands for the row (B, D)",
    "cell": "a place on a map, row and column (B, 2)",
    "boxes": "top, left, bottom and right in pixels (B, N, 4)",
    "action": "what to do: the number of an action, or how much of it (B,)",
    "nodes": "of each node of a tree (B, M, ...), in the order of the columns `word` and `height`; -1: of no node",
}
"""Kind -> what the tensor holds."""

NOTHING = -1
"""Number of a class or token where there is none."""


@dataclass(frozen=True)
class Answer:
    """What one tensor of `Learner.predict` means."""

    kind: Kind
    meaning: str
    """What it is, in words."""
    of: str = ""
    """Column of the data set whose classes, words or units it speaks; '': it has none."""
    first: int = 0
    """Number in that column of the first of K things."""


CLASSES = {
    "class": Answer("class", "the likeliest class", of="label"),
    "probabilities": Answer("probabilities", "of every class", of="label"),
}
"""What most classifiers tell."""
SCORES = {"class": CLASSES["class"], "scores": Answer("scores", "of every class", of="label")}
"""What those tell whose outputs are no probabilities."""
NEXT_TOKEN = {"next": Answer("probabilities", "of the token that comes next", of="tokens")}
"""What language models tell."""
HEARD = {"string": Answer("tokens", "the likeliest string of labels", of="label")}
"""What those tell who hear or read strings."""
EMBEDDING = Answer("embedding", "what the last layer sees of the row")


def of_logits(logits: Tensor) -> dict[str, Tensor]:
    """`CLASSES` from (B, K)."""
    return {"class": logits.argmax(-1), "probabilities": logits.float().softmax(-1)}


def of_scores(scores: Tensor) -> dict[str, Tensor]:
    """`SCORES` from (B, K)."""
    return {"class": scores.argmax(-1), "scores": scores.float()}


def in_rows(found: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """Numbers of each row as one tensor (B, T) on the device of `like`, with NOTHING behind the end of each."""
    width = max(map(len, found), default=0)
    rows = [[*row, *[NOTHING] * (width - len(row))] for row in found]
    return torch.tensor(rows, dtype=torch.long, device=like.device).view(len(found), width)


def last_real(states: Tensor, length: Tensor | None) -> Tensor:
    """(B, T, ...) -> (B, ...): of the last step, or of the last of the first `length` (B,) where rows are filled up."""
    if length is None:
        return states[:, -1]
    return states[torch.arange(states.shape[0], device=states.device), length.long() - 1]


def window(tokens: Tensor, length: Tensor | None, most: int) -> tuple[Tensor, Tensor | None]:
    """The last `most` of the tokens of each row (B, T), of which `length` (B,) are real; and how many of those are."""
    if tokens.shape[1] <= most:
        return tokens, length
    if length is None:
        return tokens[:, -most:], None
    first = (length.long() - most).clamp(min=0)
    return tokens.gather(1, first[:, None] + torch.arange(most, device=tokens.device)), length - first


def last_linear(module: nn.Module) -> nn.Module | None:
    """The linear map that was made last."""
    return next((m for m in reversed(list(module.modules())) if isinstance(m, nn.Linear)), None)
