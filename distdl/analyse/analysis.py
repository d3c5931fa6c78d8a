"""All methods on one run: what was found, written as a page, as JSON and as tables.

found = analysed(Look(...), Wish(...))
write(found, Path("runs/adult/analysis"))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from distdl.analyse.features import features
from distdl.analyse.flips import flips
from distdl.analyse.groups import groups
from distdl.analyse.look import Look
from distdl.analyse.methods import METHODS, refusals
from distdl.analyse.neighbours import neighbours
from distdl.analyse.probe import Probe
from distdl.analyse.robustness import robustness
from distdl.analyse.rows import sampled
from distdl.analyse.section import Section
from distdl.analyse.shares import HOW, attributed
from distdl.data.asking.open import How
from distdl.errors import InputError
from distdl.layout import noise
from distdl.model.model import Model

TRIED = 8
"""Rows that are tried first, to see how the family takes its input."""


@dataclass(frozen=True)
class Wish:
    """What was asked for."""

    methods: Sequence[str]
    rows: int
    by: str = ""
    how: How = field(default_factory=How)
    seed: int = 0


@dataclass
class Analysis:
    """What was found."""

    look: Look
    sections: dict[str, Section]
    """Method -> what it found, or why it does not apply."""


def looked_at(model: Model, files: Sequence[str], wish: Wish) -> Look:
    """The model and the rows, ready to be looked at. InputError: this family cannot be analysed."""
    family = str(model.config.family)
    if wish.rows < 1:
        raise InputError(f"--rows is {wish.rows}", allowed="at least 1")
    paths = list(files) or [str(model.config.data.path)]
    sample = sampled(model, paths, wish.how, wish.rows, wish.seed)
    _, columns = next(sample.batches(min(TRIED, model.batch)))
    probe = Probe.on(model.learner, model.ways.asked, model.tells, columns, family, model.device)
    return Look(model, probe, sample, paths, wish.seed)


def analysed(look: Look, wish: Wish, say: Callable[[str], None] = lambda text: None) -> Analysis:
    """Each method that was asked for, in its order; `say` is told which is under way."""
    refused = refusals(look.probe, look.opened[0].inputs)
    sections: dict[str, Section] = {}
    for method in wish.methods:
        if refused[method]:
            sections[method] = Section(refused=refused[method])
            continue
        say(METHODS[method].title)
        sections[method] = _one(look, method, wish)
    noise.begin(0, None)
    return Analysis(look, sections)


def _one(look: Look, method: str, wish: Wish) -> Section:
    if method in HOW:
        return attributed(look, method)
    if method == "groups":
        return groups(look, wish.by, wish.how)
    of: dict[str, Callable[[Look], Section]] = {
        "robustness": flips if look.probe.tokens else robustness,
        "neighbours": neighbours,
        "features": features,
    }
    return of[method](look)


def summary(found: Analysis) -> dict[str, object]:
    """What is written as JSON."""
    look = found.look
    return {
        "run": look.model.folder.path.name,
        "family": str(look.model.config.family),
        "step": look.model.step,
        "data": list(look.files),
        "rows": len(look.rows),
        "rows_there": look.sample.told.rows,
        "rows_set_aside": look.sample.told.set_aside,
        "seed": look.seed,
        "explained": look.probe.subject.words,
        "answers": [
            {"row": row.name, "told": look.thing(int(thing)), "true": look.true(i), "answer": float(answer)}
            for i, (row, thing, answer) in enumerate(zip(look.rows, look.things, look.answers))
        ],
        "methods": {
            name: {"refused": section.refused} if section.refused else _plain(section.numbers)
            for name, section in found.sections.items()
        },
    }


def _plain(value: object) -> object:
    """Numbers of Python's own: what is not finite is null, which JSON has a word for."""
    if isinstance(value, dict):
        return {str(key): _plain(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(of) for of in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
