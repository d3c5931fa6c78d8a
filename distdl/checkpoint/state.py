"""The state of a run beside its tensors, state.json: what a checkpoint puts together and a worker takes apart again."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_origin, get_type_hints

from distdl.checkpoint.layout import STATE, Damaged, not_of_type
from distdl.engine.base import Engine
from distdl.errors import DataCorrupt
from distdl.files import read_json
from distdl.layout.owned import Read


class Stateful(Protocol):
    """What goes on where it was: the training source, a hook."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class RunState:
    """Where a run is. Its fields are the keys of state.json."""

    step: int
    """Optimizer steps that are done."""
    stopped: bool
    """A hook has ended the run with this step."""
    data: dict[str, Any]
    """The training source's own: its place in the stream of samples."""
    optimizer_steps: dict[str, int]
    """Player -> steps that its optimizer took."""
    hooks: dict[str, dict[str, Any]]
    """Name -> what the hook keeps."""
    primary: float | None = None
    """The metric that decides, where this step was evaluated."""
    loss_scales: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """Player -> what its dynamic loss scale goes on with; not in the file of a run without one."""

    @staticmethod
    def of(
        engine: Engine, source: Stateful, hooks: Mapping[str, Stateful], step: int, stopped: bool, primary: float | None
    ) -> RunState:
        """The state after `step` steps."""
        kept = {name: hook.state_dict() for name, hook in hooks.items()}
        steps, scales = dict(engine.optimizer_steps), engine.loss_scales()
        return RunState(step, stopped, source.state_dict(), steps, kept, primary, scales)

    def restore(
        self,
        engine: Engine,
        source: Stateful,
        hooks: Mapping[str, Stateful],
        read: Read,
        names: Collection[str],
    ) -> None:
        """Puts the optimizer, whose tensors `read` gives by their `names`, the data and the hooks where they were. A hook
        that the run did not have then begins anew."""
        engine.load_optimizer(read, set(names), self.optimizer_steps)
        engine.load_loss_scales(self.loss_scales)
        source.load_state_dict(self.data)
        for name, hook in hooks.items():
            if name in self.hooks:
                hook.load_state_dict(self.hooks[name])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for state.json."""
        values = dataclasses.asdict(self)
        return values if self.loss_scales else {key: value for key, value in values.items() if key != "loss_scales"}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> RunState:
        """The state of a checked state.json. What an older one lacks has its default."""
        return RunState(**{name: values[name] for name in _FIELDS if name in values})


_FIELDS = [field.name for field in dataclasses.fields(RunState)]
_SOMETIMES = ("primary", "loss_scales")
_KINDS = {name: get_origin(kind) or kind for name, kind in get_type_hints(RunState).items() if name not in _SOMETIMES}
"""What every state.json has, and of what type."""


def _scales_wrong(scales: Any) -> str:
    each = scales.values() if isinstance(scales, dict) else [None]
    sound = all(isinstance(kept, dict) and all(isinstance(x, int | float) for x in kept.values()) for kept in each)
    return "" if sound else "loss_scales has no mapping of numbers for each player"


def glance(path: Path) -> tuple[Any, Any]:
    """(step, primary) as the state.json of a checkpoint says them, whatever else is in it; None for what it does not say.
    Raises DataCorrupt where it cannot be read."""
    state = read_json(path / STATE) or {}
    return state.get("step"), state.get("primary")


def read_state(path: Path) -> RunState:
    """The state.json of a checkpoint. Raises DataCorrupt."""
    try:
        state = read_json(path / STATE)
    except DataCorrupt as error:
        raise Damaged(path, f"is damaged: {error}") from None
    if state is None:
        raise Damaged(path, f"is not whole: {STATE} is missing")
    if wrong := not_of_type(state, _KINDS) or _scales_wrong(state.get("loss_scales", {})):
        raise Damaged(path, f"is damaged: in {STATE}, {wrong}")
    return RunState.from_dict(state)
