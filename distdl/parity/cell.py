"""A cell of the matrix: how far a layout's passes are from the reference's, and whether that is rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from distdl.parity.movement import widest_gap, widest_start
from distdl.parity.passes import LONG, OWN, SGD, kind

TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3}
"""Largest difference of the loss at which two curves are the same."""
NORM_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
"""Of the gradient norm, relative. Adam turns the rounding noise of a zero gradient (that of attention's key biases) into
moves of a whole learning rate, which the norm of a steep step shows in the fourth digit while the loss does not."""
MOVE_TOLERANCE = {OWN: {"fp32": 2e-3, "bf16": 0.2}, SGD: {"fp32": 2e-4}, LONG: {"bf16": 5e-3}}
"""Of the movement of each weight and buffer, over the reference's: by pass, and by precision."""
START_TOLERANCE = {"fp32": 1e-6, "bf16": 5e-3}
"""Of the initial values of each, over their length."""


@dataclass(frozen=True)
class Cell:
    """One layout at one number of processes."""

    layout: str
    world: int
    status: str
    """equal, differs, failed, or refused by the plan."""
    loss: float | None = None
    """Largest absolute difference of the loss, with the config's own optimizer."""
    norm: float | None = None
    """Largest difference of the gradient norm, relative to the reference's; None: no gradient."""
    evaluation: float | None = None
    """Largest absolute difference of the held-out metrics at the end."""
    own: float | None = None
    """The movement that is furthest from the reference's, of all weights and buffers, over its length there."""
    sgd: float | None = None
    """The same with plain SGD; None: not run."""
    long: float | None = None
    """The same in bf16 with a long accumulation; None: not run."""
    furthest: str = ""
    """The weight or buffer that is nearest to what is allowed, or furthest beyond it."""
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, which knows no infinity: the number as text."""
        return {key: "inf" if value == math.inf else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class _Difference:
    what: str
    found: float
    allowed: float

    @property
    def excess(self) -> float:
        return self.found / self.allowed

    def __str__(self) -> str:
        return f"{self.what} by {self.found:.1e}, and {self.allowed:g} is allowed"


def compare(name: str, world: int, reference: dict[str, Any], result: dict[str, Any], precision: str) -> Cell:
    """A cell from the curves of each pass, the reference's and the layout's."""
    if "error" in result:
        return Cell(name, world, "failed", reason=result["error"].splitlines()[0])
    numbers: dict[str, float | None] = {}
    differences: list[_Difference] = []
    furthest = _Difference("", -1.0, 1.0)
    for run, got in result.items():
        want, which = reference[run], kind(run)
        if len(got["loss"]) != len(want["loss"]):
            words = f"{len(got['loss'])} steps instead of {len(want['loss'])}"
            return Cell(name, world, "failed", reason=words)
        digits = {OWN: precision, LONG: "bf16"}.get(which, "fp32")
        found = _curves(want, got, relative=which != OWN)
        if which == OWN:
            numbers |= found
        differences += [
            _Difference(f"{_WORDS[key]}{_PASSES[which]} differs", value, _limit(limit, digits))
            for (key, value), limit in zip(found.items(), (TOLERANCE, NORM_TOLERANCE, TOLERANCE), strict=True)
            if value is not None
        ]
        start, gap = widest_start(want, got), widest_gap(want, got, len(want["loss"]))
        numbers[which] = gap.error if gap else None
        if start and gap:
            limit = _limit(MOVE_TOLERANCE[which], digits)
            words = f"the initial {start.name}{_PASSES[which]} differs"
            differences.append(_Difference(words, start.error, _limit(START_TOLERANCE, digits)))
            differences.append(_Difference(f"the movement of {gap.name}{_PASSES[which]} differs", gap.error, limit))
            furthest = max(furthest, _Difference(gap.name, gap.error, limit), key=lambda d: d.excess)
    worst = max(differences, key=lambda d: d.excess)
    equal = worst.found < worst.allowed
    return Cell(
        name,
        world,
        "equal" if equal else "differs",
        **numbers,
        furthest=furthest.what,
        reason="" if equal else str(worst),
    )


_WORDS = {"loss": "the loss", "norm": "the gradient norm", "evaluation": "a held-out metric"}
_PASSES = {OWN: "", SGD: " with plain SGD", LONG: " in bf16 after a long accumulation"}


def _limit(limits: dict[str, float], precision: str) -> float:
    return limits.get(precision, limits.get("fp32", math.inf))


def _curves(want: dict[str, Any], got: dict[str, Any], relative: bool) -> dict[str, float | None]:
    """The largest differences. `relative`: of what is above 1, over its size; the config's own curve is taken as it is."""

    def apart(a: float, b: float) -> float:
        return abs(a - b) / max(1.0, abs(a) if relative else 1.0)

    norms = [(a, b) for a, b in zip(want["norm"], got["norm"], strict=True) if a is not None]
    held_out = want.get("evaluation", {})
    return {
        "loss": _largest(apart(a, b) for a, b in zip(want["loss"], got["loss"])),
        "norm": _largest(abs(a - b) / max(abs(a), 1e-12) if b is not None else math.inf for a, b in norms),
        "evaluation": _largest(apart(value, got["evaluation"][key]) for key, value in held_out.items()),
    }


def _largest(differences: Iterable[float]) -> float | None:
    """Infinity where one is not a number, which `max` would pass over; None where there are none."""
    return max((d if math.isfinite(d) else math.inf for d in differences), default=None)
