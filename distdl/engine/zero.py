"""What DeepSpeed's ZeRO optimizers are made to do from outside: sum in fp32 at stage 1, and leave a step out."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def stage_1_of_its_own_class() -> Iterator[None]:
    """Within it, an engine of ZeRO-1 in bf16 gets the optimizer that fp16 and stage 2 have, which sums in fp32 as well.

    DeepSpeed would take its BF16_Optimizer, which keeps its shards elsewhere, ignores a gradient that is not finite, and
    holds both sums of the whole model all the time; one class for stages 1 and 2 means one checkpoint and one clipping.
    """
    from deepspeed.runtime import engine

    of_class, choose = engine.DeepSpeedEngine, engine.DeepSpeedEngine._do_optimizer_sanity_check

    def chosen(self: Any, optimizer: Any) -> Any:
        wrapper = choose(self, optimizer)
        return engine.ZERO_OPTIMIZATION if wrapper == engine.BFLOAT16 and self.zero_optimization() else wrapper

    of_class._do_optimizer_sanity_check = chosen
    try:
        yield
    finally:
        of_class._do_optimizer_sanity_check = choose


def loss_scale(engine: Any) -> float:
    """What a DeepSpeed engine multiplies the loss by now, and so every gradient until its step: fp16's, else 1."""
    return float(getattr(engine.optimizer, "loss_scale", 1.0))


_OF_A_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What DeepSpeed's dynamic scale of a loss decides by when it rises and falls."""


def scale_kept(engine: Any) -> dict[str, float]:
    """The state of a DeepSpeed engine's dynamic loss scale; {} without one."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {key: getattr(scaler, key) for key in _OF_A_SCALE} if getattr(scaler, "dynamic", False) else {}


def scale_restored(engine: Any, kept: Mapping[str, float]) -> None:
    """Puts it back, where the engine has one: otherwise nothing is scaled, and nothing of it need be known."""
    if scale_kept(engine):
        vars(engine.optimizer.loss_scaler).update({key: kept[key] for key in _OF_A_SCALE if key in kept})


@contextlib.contextmanager
def step_left_out(engine: Any, zero: int) -> Iterator[None]:
    """Within it, a DeepSpeed engine's step drops the gradients and counts, and the optimizer does nothing: as where fp16
    overflows, but the loss scale stays."""
    optimizer = engine.optimizer

    def dropped(*args: Any, **kwargs: Any) -> None:
        optimizer.overflow = True

    instead: dict[str, Any] = {"step": lambda *args, **kwargs: None}
    if zero:
        instead = {
            "check_grad_overflow": True,
            "check_overflow": dropped,
            "_update_scale": lambda *args, **kwargs: None,
            "step": functools.partial(type(optimizer).step, optimizer),  # its own, which looks for an overflow
        }
        instead |= {"_overflow_check_and_loss_scale_update": dropped} if zero == 3 else {}
    own = {name: vars(optimizer)[name] for name in instead if name in vars(optimizer)}
    vars(optimizer).update(instead)
    try:
        yield
    finally:
        for name in instead:
            del vars(optimizer)[name]
        vars(optimizer).update(own)
