"""What a hook is: a side effect with a cadence, in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distdl.engine.base import Engine
from distdl.learner import Learner
from distdl.metrics import Metrics
from distdl.plan.plan import Plan
from distdl.run.attempts import Attempt
from distdl.track.spool import SpoolWriter


@dataclass
class Run:
    """What the hooks of a rank share."""

    plan: Plan
    rank: int
    learner: Learner
    engine: Engine
    source: Any
    """The training source; `state_dict()` is where it is."""
    spool: SpoolWriter | None
    """Events for the display and the tracker; None on every rank but the first."""
    seconds: dict[str, float] = field(default_factory=lambda: {"evaluation": 0.0, "checkpoint": 0.0})
    """Where time went, by activity."""
    evaluation: tuple[int, dict[str, float]] | None = None
    """Step and values of the latest evaluation."""
    stopping: bool = False
    """Set by the hook that wants the run to end with this step."""
    paused: bool = False
    """Set by the hook that ends this session with this step: a checkpoint is written, and nothing is done as at the end."""
    preparation: Mapping[str, Any] = field(default_factory=dict)
    """How the data set came from raw values, for the checkpoints."""
    attempt: Attempt = field(default_factory=Attempt)
    """May this process still write?"""

    def event(self, kind: str, **fields: Any) -> None:
        """Tells the display and the tracker, from the first rank only."""
        if self.spool is not None:
            self.spool.write(kind, **fields)

    def last(self, step: int) -> bool:
        """Whether `step` is the run's last."""
        return self.stopping or step == self.plan.steps

    def due(self, step: int, every_steps: int | None) -> bool:
        """Whether something done every so many steps (0: only at the end, None: at each epoch's end, too) is due now."""
        return self.last(step) or self.plan.due(step, every_steps)


class Hook:
    """Base of all hooks. The order of the list is the order of the effects."""

    wants_stop = False

    def after_step(self, step: int, metrics: Metrics) -> None:
        """Called by every rank after optimizer step number `step` (1-based) with this rank's sums of the step."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable state that a checkpoint keeps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to a saved state."""
