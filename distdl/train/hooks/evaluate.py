"""Evaluates the held-out split on a cadence and at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist

from distdl.engine import nonfinite
from distdl.metrics import Metrics
from distdl.train.hooks.hook import Hook, Run
from distdl.train.hooks.pictures import Pictures
from distdl.train.loop import evaluate


class Evaluate(Hook):
    """Every rank takes part; the values are exact over the whole split and the same on every rank."""

    def __init__(self, run: Run, source: Iterable[Any], every_steps: int | None) -> None:
        self.run, self.source, self.every_steps = run, source, every_steps
        self._said = False
        self._pictures = Pictures(run)

    def after_step(self, step: int, metrics: Metrics) -> None:
        if not self.run.due(step, self.every_steps):
            return
        begin = time.perf_counter()
        self.run.event("phase", name="evaluation", text=f"step {step}")
        self.run.engine.pulse.at("evaluation")
        split = self.run.engine.config.data.eval_split
        with self._pictures.look(step, str(split)):
            values = evaluate(self.run.learner, self.run.engine, self._pictures.batches(self.source))
        self.run.engine.pulse.at("after the step")
        self._say_what_is_not_finite(step, values)
        self._say_no_better_than_the_mean(step, values)
        self.run.engine.pulse.at("after the step")
        self.run.evaluation = (step, values)
        self.run.event("evaluation", step=step, values=values, split=split)
        self.run.event("phase", name="training", text="")
        self.run.seconds["evaluation"] += time.perf_counter() - begin

    def _say_what_is_not_finite(self, step: int, values: dict[str, float]) -> None:
        """Names the held-out rows at fault, once. Collective where a value is not finite, which every rank sees alike."""
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if not bad or self._said or not self.run.engine.config.guard.nonfinite:
            return
        self._said = True
        place = nonfinite.first_bad_row(self.source)
        places = [place]
        if self.run.plan.world > 1:
            places = [None] * self.run.plan.world
            dist.all_gather_object(places, place)
        split = self.run.engine.config.data.eval_split
        where = min((p for p in places if p), default=None)
        why = f"row {where[0]} has one in the column {where[1]!r}" if where else "every row's columns are finite"
        text = (
            f"in the evaluation of step {step}, {', '.join(bad)} is not a finite number: of the split {split!r}, {why}"
        )
        self.run.event("message", level="warning", text=text)

    def _say_no_better_than_the_mean(self, step: int, values: dict[str, float]) -> None:
        """At the end: a run may finish and have learned nothing."""
        r2 = values.get("r2")
        if r2 is None or r2 > 0 or not self.run.last(step):
            return
        split = self.run.engine.config.data.eval_split
        text = (
            f"the run ends no better than the mean: on the split {split!r}, r2 is {r2:.3g} (rmse {values['rmse']:.4g}), "
            "and always to tell the split's mean has 0; more steps, another optimizer.lr, or other features"
        )
        self.run.event("message", level="warning", text=text)

    def state_dict(self) -> dict[str, Any]:
        return {"evaluation": self.run.evaluation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        step_values = state["evaluation"]
        self.run.evaluation = (step_values[0], step_values[1]) if step_values else None


def at_the_end(run: Run, source: Iterable[Any], split: str, step: int) -> dict[str, float]:
    """The metrics of `data.test_split`, called test_…, of the weights that the run has ended with."""
    begin = time.perf_counter()
    run.event("phase", name="evaluation", text=f"split {split}")
    run.engine.pulse.at("evaluation")
    values = evaluate(run.learner, run.engine, source)
    run.event("evaluation", step=step, values=values, split=split)
    run.seconds["evaluation"] += time.perf_counter() - begin
    return {f"test_{name}": value for name, value in values.items()}
