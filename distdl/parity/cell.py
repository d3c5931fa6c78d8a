"""A cell of the matrix: how far a layout's passes are from the reference's, and whether that is rounding."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from distdl.parity.movement import gaps, widest_start
from distdl.parity.passes import LONG, OWN, SGD, counterpart, kind

TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3}
"""Largest difference of the loss at which two curves are the same."""
NORM_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
"""Of the gradient norm, relative. Adam turns the rounding noise of a zero gradient (that of attention's key biases) into
moves of a whole learning rate, which the norm of a steep step shows in the fourth digit while the loss does not."""
MOVE_TOLERANCE = {OWN: {"fp32": 5e-3, "bf16": 0.4}, SGD: {"fp32": 2e-4}, LONG: {"bf16": 5e-3}}
"""Of the movement of each weight and buffer, over the reference's: by pass, and by precision."""
TENSOR_SUMS = 2.0
"""Times that in the long pass along the tensor axis, which sums parts of activations that are rounded to 16 bits each."""
NOISE = 5.0
"""A tensor may be so many times as far from the reference as that is from itself, rounded otherwise: with the config's own
optimizer, where it takes its batch in two parts (Adam makes moves of rounding noise); in the long pass along the tensor
axis, where its linear layers add up a few products of 16 bits each."""
START_TOLERANCE = 1e-6
"""Of the initial values of each, over their length: they are kept in fp32 whatever the arithmetic is."""


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
    start_loss: float | None = None
    """Where it is equal to a reference that began a rounding away: how far that one's loss is from the reference's."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, which knows no infinity: the number as text."""
        return {key: "inf" if value == math.inf else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class _Difference:
    what: str
    found: float
    allowed: float

    def __str__(self) -> str:
        return f"{self.what} by {self.found:.1e}, and {self.allowed:g} is allowed"


def compare(name: str, world: int, reference: dict[str, Any], result: dict[str, Any], precision: str) -> Cell:
    """A cell from the curves of each pass, the reference's and the layout's."""
    if "error" in result:
        return Cell(name, world, "failed", reason=result["error"].splitlines()[0])
    numbers: dict[str, float | None] = {}
    differences: list[_Difference] = []
    moves: list[_Difference] = []
    for run, got in result.items():
        whole, which = reference[run], kind(run)
        want = whole | reference[counterpart(run, name)]
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
        only = want["start"] if want.get("rounded") else None  # the rest may be 16-bit copies from the start
        if start := widest_start(_of(whole, only), _of(got, only)):
            words = f"the initial {start.name}{_PASSES[which]} differs"
            differences.append(_Difference(words, start.error, START_TOLERANCE))
        along_tensor = which == LONG and "tensor" in name
        if which == LONG and not along_tensor:
            want["noise"] = {}
        sums = TENSOR_SUMS if along_tensor else 1.0
        moved = _moves(want, got, sums * _limit(MOVE_TOLERANCE[which], digits))
        numbers[which] = moved[-1].found if moved else None
        moves += moved[-1:]
        differences += [
            replace(move, what=f"the movement of {move.what}{_PASSES[which]} differs") for move in moved[-1:]
        ]
    worst = max(differences, key=_excess)
    equal = worst.found < worst.allowed
    return Cell(
        name,
        world,
        "equal" if equal else "differs",
        **numbers,
        furthest=max(moves, key=_excess).what if moves else "",
        reason="" if equal else str(worst),
    )


def _of(curve: dict[str, Any], only: Collection[str] | None) -> dict[str, Any]:
    """A curve with these of its tensors; None: all."""
    if only is None:
        return curve
    return curve | {when: {n: t for n, t in curve[when].items() if n in only} for when in ("start", "end")}


def _moves(want: dict[str, Any], got: dict[str, Any], limit: float) -> list[_Difference]:
    """How far each tensor's movement is, the one that is furthest beyond what it is allowed last."""
    noise = want.get("noise", {})
    found = [
        _Difference(gap.name, gap.error, max(limit, NOISE * noise.get(gap.name, 0.0)))
        for gap in gaps(want, _of(got, want["end"] if want.get("rounded") else None))
    ]
    return sorted(found, key=_excess)


_WORDS = {"loss": "the loss", "norm": "the gradient norm", "evaluation": "a held-out metric"}
_PASSES = {OWN: "", SGD: " with plain SGD", LONG: " in bf16 after a long accumulation"}


def _excess(difference: _Difference) -> float:
    return difference.found / difference.allowed


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
