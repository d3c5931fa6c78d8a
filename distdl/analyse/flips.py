"""How many tokens of a row must be replaced until its answer is another, by the greedy search of HotFlip (Ebrahimi et al.
2018).

    gain(t, v) = (vector of the token at t - vector of v) . slope of the answer's number at t

is by how much the number would fall if the token at t became v, to first order. The replacements that promise the most are
asked about, as tokens, and the one that brings the number down the furthest is kept; then the next token is sought.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distdl.analyse import drawings
from distdl.analyse.look import Look
from distdl.analyse.probe import Probe, slopes
from distdl.analyse.section import Picture, Section, Table, Value
from distdl.columns import NO_LABEL

MOST = 4
"""Tokens of a row that are replaced, at most."""
TRIED = 32
"""Replacements that are asked about each time."""


@dataclass
class Found:
    """Of one row."""

    told: int
    """What it is told to be at the end, and"""
    other: bool
    """whether that is something else than what it was, or what is true."""
    flips: list[tuple[int, int, int]]
    """The place of each token that was replaced, the token, and the new one."""

    @property
    def needed(self) -> float:
        """Tokens that had to be replaced; infinity: those that were tried did not do."""
        return len(self.flips) if self.other else np.inf


def flips(look: Look) -> Section:
    """The section: of classes the accuracy, else the share of answers that stay, by the number of tokens replaced."""
    section, rows = Section(), list[tuple[Value, ...]]()
    known = look.probe.subject.classes and look.truth is not None
    right = look.truth if known and look.truth is not None else look.things
    tokens = occurring(look)
    found: list[Found] = []
    for i, row in enumerate(look.rows):
        if int(right[i]) == NO_LABEL:
            continue
        one = sought(look.probe, row.columns, int(right[i]), tokens)
        found.append(one)
        words = ", ".join(f"{look.token(old)!r} at {at} by {look.token(new)!r}" for at, old, new in one.flips)
        rows.append((row.name, look.thing(int(look.things[i])), look.true(i), words, look.thing(one.told)))
    if not found:
        return Section(refused="it is not known what is true of these rows")
    counts = list(range(MOST + 1))
    kept = [float(np.mean([one.needed > n for one in found])) for n in counts]
    name = "accuracy" if known else "share of answers that stay"
    lines: list[tuple[Value, ...]] = list(zip(counts, kept))
    section.tables.append(Table("robustness", f"{name} by tokens replaced", ("tokens replaced", name), lines))
    heads = ("row", "told", "true", "replaced", "told then")
    section.tables.append(Table("robustness-rows", "Row by row", heads, rows, shown=20))
    drawn = drawings.curves(counts, {"HotFlip": kept}, "tokens replaced", name)
    section.pictures.append(Picture(f"{name} over the tokens replaced, {len(found):,} rows.", drawn))
    section.numbers = {"tokens_replaced": counts, "measure": name, "hotflip": kept, "clean": kept[0]}
    section.sentences += [
        f"A token is replaced by one of the {len(tokens):,} that occur in the rows looked at, whatever the text then says; "
        f"at most {MOST} of a row, one after the other, each by the best of {TRIED} that are tried.",
        "A search that tried all of them together may need fewer.",
    ]
    return section


def occurring(look: Look) -> Tensor:
    """(V,) the tokens of all rows that are looked at."""
    read = {token for one in look.opened if one.inputs.place for token in one.inputs.place.ids}
    return torch.tensor(sorted(read), device=look.probe.device)


def sought(probe: Probe, columns: Mapping[str, Any], right: int, tokens: Tensor) -> Found:
    """Replaces tokens of a row until it is told to be something else than `right`, or enough were tried."""
    columns, flipped = dict(columns), list[tuple[int, int, int]]()
    thing = torch.tensor([right], device=probe.device)
    while True:
        inputs = probe.inputs({name: column[None] for name, column in columns.items()})
        place, told = inputs.place, int(inputs.thing[0])
        assert place is not None
        left = [i for i, at in enumerate(place.at) if at not in {at for at, _, _ in flipped}]
        if told != right or len(flipped) == MOST or not left:
            return Found(told, told != right, flipped)
        with slopes():
            vectors = place.vectors.clone().requires_grad_()
            number = probe.of(inputs)(vectors, *inputs.fixed, thing)
            (slope,) = torch.autograd.grad(number.sum(), vectors)
        others = place.vectors_of(probe.learner, tokens)  # (V, D)
        gain = (slope[0] * vectors.detach()[0]).sum(-1, keepdim=True) - slope[0] @ others.T  # (T, V)
        gain[torch.tensor(place.ids, device=tokens.device)[:, None] == tokens] = -torch.inf  # itself
        gain = gain[left]
        best = gain.flatten().topk(min(TRIED, gain.numel())).indices
        best = best[gain.flatten()[best] > -torch.inf]
        if not len(best):
            return Found(told, False, flipped)
        where = [place.at[left[i]] for i in (best // len(tokens)).tolist()]
        new = tokens[best % len(tokens)].tolist()
        lowest = int(_numbers(probe, columns, place.column, where, new, thing).argmin())
        at, token = where[lowest], new[lowest]
        column = np.array(columns[place.column])
        flipped.append((at, int(column.flat[at]), token))
        column.flat[at] = token
        columns[place.column] = column


def _numbers(
    probe: Probe, columns: Mapping[str, Any], name: str, where: list[int], new: list[int], thing: Tensor
) -> Tensor:
    """(B,) what each replacement by itself makes of the number that is explained."""
    n = len(where)
    batch = {key: column.repeat(n, *[1] * (column.ndim - 1)) for key, column in probe.row(columns).items()}
    batch[name].view(n, -1)[range(n), where] = torch.tensor(new, dtype=batch[name].dtype, device=probe.device)
    with torch.no_grad():
        return probe.subject.number(probe.answer(batch), thing.expand(n))
