"""How long NCCL waits for a collective: as long as the config says until steps are known, and beside the steps; within
them a few times as long as they take.

A rank that hangs is found and named by the driver (`runtime/watch.py`) before that. What it cannot tell is a collective in
which all ranks stand: that ends by NCCL's own timeout, of ten minutes by default, while all GPUs wait.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from torch.distributed import distributed_c10d

from distdl.plan.plan import Plan
from distdl.run.heartbeat import DEFAULT_HANG_S, TIMES_MEDIAN, Pulse

TIMES_LIMIT = 4
"""What NCCL waits, by what the driver gives a step: it comes last, since it names nobody."""


class Patience:
    """Sets the timeout of all of this process's groups, on GPUs. An evaluation or a checkpoint may take what it takes."""

    def __init__(self, plan: Plan) -> None:
        guard, runtime = plan.settings.guard, plan.settings.runtime
        self.hang_s = DEFAULT_HANG_S if guard.hang_s is None else guard.hang_s
        self.long_s = runtime.timeout_s
        self.active = plan.device == "cuda" and plan.world > 1
        self.now_s = 0.0

    def in_step(self, pulse: Pulse) -> None:
        """A step begins."""
        usual_s = pulse.usual_step_s()
        if usual_s is None or not self.hang_s:
            self._set(self.long_s)
        else:
            self._set(min(self.long_s, TIMES_LIMIT * max(self.hang_s, TIMES_MEDIAN * usual_s)))

    def beside_steps(self) -> None:
        """A step is over: hooks follow."""
        self._set(self.long_s)

    def _set(self, seconds: float) -> None:
        if not self.active or seconds == self.now_s:
            return
        self.now_s = seconds
        for group in groups():
            distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def groups() -> list[Any]:
    """All process groups that this rank is in, DeepSpeed's own among them."""
    return [group for group in distributed_c10d._world.pg_map if not distributed_c10d._rank_not_in_group(group)]
