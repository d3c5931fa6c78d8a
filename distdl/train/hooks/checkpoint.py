"""Writes the state of the run on a cadence, at the end, and where an evaluation is among the best so far."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from distdl.checkpoint.prune import prune, ranked
from distdl.checkpoint.save import save
from distdl.checkpoint.state import RunState
from distdl.metrics import Metrics
from distdl.train.hooks.hook import Hook, Run


class CheckpointHook(Hook):
    """Must come last in the list: it keeps what the other hooks have become."""

    def __init__(self, run: Run, folder: Path, every_steps: int | None, hooks: dict[str, Hook]) -> None:
        self.run, self.folder, self.every_steps, self.hooks = run, folder, every_steps, hooks

    def after_step(self, step: int, metrics: Metrics) -> None:
        if not (self.run.paused or self.run.due(step, self.every_steps) or self._to_be_kept(step)):
            return
        begin = time.perf_counter()
        self.run.event("phase", name="checkpoint", text=f"step {step}")
        self.run.engine.pulse.at("checkpoint")
        plan, config = self.run.plan, self.run.engine.config.checkpoint
        run, primary = self.run, self._primary(step)
        state = RunState.of(run.engine, run.source, self.hooks, step, run.stopping, primary)
        if self.run.spool is not None:
            self.run.spool.flush()  # who continues from here must find what was told until here, however we end
        path, size = save(self.folder, run.engine, state, run.attempt, run.preparation)
        if self.run.rank == 0 and not self.run.attempt.taken_over():
            prune(self.folder, config.keep_last, config.keep_best, plan.model.better)
        seconds = time.perf_counter() - begin
        self.run.seconds["checkpoint"] += seconds
        self.run.event("checkpoint", step=step, path=str(path), seconds=seconds, bytes=size)
        self.run.engine.pulse.at("after the step")
        self.run.event("phase", name="training", text="")

    def _primary(self, step: int) -> float | None:
        """The metric that decides, where this step was evaluated."""
        evaluation = self.run.evaluation
        return evaluation[1].get(self.run.plan.model.primary) if evaluation and evaluation[0] == step else None

    def _to_be_kept(self, step: int) -> bool:
        """Whether the step was evaluated and is among the `keep_best` so far: what is called best was saved whatever the
        two cadences. Collective where it was evaluated: the first rank looks at what lies in the folder, for all."""
        value, keep = self._primary(step), self.run.engine.config.checkpoint.keep_best
        if value is None or not keep:
            return False
        answer = torch.zeros(1, dtype=torch.int64, device=self.run.engine.device)
        if self.run.rank == 0:
            better = self.run.plan.model.better
            kept = ranked(self.folder, better)[:keep]
            cost = -value if better == "higher" else value
            answer += cost == cost and (len(kept) < keep or cost < kept[-1][0])
        return bool(self.run.engine.all_sum(answer).item())
