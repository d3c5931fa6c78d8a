"""Says where a number stopped being one: the step, the first bad tensor and the samples, before anything is spoiled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from distdl.errors import TrainingFailed
from distdl.layout import noise
from distdl.learner import Batch, Learner
from distdl.nn.watch import as_written
from distdl.plan.plan import Plan

ADVICE = "lower optimizer.lr, lengthen schedule.warmup_steps, set train.clip_norm, or look at these samples"


def stop(learner: Learner, plan: Plan, batch: Batch, step: int, loss: float) -> NoReturn:
    """Raises TrainingFailed for a loss that is not finite; the weights are still those of the step before."""
    first = first_bad(learner, plan, batch, step)
    raise TrainingFailed(
        f"the loss of step {step + 1} is {loss}: the first tensor that is not finite is {first}.\n"
        f"    samples of this rank's micro-batch (row numbers): {row_numbers(batch)}\n"
        f"    nothing was learned from it; the last checkpoint is sound\n    fix: {ADVICE}"
    )


def late(learner: Learner, plan: Plan, batch: Batch, step: int, bad: tuple[int, float], rows: Sequence[Tensor]) -> str:
    """What `stop` says, where it was noticed after the backward passes of the step: of a micro-batch before the last one
    only the samples are left."""
    micro, loss = bad
    last = micro == len(rows) - 1
    of_several = f" in micro-batch {micro + 1} of {len(rows)}" if len(rows) > 1 else ""
    first = f": the first tensor that is not finite is {first_bad(learner, plan, batch, step)}" if last else ""
    return (
        f"the loss of step {step + 1} is {loss}{of_several}{first}.\n"
        f"    samples of this micro-batch (row numbers): {row_numbers({'id': rows[micro]})}\n"
        f"    no checkpoint holds what came of it; the last one is sound\n    fix: {ADVICE}"
    )


def stop_gradient(module: nn.Module, batch: Batch, step: int, loss: float) -> NoReturn:
    """Raises TrainingFailed for a gradient that is not finite while the loss was."""
    bad = next((name for name, p in module.named_parameters() if is_bad(p.grad) or is_bad(p)), "a sharded gradient")
    raise TrainingFailed(
        f"the gradient of step {step + 1} is not finite (the loss was {loss:.6g}): the first bad tensor is that of {bad}.\n"
        f"    samples of this rank's micro-batch (row numbers): {row_numbers(batch)}\n"
        f"    no checkpoint holds it; the last one is sound\n    fix: {ADVICE}"
    )


def first_bad(learner: Learner, plan: Plan, batch: Batch, step: int) -> str:
    """The first non-finite tensor of the forward pass, in order: a column, a weight, a module's output, the loss."""
    for name, column in batch.items():
        if is_bad(column):
            return f"the column {name!r} of the batch"
    for name, parameter in learner.named_parameters():
        if parameter.device.type != "meta" and is_bad(parameter):
            return f"the weight {name}"
    if plan.world > 1 and (plan.layout.startswith("zero3") or plan.mesh.model_parallel):
        return f"inside the forward pass (one rank alone cannot run its modules again under {plan.layout})"
    found: list[str] = []
    handles = [m.register_forward_hook(watch(name, found)) for name, m in learner.named_modules() if name]
    try:
        with torch.no_grad(), as_written():
            noise.begin(plan.settings.seed, batch["position"])  # the masks of the pass that failed
            learner(batch, step)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "the loss itself, with every module's output finite"


def first_bad_row(source: Iterable[tuple[Batch, bool]]) -> tuple[int, str] | None:
    """(row number, column) of the first held-out row of this rank that is not finite, or None."""
    for batch, real in source:
        for name, column in batch.items():
            if real and is_bad(column):
                rows = ~torch.isfinite(column.reshape(len(column), -1)).all(-1)
                return int(batch["id"][int(rows.nonzero()[0])]), name
    return None


def watch(name: str, found: list[str]) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if not found and any(is_bad(t) for t in (output if isinstance(output, tuple | list) else (output,))):
            found.append(f"the output of {name} ({type(module).__name__})")

    return hook


def is_bad(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())


def row_numbers(batch: Batch) -> str:
    ids = batch["id"].tolist() if "id" in batch else []
    return ", ".join(map(str, ids[:32])) + (f", … ({len(ids)} in all)" if len(ids) > 32 else "")
