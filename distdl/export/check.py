"""Whether an exported file answers as the run does: on real rows, and other numbers of rows and steps than its example."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distdl.columns import Column
from distdl.errors import InputError
from distdl.export.graph import BATCH, Shape
from distdl.learner import Learner

TOLERANCE = {"fp32": 1e-5, "fp16": 2e-2}
"""How far a number may be off: of 1, or of itself where it is larger."""
OTHERS = {"fp32": 0.0, "fp16": 0.1}
"""Share of rows whose whole numbers (a class, a token) may be others."""
Arrays = Mapping[str, np.ndarray]
Ask = Callable[[dict[str, np.ndarray]], Arrays]
"""An exported file that is asked."""


@dataclass
class Difference:
    """Between the exported file and the run."""

    largest: float = 0.0
    """Of all numbers, by 1 or by the number where it is larger."""
    at: str = ""
    """The answer that it is of."""
    rows: int = 0
    others: int = 0
    """Rows with a whole number that is another."""
    batches: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def as_dict(self, precision: str) -> dict[str, Any]:
        return {**vars(self), "tolerance": TOLERANCE[precision]}

    def __str__(self) -> str:
        sizes = ", ".join(map(str, sorted(set(self.batches))))
        steps = f" and {', '.join(map(str, sorted(set(self.lengths))))} steps" if self.lengths else ""
        others = f"; {self.others:,} rows with another class or token" if self.others else ""
        return f"largest difference {self.largest:.1e} on real rows, {sizes} at a time{steps}{others}"


def example(rows: Mapping[str, Tensor], free: Sequence[str]) -> dict[str, Tensor]:
    """What a graph is traced with: sizes that are unlike each other, so that no two of them are taken for one."""
    taken = min(5, len(next(iter(rows.values()))))
    found = {n: t[:taken, : shorter(t.shape[1], 0.7)] if n in free else t[:taken] for n, t in rows.items()}
    return {
        name: tensor.clone() for name, tensor in found.items()
    }  # of a part of a tensor a graph wants to know of what


def shorter(steps: int, share: float) -> int:
    return max(min(steps, 2), int(steps * share))


def counting(asked: Mapping[str, Column]) -> set[str]:
    """Columns that say how many of a row's steps count: not more than there are."""
    return {n for n, c in asked.items() if c.within} | {c.lengths for c in asked.values() if c.lengths in asked}


def cases(
    rows: Mapping[str, Tensor], lengths: Mapping[str, tuple[int, int | None]], counts: Collection[str] = ()
) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    """(rows, steps, columns) of different sizes; steps are 0 where they are fixed. `counts`: those of numbers of steps."""
    n = len(next(iter(rows.values())))
    shares = (1.0, 0.4, 0.85) if lengths else (1.0,)
    for turn, size in enumerate([n, 1, 2, 3, 1, n]):
        if not lengths and turn > 3:
            return
        first, share = (turn * 2) % max(1, n - size + 1), shares[turn % len(shares)]
        batch, steps = {}, 0
        for name, column in rows.items():
            part = column[first : first + min(size, n)]
            if name in lengths:
                low, high = lengths[name]
                steps = min(max(low, shorter(part.shape[1], share)), high or part.shape[1], part.shape[1])
                part = part[:, :steps]
            batch[name] = part
        for name in (name for name in counts if steps):
            batch[name] = batch[name].clamp(max=steps)
        yield min(size, n), steps, batch


def compared(
    ask: Ask,
    learner: Learner,
    rows: Mapping[str, Tensor],
    lengths: Mapping[str, tuple[int, int | None]],
    precision: str,
    shapes: tuple[Mapping[str, Shape], Mapping[str, Shape]] | None = None,
    raw: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
) -> Difference:
    """Asks both. InputError: they do not say the same, or the file gives another shape than it says (`shapes`). `raw`: the
    columns that the file takes, where not those that the model reads."""
    found = Difference()
    asked = learner.asked(learner.config)
    for size, steps, batch in cases(rows, lengths, counting(asked)):
        want = {name: t.detach().cpu().numpy() for name, t in learner.predict(batch).items()}
        given = raw(batch) if raw else batch
        told = ask({name: tensor.numpy() for name, tensor in given.items()})
        found.rows += size
        found.batches.append(size)
        found.lengths += [steps] * bool(steps)
        if want.keys() - told.keys():
            raise InputError(f"the exported file does not answer {', '.join(sorted(want.keys() - told.keys()))}")
        for name, numbers in want.items():
            add(found, name, numbers, np.asarray(told[name]))
            if shapes:
                check_shape(name, shapes, given, np.asarray(told[name]).shape)
    judge(found, precision)
    return found


