"""Writes the state of the run on a cadence and at the end."""

from __future__ import annotations

import time
from pathlib import Path

from distdl.checkpoint.prune import prune
from distdl.checkpoint.save import save
from distdl.hooks.hook import Hook, Run
from distdl.metrics import Metrics


class CheckpointHook(Hook):
    """Must come last in the list: it keeps what the other hooks have become."""

    def __init__(self, run: Run, folder: Path, every_steps: int, hooks: dict[str, Hook]) -> None:
        self.run, self.folder, self.every_steps, self.hooks = run, folder, every_steps, hooks

    def after_step(self, step: int, metrics: Metrics) -> None:
        if not (self.run.paused or self.run.due(step, self.every_steps)):
            return
        begin = time.perf_counter()
        self.run.event("phase", name="checkpoint", text=f"step {step}")
        self.run.engine.pulse.at("checkpoint")
        plan, config = self.run.plan, self.run.engine.config.checkpoint
        fresh = self.run.evaluation is not None and self.run.evaluation[0] == step
        state = {
            "step": step,
            "stopped": self.run.stopping,
            "data": self.run.source.state_dict(),
            "optimizer_steps": self.run.engine.optimizer_steps,
            "hooks": {name: hook.state_dict() for name, hook in self.hooks.items()},
            "primary": self.run.evaluation[1].get(plan.model.primary) if fresh and self.run.evaluation else None,
        }
        if self.run.spool is not None:
            self.run.spool.flush()  # who continues from here must find what was told until here, however we end
        path, size = save(self.folder, self.run.engine, state, self.run.attempt)
        if self.run.rank == 0 and not self.run.attempt.taken_over():
            prune(self.folder, config.keep_last, config.keep_best, plan.model.better)
        seconds = time.perf_counter() - begin
        self.run.seconds["checkpoint"] += seconds
        self.run.event("checkpoint", step=step, path=str(path), seconds=seconds, bytes=size)
        self.run.engine.pulse.at("after the step")
        self.run.event("phase", name="training", text="")
