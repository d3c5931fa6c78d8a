"""What an evaluation leaves for the pictures of it: counts of fixed size, which add up over batches and ranks, and small
arrays of the first worker. Nothing is drawn here: `track/pictures/` does, in a process of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from distdl.nn.watch import Arrays, watching
from distdl.track.pictures import MOST_CLASSES, MOST_CURVES, MOST_POINTS, SCORE_BINS, SURE_BINS
from distdl.train.hooks.hook import Run
from distdl.train.hooks.shown import Shown

TIMES = 10
"""So often in a run at most, beside its end."""


class Pictures:
    """Looks on at evaluations that are to be drawn."""

    def __init__(self, run: Run) -> None:
        mesh = run.plan.mesh
        # The ranks of a pipeline before its end see no answers, and those that cut a sequence see parts of them.
        self._possible = run.engine.config.track.enabled and mesh.pipeline == mesh.sequence == 1
        self.run, self._last = run, 0
        self._sums: dict[str, Tensor] = {}
        self._points: list[Tensor] = []
        self._looked: set[str] = set()
        self._real = True
        self._shown, self._said = Shown(), False

    def due(self, step: int) -> bool:
        """Whether the evaluation of this step is to be drawn; alike on every rank."""
        enough = step - self._last >= self.run.plan.steps / TIMES or not self._last
        return self._possible and (enough or self.run.last(step))

    @contextlib.contextmanager
    def look(self, step: int, split: str) -> Iterator[None]:
        """Looks on within it, and tells what was seen. Collective."""
        if not self.due(step):
            yield
            return
        self._last, self._sums, self._points, self._shown = step, {}, [], Shown()
        with watching(self._see, self._show):
            yield
        self._tell(step, split)

    def batches(self, source: Iterable[tuple[Any, bool]]) -> Iterator[tuple[Any, bool]]:
        """The batches of an evaluation, one by one, so that a batch's first answer is known from its others."""
        for number, (batch, real) in enumerate(source):
            self._looked, self._real = set(), real
            self._shown.next_batch(number, real)
            yield batch, real

    def _see(self, kind: str, told: Tensor, true: Tensor) -> None:
        if kind in self._looked or self.run.learner.training:
            return
        self._looked.add(kind)
        if kind == "classes" and told.shape[-1] <= MOST_CLASSES:
            sums = of_classes(told.reshape(-1, told.shape[-1]), true.reshape(-1))
            for name, counts in sums.items():
                if name not in self._sums or self._sums[name].shape == counts.shape:
                    self._sums[name] = self._sums.get(name, 0) + (counts if self._real else 0 * counts)
        elif kind == "numbers" and self._real and self.run.rank == 0 and sum(map(len, self._points)) < MOST_POINTS:
            self._points.append(torch.stack([told.flatten(), true.flatten()], 1).float().cpu())

    def _show(self, drawing: str, arrays: Arrays) -> None:
        if not self.run.learner.training:
            self._shown.see(drawing, arrays)

    def _tell(self, step: int, split: str) -> None:
        arrays: dict[str, Any] = {}
        plan = self.run.plan
        for name in sorted(self._sums):  # ranks that share a model have counted the same rows
            total = self.run.engine.all_sum(self._sums[name]) / (plan.world // plan.mesh.data)
            arrays[name] = (total if name == "sure" else total.round().long()).tolist()
        if arrays:
            self.run.event("picture", step=step, split=split, drawing="classes", arrays=arrays, names=self._names())
        if self._points:
            points = torch.cat(self._points)[:MOST_POINTS].tolist()
            self.run.event("picture", step=step, split=split, drawing="numbers", arrays={"points": points})
        self._tell_shown(step, split)
        self._sums, self._points, self._shown = {}, [], Shown()

    def _tell_shown(self, step: int, split: str) -> None:
        if self.run.rank == 0:
            for drawing, calls in self._shown.told().items():
                self.run.event("picture", step=step, split=split, drawing=drawing, calls=calls)
        if self._shown.failed and not self._said:
            self._said = True
            why = "; ".join(f"{drawing} ({error})" for drawing, error in self._shown.failed.items())
            text = f"the evaluation of step {step} could not be shown as pictures of {why}; nothing else is missing"
            self.run.event("message", level="warning", text=text)

    def _names(self) -> list[str]:
        columns: Mapping[str, Any] = self.run.preparation.get("columns", {})
        return [str(name) for name in columns.get("label", {}).get("classes", [])]


def of_classes(logits: Tensor, label: Tensor) -> dict[str, Tensor]:
    """(B, K), (B,) -> `confusion` (K, K) by true and told class; `scores` (K, 2, bins), for each class the distribution of
    its probability over rows of other classes and over its own; `sure` (bins, 3), by the probability of the told class: how
    many, the sum of it, how many right. Rows without a label count nowhere. float64, which sums exactly."""
    there = label >= 0
    logits, label = logits[there].float(), label[there]
    classes = logits.shape[-1]
    shares = logits.softmax(-1)  # (B, K)
    sure, told = shares.max(-1)
    counted = {"confusion": _counts(label * classes + told, classes * classes).view(classes, classes)}
    bins = (sure * SURE_BINS).long().clamp(0, SURE_BINS - 1)
    right = (told == label).double()
    columns = [_counts(bins, SURE_BINS), _counts(bins, SURE_BINS, sure.double()), _counts(bins, SURE_BINS, right)]
    counted["sure"] = torch.stack(columns, -1)
    if classes <= MOST_CURVES:
        own = torch.nn.functional.one_hot(label, classes)  # (B, K)
        bins = (shares * SCORE_BINS).long().clamp(0, SCORE_BINS - 1)
        of_class = torch.arange(classes, device=label.device)
        flat = ((of_class * 2 + own) * SCORE_BINS + bins).flatten()
        counted["scores"] = _counts(flat, classes * 2 * SCORE_BINS).view(classes, 2, SCORE_BINS)
    return counted


def _counts(places: Tensor, size: int, weights: Tensor | None = None) -> Tensor:
    """How often each place occurs, or the sum of its weights."""
    counts = torch.zeros(size, dtype=torch.float64, device=places.device)
    return counts.index_add_(0, places, torch.ones_like(places, dtype=torch.float64) if weights is None else weights)
