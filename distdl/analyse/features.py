"""Inputs that an answer is strongest for: gradient ascent from noise of a fixed seed, kept smooth and near the baseline.

    x <- x + Adam(slope of  number(x) - SMOOTH * mean |x - its neighbours| - SMALL * mean (x - baseline)^2)

Pictures are shifted by a pixel or two at each step, and their pixels stay within their range (Olah et al. 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distdl.analyse import drawings
from distdl.analyse.look import Look
from distdl.analyse.probe import Inputs, slopes
from distdl.analyse.section import Picture, Section, Table, Value

STEPS, RATE = 128, 0.05
SMOOTH, SMALL = 10.0, 0.1
MOST = 12
"""Classes, or numbers of an answer, that are visualised: the first ones."""
FARTHEST = 3.0
"""How far numbers that have no range may go from the baseline, in deviations of the rows looked at."""


def features(look: Look) -> Section:
    """The section."""
    section = Section()
    first = look.opened[0]
    things = _things(look)
    n = len(things)
    one = Inputs(
        tuple(b[:1].repeat(n, *[1] * (b.ndim - 1)) for b in first.baseline),
        tuple(f[:1].repeat(n, *[1] * (f.ndim - 1)) for f in first.inputs.fixed),
        torch.tensor(things, device=look.probe.device),
    )
    found, before, after = ascended(look, one)
    rows: list[tuple[Value, ...]] = [
        (look.thing(thing), float(b), float(a)) for thing, b, a in zip(things, before, after)
    ]
    heads = ("of", "answer to the noise", "answer at the end")
    section.tables.append(Table("features", "How far the ascent came", heads, rows))
    section.numbers["answers"] = {str(name): end for name, _, end in rows}
    section.arrays["inputs"] = found[0].cpu().numpy()
    names = [look.thing(thing)[:18] for thing in things]
    kind = first.parts.kind
    if kind == "pixels":
        drawn = drawings.grid(list(found[0].double().cpu().numpy()), names)
        section.pictures.append(Picture("For each class the picture that it is strongest for.", drawn))
    elif kind == "steps":
        drawn = drawings.over_time(list(found[0].mean(2).cpu().numpy()), names, "mean of the variables")
        section.pictures.append(Picture("For each answer the series that it is strongest for.", drawn))
    else:
        _of_columns(look, found, names, section)
    section.sentences.append(
        f"{STEPS} steps of Adam from noise of the seed {look.seed}; only the first {MOST} answers are visualised."
    )
    return section


def _things(look: Look) -> list[int]:
    """The classes, or numbers, that are visualised."""
    if look.probe.subject.form == "number":
        return [0]
    with torch.no_grad():
        inputs = look.opened[0].inputs
        width = look.probe.subject.numbers(look.probe.said(inputs, *inputs.numbers, *inputs.fixed)).shape[1]
    return list(range(min(width, MOST)))


def ascended(look: Look, start: Inputs) -> tuple[tuple[Tensor, ...], np.ndarray, np.ndarray]:
    """The inputs at the end of the ascent, and the answers at its start and its end."""
    generator = torch.Generator().manual_seed(look.seed)
    within, spread = bool(look.probe.bytes_of), _spread(look)
    middle = tuple(torch.full_like(b, 0.5) if within else b for b in start.numbers)
    # the same noise for each answer; z is how far a number is moved, in its deviations
    z = [0.1 * torch.randn(m.shape[1:], generator=generator).to(m).expand_as(m).contiguous() for m in middle]
    z = [one.requires_grad_() for one in z]
    most = 0.5 if within else FARTHEST
    function, ascent = look.probe.of(start), torch.optim.Adam(z, lr=RATE)

    def numbers() -> tuple[Tensor, ...]:
        return tuple(m + one * s for one, m, s in zip(z, middle, spread))

    with torch.no_grad():
        before = function(*numbers(), *start.more).cpu().numpy()
    for _ in range(STEPS):
        with slopes():
            found = numbers()
            number = function(*(_shifted(n, generator) for n in found), *start.more)
            far = sum(one.square().flatten(1).mean(1) for one in z) * SMALL + sum(map(_rough, found)) * SMOOTH
            slope = torch.autograd.grad((far - number).sum(), z)
        for one, of_it in zip(z, slope):
            one.grad = torch.nan_to_num(of_it)
        ascent.step()
        with torch.no_grad():
            for one in z:
                one.clamp_(-most, most)
    with torch.no_grad():
        end = tuple(n.detach() for n in numbers())
        return end, before, function(*end, *start.more).cpu().numpy()


def _spread(look: Look) -> Sequence[Tensor | float]:
    """The deviation of each number over the rows looked at, in which it is moved; 1 of pixels and bytes."""
    if look.probe.bytes_of:
        return [1.0 for _ in look.probe.names]
    shape, found = look.opened[0].inputs.numbers, []
    for i in range(len(look.probe.names)):
        alike = [o.inputs.numbers[i] for o in look.opened if o.inputs.numbers[i].shape[1:] == shape[i].shape[1:]]
        values = torch.cat(alike)
        found.append(values.std(0, unbiased=False)[None] if values.ndim == 2 else values.std(unbiased=False))
    return found


def _rough(x: Tensor) -> Any:
    """(B,) how much neighbours differ, of pictures and of steps of time."""
    if x.ndim == 4:
        return x.diff(dim=2).abs().flatten(1).mean(1) + x.diff(dim=3).abs().flatten(1).mean(1)
    return x.diff(dim=1).abs().flatten(1).mean(1) if x.ndim == 3 and x.shape[1] > 1 else 0.0


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures, moved by a pixel or two where they are large enough; others as they are."""
    most = min(2, min(x.shape[2:]) // 16) if x.ndim == 4 else 0
    if not most:
        return x
    down, right = (int(n) for n in torch.randint(-most, most + 1, (2,), generator=generator))
    return x.roll((down, right), (2, 3))


def _of_columns(look: Look, found: tuple[Tensor, ...], names: list[str], section: Section) -> None:
    """A line for each answer: of a table the row that it is strongest for, in the file's units."""
    record = look.record.get(look.probe.names[0], {}) if len(found) == 1 else {}
    if look.opened[0].parts.kind == "columns":
        from distdl.data.preparation import undo

        decoded = undo(record, found[0].double().cpu().numpy())
        heads = list(dict.fromkeys(key for row in decoded for key in row))
        rows: list[tuple[Value, ...]] = [
            (name, *(None if (v := row.get(head)) is None else v if isinstance(v, float) else str(v) for head in heads))
            for name, row in zip(names, decoded)
        ]
        section.tables.append(Table("features-rows", "The row that each is strongest for", ("of", *heads), rows))
        section.sentences.append("Words that no ascent settled on are empty.")
        return
    flat = torch.cat([f.flatten(1) for f in found], 1).double().cpu().numpy()
    rows = [(name, *map(float, values)) for name, values in zip(names, flat[:, :50])]
    section.tables.append(
        Table("features-rows", "The input that each is strongest for", ("of", *look.opened[0].parts.names[:50]), rows)
    )
