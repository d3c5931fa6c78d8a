"""Evaluates the held-out split on a cadence and at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from distdl.hooks.hook import Hook, Run
from distdl.loop import evaluate
from distdl.metrics import Metrics


class Evaluate(Hook):
    """Every rank takes part; the values are exact over the whole split and the same on every rank."""

    def __init__(self, run: Run, source: Iterable[Any], every_steps: int) -> None:
        self.run, self.source, self.every_steps = run, source, every_steps

    def after_step(self, step: int, metrics: Metrics) -> None:
        if not self.run.due(step, self.every_steps):
            return
        begin = time.perf_counter()
        self.run.event("phase", name="evaluation", text=f"step {step}")
        values = evaluate(self.run.learner, self.run.engine, self.source)
        self.run.evaluation = (step, values)
        self.run.event("evaluation", step=step, values=values, split=self.run.engine.config.data.eval_split)
        self.run.event("phase", name="training", text="")
        self.run.seconds["evaluation"] += time.perf_counter() - begin

    def state_dict(self) -> dict[str, Any]:
        return {"evaluation": self.run.evaluation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        step_values = state["evaluation"]
        self.run.evaluation = (step_values[0], step_values[1]) if step_values else None
