"""The matrix: every layout at every number of processes, against one process of plain PyTorch that takes the batch at once.

Each cell is a layout's passes (`passes.py`), with clipping on and two accumulated micro-batches (four in a pipeline), and
holds the largest differences: of the loss, absolute; of the gradient norm, relative; of each weight's movement, relative.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from distdl.config.load import config_from_dict
from distdl.errors import InputError, TrainingFailed
from distdl.parity.cell import Cell, compare
from distdl.parity.layouts import candidates, data_ranks
from distdl.parity.movement import gaps
from distdl.parity.passes import (
    LONG,
    OWN,
    SGD,
    SUMMED,
    Runs,
    first_step,
    kind,
    nudged,
    of_reference,
    on_layout,
    passes,
    reference_run,
)
from distdl.parity.processes import curves
from distdl.plan.facts import ModelFacts
from distdl.plan.refuse import AXES, layout_key
from distdl.train.survey import model_facts, survey

NUMBER = re.compile(r"\d+")
IN_PARTS = "in parts"
"""The reference's own pass once more, as two micro-batches: how far rounding alone leads."""
NO_GRADIENT = "no gradient in the family's first step, of which a long one would consist"
NUDGES = (1, 2, 3)
"""Seeds of the starts a rounding away from the reference's, which are asked for where a layout differs."""
CASE_TIMEOUT_S = 600.0
"""For all passes of a layout together."""


def matrix(values: dict[str, Any], worlds: Sequence[int], chosen: Sequence[str] = ()) -> Iterator[Cell]:
    """The cells of a config (as plain values, small enough to run here), as they are measured. `chosen`: layouts, else all.

    Raises TrainingFailed where the reference itself does not run.
    """
    facts = model_facts(config_from_dict(values))
    runs, reference = references(values, facts, {n for w in worlds for n in _data_ranks(chosen, w, facts)})
    if facts.trainable and LONG not in runs and not facts.batch_coupled:
        yield Cell("bf16", 1, "refused", reason=reference.get("why not long", NO_GRADIENT))
    for world in worlds:
        cases: dict[str, Runs] = {}
        for axis in AXES if not chosen and world > 1 else ():
            if axis not in facts.layouts:
                yield Cell(f"+{axis}", world, "refused", reason=f"the family {facts.family} does not declare this axis")
        for name in chosen or candidates(world):
            if world == 1 and name == "torch":
                continue  # the reference itself
            if missing := _missing_axis(name, facts):
                if chosen:
                    yield Cell(name, world, "refused", reason=missing)
                continue
            case = on_layout(runs, name, world, facts)
            try:
                for part in case.values():
                    survey(config_from_dict(part))
            except InputError as error:
                yield Cell(name, world, "refused", reason=error.problems[0].what)
                continue
            cases[name] = case
        for name, result in curves(world, cases, CASE_TIMEOUT_S):
            precision = values["train"].get("precision", "fp32")
            cell = compare(name, world, reference, result, precision)
            if cell.status == "differs" and not any(nudged(OWN, n) in reference for n in NUDGES):
                wanted = {nudged(run, n): reference_run(runs[run]) for run in (OWN, SGD) if run in runs for n in NUDGES}
                reference |= _told(dict(curves(1, {"nudged": wanted}, CASE_TIMEOUT_S))["nudged"])
            yield nearest_start(cell, world, reference, result, precision)


def nearest_start(cell: Cell, world: int, reference: dict[str, Any], result: dict[str, Any], precision: str) -> Cell:
    """The cell, or one that is equal to a reference whose start was a rounding away, with how far that one's own curve is
    from the reference's: what differs then is a choice on the knife's edge, which rounding alone makes."""
    runs = [run for run in (OWN, SGD) if run in reference]
    choices = [runs[:1], runs[1:], runs] if len(runs) > 1 else [runs]
    for n, chosen in itertools.product(NUDGES, choices) if cell.status == "differs" else ():
        starts = {run: reference[nudged(run, n)] | {"noise": reference[run].get("noise", {})} for run in chosen}
        there = compare(cell.layout, world, reference | starts, result, precision)
        if there.status == "equal":
            losses = [(reference[run]["loss"], start["loss"]) for run, start in starts.items()]
            return replace(there, start_loss=max(abs(a - b) for pair in losses for a, b in zip(*pair)))
    return cell


def references(values: dict[str, Any], facts: ModelFacts, data_ranks: set[int]) -> tuple[Runs, dict[str, Any]]:
    """The passes of a config, and the reference's curve of each, of the long one for each number of data ranks.

    A family that does not run in bf16 has no long pass, and the reason for it beside the curves.
    """
    told = dict(curves(1, {"first": {OWN: first_step(values)}}, CASE_TIMEOUT_S))["first"]
    runs = passes(values, facts, _told(told)[OWN])
    wanted = of_reference(runs, data_ranks, facts)
    in_parts = on_layout({OWN: runs[OWN]}, "torch", 1, facts)[OWN]
    if in_parts != wanted[OWN]:
        wanted[IN_PARTS] = in_parts
    found: dict[str, Any] = {}
    for name, result in curves(1, {name: {name: run} for name, run in wanted.items()}, CASE_TIMEOUT_S):
        if "error" in result and kind(name) == LONG:
            found["why not long"] = f"the reference does not run in bf16: {result['error'].splitlines()[0]}"
            runs.pop(LONG, None)
        else:
            found |= _told(result)
    if IN_PARTS in found:
        found[OWN] = _noisy(found[OWN], found.pop(IN_PARTS))
    for name in [name for name in found if SUMMED in name]:
        other, whole = found.pop(name), name.partition(SUMMED)[0]
        if whole in found:
            found[whole] = _noisy(found[whole], other, alike=True)
    return runs, found


def _noisy(one: dict[str, Any], other: dict[str, Any], alike: bool = False) -> dict[str, Any]:
    """A curve, and how far each tensor's movement is in another, or in any before, that differs in nothing but rounding.

    `alike`: of tensors whose names differ in their numbers the largest. Where a rounding sends a token to another expert,
    it is chance which of the experts shows it.
    """
    known = dict(one.get("noise", {}))
    for gap in gaps(one, other):
        known[gap.name] = max(gap.error, known.get(gap.name, 0.0))
    if alike:
        largest: dict[str, float] = {}
        for name, error in known.items():
            like = NUMBER.sub("#", name)
            largest[like] = max(error, largest.get(like, 0.0))
        known = {name: largest[NUMBER.sub("#", name)] for name in known}
    return one | {"noise": known}


def _told(result: dict[str, Any]) -> dict[str, Any]:
    if "error" in result:
        raise TrainingFailed(f"the reference, one process of plain PyTorch, does not run: {result['error']}")
    return result


def _data_ranks(chosen: Sequence[str], world: int, facts: ModelFacts) -> set[int]:
    """The numbers of data ranks that the layouts of so many processes have."""
    names = [name for name in chosen or candidates(world) if not _missing_axis(name, facts)]
    return {max(1, data_ranks(name, world)) for name in names}


def _missing_axis(name: str, facts: ModelFacts) -> str:
    """The axis that the layout cuts and the family does not declare."""
    missing = [axis for axis, _ in layout_key(name) if axis in AXES and axis not in facts.layouts]
    return f"the family {facts.family} does not declare {' and '.join(missing)} parallelism" if missing else ""


def default_worlds() -> tuple[int, ...]:
    """1, 2 and 4 processes, and 8 where there are as many cores."""
    return (1, 2, 4, 8) if len(os.sched_getaffinity(0)) >= 8 else (1, 2, 4)
