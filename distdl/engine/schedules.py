"""Learning-rate schedules: pure functions of the step, so that a resume needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from distdl.config.schema import Config


def lr_factor(schedule: Any, step: int, steps: int) -> float:
    """Share of the peak learning rate at `step` (0-based) of `steps`."""
    warmup = schedule.warmup_steps
    if schedule.name == "one_cycle":
        if step < warmup:
            return _cosine(schedule.initial, 1.0, step / warmup)
        return _cosine(1.0, schedule.final, (step - warmup) / max(1, steps - 1 - warmup))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule.name == "wsd":
        return _stable_then_down(schedule, step, steps)
    done = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))  # 0 at the peak, 1 at the last step
    if schedule.name == "linear":
        return 1.0 + (schedule.final - 1.0) * done
    if schedule.name == "cosine":
        return _cosine(1.0, schedule.final, done)
    if schedule.name == "step":
        return float(schedule.gamma ** ((step - warmup) // schedule.every_steps))
    return 1.0


def _stable_then_down(schedule: Any, step: int, steps: int) -> float:
    down = max(1, round(schedule.decay * steps))
    done = min(1.0, max(0, step - (steps - 1 - down)) / down)
    if schedule.shape == "cosine":
        return _cosine(1.0, schedule.final, done)
    return 1.0 + (schedule.final - 1.0) * (math.sqrt(done) if schedule.shape == "sqrt" else done)


def learning_rate(config: Config, steps: int) -> Callable[[int], float]:
    """step (0-based) -> learning rate."""
    return lambda step: config.optimizer.lr * lr_factor(config.schedule, step, steps)


def stretched(config: Config, step: int, before: int, steps: int) -> str | None:
    """What happens to the learning rate where a run that is at `step` of `before` steps is given another end, in words;
    None where nothing does."""
    if not 0 < step < steps or before == steps:
        return None
    was, goes_on = learning_rate(config, before)(step - 1), learning_rate(config, steps)(step)
    ahead = learning_rate(config, before)(min(step, before - 1))
    if math.isclose(goes_on, ahead, rel_tol=1e-9, abs_tol=1e-12):
        return None
    return (
        f"the {config.schedule.name} schedule of {before:,} steps becomes one of {steps:,}: the learning rate was "
        f"{was:.3g} at step {step:,}, the last that was taken, and is {goes_on:.3g} at step {step + 1:,}"
    )


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, done))) / 2
