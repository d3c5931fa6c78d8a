"""What the events of a run are called in MLflow, whose pages sort charts by name: sections first, `eval/loss` above all.

eval/loss, train/loss           losses
eval/scores/…, train/scores/…   whatever else is measured of the answers
eval/SPLIT/…                    of a split beside `data.eval_split`
train/lr, train/grad_norm       of the optimizer; a rate that never changes is a param and no chart
time/…                          samples a second, epochs, seconds of a checkpoint, workers where their number changed
system/NODE/…                   each node's load (machine.py)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from distdl.track.spool import Event

NAMING = 1
"""Changes with the names. A run that was begun under others is sent again, whole, from its spool: its charts are complete
under these names, and the points under the old ones stay as they are."""
DEFAULT_SPLITS = (None, "", "eval", "valid", "validation", "val")
"""Splits whose metrics are those of `eval/`."""
OF_THE_OPTIMIZER = ("lr", "grad_norm")
OF_TIME = ("samples_per_s", "epoch")


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    time_ms: int
    step: int


def points_of(event: Event, eval_split: str = "", constant: tuple[str, ...] = ()) -> Iterator[Point]:
    """The metric points that an event holds; none for a malformed event or a kind that MLflow is not told about.

    `eval_split`: the run's `data.eval_split`; `constant`: names that never change in it.
    """
    kind, time_ms, step = event["kind"], int(event["t"] * 1000), event.get("step")
    values: Mapping[str, Any] = {}
    if kind == "metrics":
        values = {_of_training(str(name)): value for name, value in as_dict(event.get("values")).items()}
    elif kind == "evaluation":
        split = event.get("split")
        held_out = split in DEFAULT_SPLITS or split == eval_split
        values = {
            _measured("eval", str(name)) if held_out else f"eval/{split}/{name}": value
            for name, value in as_dict(event.get("values")).items()
        }
    elif kind == "checkpoint":
        values = {"time/checkpoint_s": event.get("seconds"), "time/checkpoint_durable_s": event.get("durable_s")}
    if isinstance(step, int):
        told = {name: value for name, value in values.items() if name not in constant}
        yield from points(told, time_ms, step)


def points(values: Mapping[str, Any], time_ms: int, step: int) -> Iterator[Point]:
    """A point of each value that is a number which a float can hold."""
    for name, value in values.items():
        if isinstance(value, (int, float)):
            with contextlib.suppress(OverflowError):
                yield Point(name, float(value), time_ms, step)


def never_changing(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The metrics that are one number all through a run of this config."""
    schedule = as_dict(config.get("schedule"))
    return ("train/lr",) if schedule.get("name") == "constant" and not schedule.get("warmup_steps") else ()


def _of_training(name: str) -> str:
    if name in OF_TIME:
        return f"time/{name}"
    return f"train/{name}" if name in OF_THE_OPTIMIZER else _measured("train", name)


def _measured(where: str, name: str) -> str:
    return f"{where}/{name}" if "loss" in name.lower() else f"{where}/scores/{name}"


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