def add(found: Difference, name: str, want: np.ndarray, told: np.ndarray) -> None:
    """Counts in one answer. InputError: it has another shape."""
    if want.shape != told.shape:
        told, want = padded(told, want)
    if want.dtype.kind in "iub":
        found.others += int((want != told).reshape(len(want), -1).any(1).sum())
        return
    a, b = want.astype(np.float64), told.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(a - b) / np.maximum(1.0, np.abs(a)))
    largest = float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))
    if largest > found.largest:
        found.largest, found.at = largest, name


def padded(told: np.ndarray, want: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of whole numbers may be filled up to other widths with -1. InputError for any other difference of shape."""
    if want.dtype.kind not in "iu" or want.ndim < 2 or told.ndim != want.ndim or told.shape[0] != want.shape[0]:
        raise InputError(f"the exported file answers with the shape {told.shape}, and the run with {want.shape}")
    width = max(told.shape[1], want.shape[1])
    rest = ((0, 0),) * (want.ndim - 2)
    both = [np.pad(x, ((0, 0), (0, width - x.shape[1]), *rest), constant_values=-1) for x in (told, want)]
    return both[0], both[1]


def judge(found: Difference, precision: str) -> None:
    """InputError where the difference is too large."""
    fix = "nothing was written; export it --to mlflow, which computes as the run does"
    if not found.largest <= TOLERANCE[precision]:
        what = f"the exported file answers otherwise than the run: '{found.at}' is off by {found.largest:.1e}"
        raise InputError(what, allowed=f"{TOLERANCE[precision]:g} in {precision}", fix=fix)
    if found.others > OTHERS[precision] * found.rows:
        what = (
            f"the exported file answers otherwise than the run: {found.others} of {found.rows} rows have another class"
        )
        raise InputError(what + " or token", allowed=f"{OTHERS[precision]:.0%} of them in {precision}", fix=fix)


def check_shape(
    name: str,
    shapes: tuple[Mapping[str, Shape], Mapping[str, Shape]],
    batch: Mapping[str, Tensor],
    actual: tuple[int, ...],
) -> None:
    """InputError where an output is not of the shape that the file itself says."""
    inputs, outputs = shapes
    sizes: dict[str, int] = {}
    for column, shape in inputs.items():
        sizes |= {n: batch[column].shape[i] for i, n in enumerate(shape) if isinstance(n, str)}
    said = outputs[name]
    fits = len(said) == len(actual) and all(_fits(n, size, sizes) for n, size in zip(said, actual))
    if not fits:
        what = f"the exported file says that '{name}' has the shape {list(said)}, and answers with {list(actual)}"
        raise InputError(what, fix="nothing was written; export it --to mlflow")


def _fits(said: int | str, size: int, sizes: Mapping[str, int]) -> bool:
    """Whether a size is what the file says: a number, a dimension's name, or a sum of one and a number."""
    if isinstance(said, int):
        return said == size
    if said in sizes:
        return sizes[said] == size
    found = re.fullmatch(r"(\w+) ([+-]) (\d+)", said)
    if found and found[1] in sizes:
        return sizes[found[1]] + int(found[3]) * (1 if found[2] == "+" else -1) == size
    return True  # a size that the file computes, such as that of a string


def refuse_fixed(inputs: Mapping[str, Shape], free: Sequence[str]) -> list[str]:
    """Columns whose number of steps should be free, and is not in the file. InputError: the number of rows is not."""
    for name, shape in inputs.items():
        if not (shape and shape[0] == BATCH):
            raise InputError(f"the exported file takes only {shape[0] if shape else 0} rows of '{name}' at a time")
    return [name for name in free if isinstance(inputs[name][1], int)]


def as_tensors(batch: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in batch.items()}
