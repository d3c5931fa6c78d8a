"""Writes the state of the run on a cadence, at the end, and where an evaluation is among the best so far."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from distdl.checkpoint.prune import cost, prune, ranked
from distdl.checkpoint.save import Copies, Saving
from distdl.checkpoint.state import RunState
from distdl.metrics import Metrics
from distdl.train.hooks.hook import Hook, Run
from distdl.train.hooks.spike import Rollback

LAST_WORDS_S = 30.0
"""Where a rank fails, the checkpoint that is under way has so long to be published."""


class CheckpointHook(Hook):
    """Must come last in the list: it keeps what the other hooks have become.

    Training stands still for a copy; the checkpoint is written beside it (`checkpoint.asynchronous`), one at a time: the
    next one waits, and so do the run's end, a pause, and a return to the last checkpoint.
    """

    def __init__(self, run: Run, folder: Path, every_steps: int | None, hooks: dict[str, Hook]) -> None:
        self.run, self.folder, self.every_steps, self.hooks = run, folder, every_steps, hooks
        beside = run.engine.config.checkpoint.asynchronous
        self._copies = Copies(pinned=run.plan.device == "cuda") if beside else None
        self._under_way: Saving | None = None
        self._still_s: float | None = None
        """How long training stood still for the one under way; None: what became of it is told already."""

    def after_step(self, step: int, metrics: Metrics) -> None:
        run = self.run
        if self._under_way and self._under_way.published:
            self._tell(self._under_way)
        if not (run.paused or run.due(step, self.every_steps) or self._to_be_kept(step)):
            return
        begin = time.perf_counter()
        run.event("phase", name="checkpoint", text=f"step {step}")
        run.engine.pulse.at("checkpoint")
        self._finish()  # what the storage cannot take in time, training waits for
        state = RunState.of(run.engine, run.source, self.hooks, step, run.stopping, self._primary(step))
        if run.spool is not None:
            run.spool.flush()  # who continues from here must find what was told until here, however we end
        self._under_way = Saving(self.folder, run.engine, state, run.attempt, run.preparation, self._copies)
        self._still_s = time.perf_counter() - begin
        if self._copies is None or run.paused or run.last(step):
            self._finish(begin)
        run.seconds["checkpoint"] += time.perf_counter() - begin
        run.engine.pulse.at("after the step")
        run.event("phase", name="training", text="")

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """What is under way at its end is published, as far as that can be. Collective, but where a rank fails."""
        try:
            yield
        except Rollback:
            self._finish()
            raise
        except BaseException:
            if self._under_way:
                self._under_way.wait(LAST_WORDS_S)
                if self._under_way.published:
                    self._tell(self._under_way)
            raise
        self._finish()

    def _finish(self, begin: float | None = None) -> None:
        """Collective. Waits for the one that is under way, for which training stands still since `begin`. Raises
        TrainingFailed where it could not be written."""
        if self._under_way:
            saving, self._under_way = self._under_way, None
            saving.finish()
            if begin is not None:
                self._still_s = time.perf_counter() - begin
            self._tell(saving)

    def _tell(self, saving: Saving) -> None:
        """Once, of the published one: the rest that only the first rank does."""
        if self._still_s is None:
            return
        run, config, still_s = self.run, self.run.engine.config.checkpoint, self._still_s
        self._still_s = None
        if run.rank == 0:
            if not run.attempt.taken_over():
                prune(self.folder, config.keep_last, config.keep_best, run.plan.model.better)
            fields = {"path": str(saving.final), "seconds": still_s, "durable_s": saving.seconds, "bytes": saving.bytes}
            run.event("checkpoint", step=saving.state.step, **fields)

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
            costs = {at: its for its, at, _ in ranked(self.folder, better)}
            if self._under_way and (pending := self._under_way.state).primary is not None:
                costs[pending.step] = cost(pending.primary, better)
            kept, own = sorted(costs.values())[:keep], cost(value, better)
            answer += own == own and (len(kept) < keep or own < kept[-1])
        return bool(self.run.engine.all_sum(answer).item())
