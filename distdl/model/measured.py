"""How right a trained model is on new data: the family's own metrics, and those of what it answers, by group, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from distdl.errors import InputError
from distdl.model.judges import Classes, judge_of
from distdl.model.model import Model, Told

if TYPE_CHECKING:
    import numpy as np

    from distdl.data.asking.open import How
    from distdl.data.asking.question import Question
    from distdl.data.progress import Follow

GROUPS = 100
"""Groups that are told; of more the largest."""


@dataclass
class Measured:
    """What was measured."""

    told: Told
    metrics: dict[str, float] = field(default_factory=dict)
    """The family's own, as while it trained."""
    more: dict[str, float] = field(default_factory=dict)
    """Of classes, numbers, texts or pictures."""
    classes: list[Any] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)
    """Rows: the class that it is; columns: the one that was told."""
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    """Value of the column that it was asked by -> `rows`, and the metrics of these."""
    notes: list[str] = field(default_factory=list)


def measured(model: Model, path: str, how: How, by: str = "", follow: Follow | None = None) -> Measured:
    """On the rows of a file, a folder or a data set that has the truth in it. InputError: it has none."""
    import contextlib

    from distdl.data.asking.open import questions
    from distdl.data.progress import Progress

    found = Measured(Told())
    progress = Progress("evaluate", {"path": path})
    parts = _Parts(model, by)
    with follow(progress) if follow else contextlib.nullcontext():
        for question in questions(model.ways, path, how):
            found.told.see(question)
            progress.rows = found.told.rows
            if question.real.any():
                parts.add(question)
    if not parts.rows:
        first = found.told.bad[0] if found.told.bad else None
        why = f": {first.why}" if first else ""
        fix = "give rows like those that were learned from, with the label or the target beside them"
        raise InputError(f"{path} has no row that could be read{why}", where=first.where if first else "", fix=fix)
    parts.tell(found, path)
    return found


class _Parts:
    """What is gathered while the rows go by: sums of the family's metrics, and truths beside answers."""

    def __init__(self, model: Model, by: str) -> None:
        from distdl.metrics import Metrics

        self.model, self.by, self.rows = model, by, 0
        self.sums: Metrics = {}
        self.judge = judge_of(model)
        self.judged = 0
        self.groups: list[Any] = []

    def add(self, question: Question) -> None:
        rows = question.rows
        self._own(rows)
        if self.judge and self.judge.column in rows:
            self.judge.add(rows, self.model.answers(rows))
            self.judged += int(question.real.sum())
            if self.by:
                if self.by not in question.about:
                    raise InputError(f"there is no column '{self.by}' to group by", allowed=", ".join(question.about))
                of = question.about[self.by]
                self.groups += [value for value, real in zip(of, question.real, strict=True) if real]
        self.rows += int(question.real.sum())

    def _own(self, rows: Mapping[str, Any]) -> None:
        """The family's own metrics, drawn as in the evaluations of a run."""
        import numpy as np
        import torch

        from distdl.engine.base import EVALUATION
        from distdl.layout import noise
        from distdl.metrics import add

        if not self.model.columns.keys() <= rows.keys():
            return
        seed, n = self.model.config.seed ^ EVALUATION, len(next(iter(rows.values())))
        for first in range(0, n, self.model.batch):
            part = {name: column[first : first + self.model.batch] for name, column in rows.items()}
            batch = {k: torch.from_numpy(np.ascontiguousarray(v)).to(self.model.device) for k, v in part.items()}
            size = len(next(iter(batch.values())))
            position = torch.arange(self.rows + first, self.rows + first + size, device=self.model.device)
            with torch.no_grad(), noise.apart(seed, position):
                add(self.sums, self.model.learner.evaluate({**batch, "id": position, "position": position}))

    def tell(self, found: Measured, path: str) -> None:
        from distdl.metrics import named, values

        found.metrics = named(values(self.sums)) if self.sums else {}
        if not self.sums:
            missing = ", ".join(sorted(self.model.columns.keys() - self.model.ways.asked.keys()))
            if not self.judged:
                what = f"{path} does not say what is true of its rows: the model is measured against {missing}"
                raise InputError(what, fix="give a file with the label or the target, or a prepared data set")
        if not (self.judge and self.judged):
            if self.by:
                kinds = "classes, numbers, texts and pictures"
                raise InputError(f"--by {self.by}: groups are told of {kinds}, and this is none of them")
            return
        for name, chosen in self._all_and_groups(found):
            metrics = self.judge.tell(chosen)
            if name is None:
                found.more = metrics
            else:
                found.groups[name] = {"rows": float(chosen.sum()), **metrics}
        if isinstance(self.judge, Classes):
            found.classes, found.confusion = self.judge.confusion()
        found.notes += self.judge.notes

    def _all_and_groups(self, found: Measured) -> Iterator[tuple[str | None, np.ndarray]]:
        import numpy as np

        n = self.judged
        yield None, np.ones(n, bool)
        if not self.by:
            return
        names, number, counts = np.unique([str(v) for v in self.groups], return_inverse=True, return_counts=True)
        largest = np.argsort(-counts, kind="stable")
        if len(largest) > GROUPS:
            found.notes.append(f"{self.by} has {len(largest):,} values; the {GROUPS} with the most rows are told")
        for group in largest[:GROUPS].tolist():
            yield str(names[group]), number == group
