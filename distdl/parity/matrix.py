"""The matrix: every layout at every number of processes, against one process of plain PyTorch that takes the batch at once.

Each cell has clipping on and two accumulated micro-batches (four in a pipeline), and is the largest difference over all
steps: of the loss, absolute; of the gradient norm, relative to the reference's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from distdl.config_load import config_from_dict
from distdl.errors import InputError, TrainingFailed
from distdl.parity.layouts import candidates, data_ranks, laid_out
from distdl.parity.processes import curves
from distdl.plan.facts import ModelFacts
from distdl.plan.refuse import AXES, layout_key
from distdl.survey import model_facts, survey

TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3}
"""Largest difference of the loss at which two curves are the same."""
NORM_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
"""Of the gradient norm, relative. Adam turns the rounding noise of a zero gradient (that of attention's key biases) into
moves of a whole learning rate, which the norm of a steep step shows in the fourth digit while the loss does not."""
CASE_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Cell:
    """One layout at one number of processes."""

    layout: str
    world: int
    status: str
    """equal, differs, failed, or refused by the plan."""
    loss: float | None = None
    """Largest absolute difference of the loss."""
    norm: float | None = None
    """Largest difference of the gradient norm, relative to the reference's; None: no gradient."""
    evaluation: float | None = None
    """Largest absolute difference of the held-out metrics at the end."""
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, which knows no infinity: the number as text."""
        return {key: "inf" if value == math.inf else value for key, value in asdict(self).items()}


def matrix(values: dict[str, Any], worlds: Sequence[int], chosen: Sequence[str] = ()) -> Iterator[Cell]:
    """The cells of a config (as plain values, small enough to run here), as they are measured. `chosen`: layouts, else all.

    Raises TrainingFailed where the reference itself does not run.
    """
    facts = model_facts(config_from_dict(values))
    reference = next(iter(curves(1, {"reference": laid_out(values, "torch", 1)}, CASE_TIMEOUT_S)))[1]
    if "error" in reference:
        raise TrainingFailed(f"the reference, one process of plain PyTorch, does not run: {reference['error']}")
    for world in worlds:
        cases: dict[str, dict[str, Any]] = {}
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
            case = micro_batched(laid_out(values, name, world), name, world, facts)
            try:
                survey(config_from_dict(case))
            except InputError as error:
                yield Cell(name, world, "refused", reason=error.problems[0].what)
                continue
            cases[name] = case
        for name, result in curves(world, cases, CASE_TIMEOUT_S):
            yield compare(name, world, reference, result, values["train"].get("precision", "fp32"))


def micro_batched(values: dict[str, Any], name: str, world: int, facts: ModelFacts) -> dict[str, Any]:
    """Two micro-batches a step, four in a pipeline; one where the family couples the samples of a batch."""
    share = values["train"]["global_batch"] // max(1, data_ranks(name, world))  # 0 ranks: the plan will refuse
    whole = facts.batch_coupled or not facts.trainable
    parts = 4 if "pipeline" in name else 2
    values["train"]["micro_batch"] = None if whole else max(1, share // parts)
    return values


def compare(name: str, world: int, reference: dict[str, Any], result: dict[str, Any], precision: str) -> Cell:
    """A cell from two curves."""
    if "error" in result:
        return Cell(name, world, "failed", reason=result["error"].splitlines()[0])
    if len(result["loss"]) != len(reference["loss"]):
        return Cell(name, world, "failed", reason=f"{len(result['loss'])} steps instead of {len(reference['loss'])}")
    loss = _largest(abs(a - b) for a, b in zip(reference["loss"], result["loss"]))
    norms = [(a, b) for a, b in zip(reference["norm"], result["norm"], strict=True) if a is not None]
    norm = _largest(abs(a - b) / max(abs(a), 1e-12) if b is not None else math.inf for a, b in norms)
    held_out = reference.get("evaluation", {})
    evaluation = _largest(abs(value - result["evaluation"][key]) for key, value in held_out.items())
    limits = [(loss, TOLERANCE), (norm, NORM_TOLERANCE), (evaluation, TOLERANCE)]
    equal = all(found is None or found < limit.get(precision, limit["fp32"]) for found, limit in limits)
    return Cell(name, world, "equal" if equal else "differs", loss, norm, evaluation)


def _largest(differences: Iterable[float]) -> float | None:
    """Infinity where one is not a number, which `max` would pass over; None where there are none."""
    return max((d if math.isfinite(d) else math.inf for d in differences), default=None)


def _missing_axis(name: str, facts: ModelFacts) -> str:
    """The axis that the layout cuts and the family does not declare."""
    missing = [axis for axis, _ in layout_key(name) if axis in AXES and axis not in facts.layouts]
    return f"the family {facts.family} does not declare {' and '.join(missing)} parallelism" if missing else ""


def default_worlds() -> tuple[int, ...]:
    """1, 2 and 4 processes, and 8 where there are as many cores."""
    return (1, 2, 4, 8) if len(os.sched_getaffinity(0)) >= 8 else (1, 2, 4)
