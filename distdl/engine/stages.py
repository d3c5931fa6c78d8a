"""What a pipeline stage holds: its layers' tensors, ties to other stages, and where the stages begin."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from distdl.learner import Batch, Layer, Learner
from distdl.plan.mesh import Mesh, balanced
from distdl.plan.plan import Plan

TIMED = 3
"""Passes through each layer of which the fastest counts; one more comes before, as a warm-up."""


def holders(learner: Learner, layers: Sequence[Layer], bounds: list[int]) -> dict[str, list[int]]:
    """Name of every parameter and buffer -> the stages whose layers use it; a buffer of no layer is on all of them."""
    stages = range(len(bounds) - 1)
    used = [
        {
            id(tensor)
            for layer in layers[bounds[stage] : bounds[stage + 1]]
            for module in layer.modules
            for tensor in (*module.parameters(), *module.buffers())
        }
        for stage in stages
    ]
    held = {name: [s for s in stages if id(p) in used[s]] for name, p in learner.named_parameters()}
    assert all(held.values()), "a parameter that no layer names would not be trained"
    return held | {name: [s for s in stages if id(b) in used[s]] or list(stages) for name, b in learner.named_buffers()}


def free(learner: Learner, names: set[str]) -> None:
    """Frees the memory of these tensors. What is left on the meta device has a name and a shape."""
    for name in names:
        path, _, attribute = name.rpartition(".")
        module = learner.get_submodule(path)
        tensor = getattr(module, attribute)
        meta = tensor.detach().to("meta")
        setattr(
            module, attribute, nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta
        )


def ties(learner: Learner, mesh: Mesh, rank: int, holders: dict[str, list[int]]) -> list[tuple[nn.Parameter, Any]]:
    """Collective. The parameters that this rank's stage shares with others, and the group to sum their gradients over."""
    lines = mesh.lines("pipeline")
    groups: dict[tuple[int, ...], Any] = {}
    parameters = dict(learner.named_parameters())
    for stages in sorted({tuple(holders[name]) for name in parameters if len(holders[name]) > 1}):
        for line in lines:
            ranks = [line[stage] for stage in stages]
            group = dist.new_group(ranks)
            if rank in ranks:
                groups[stages] = group
    return [(p, groups[tuple(holders[name])]) for name, p in parameters.items() if tuple(holders[name]) in groups]


def balanced_by_time(learner: Learner, plan: Plan, sample: Callable[[], Batch] | None) -> list[int]:
    """Collective. Bounds of stages that take the same time for a micro-batch, as measured where `sample` is given: on the
    first rank. An idle machine and a warm one differ, so the bounds may from run to run; the numbers do not."""
    device = torch.device("cuda", torch.cuda.current_device()) if plan.device == "cuda" else torch.device("cpu")
    seconds = torch.zeros(len(plan.model.layers), dtype=torch.float64, device=device)
    if sample is not None:
        seconds.copy_(torch.tensor(layer_seconds(learner, plan, sample(), device), dtype=torch.float64))
    dist.broadcast(seconds, 0)
    return balanced(seconds.tolist(), plan.mesh.pipeline)


def layer_seconds(learner: Learner, plan: Plan, batch: Batch, device: torch.device) -> list[float]:
    """Seconds of each layer's forward and backward pass, the criterion with the last. Leaves the learner as it was."""
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    layers, seconds = learner.layers(), []
    learner.eval()  # nothing is drawn, no statistics move
    x = learner.inputs(batch)
    for layer in layers:
        for module in layer.modules:  # one by one: the whole model may not fit on one device
            module.to(device)
        last = layer is layers[-1]
        passes = []
        for _ in range(1 + TIMED):
            begin = _now(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=plan.settings.train.precision == "bf16"):
                output = layer.run(x)
                loss = learner.criterion(output, batch)[0] if last else output.float().sum()
            loss.backward()
            passes.append(_now(device) - begin)
        seconds.append(min(passes[1:]))
        x = output.detach().requires_grad_(output.is_floating_point())
        for module in layer.modules:
            module.zero_grad(set_to_none=True)
            module.to("cpu")
    learner.train()
    return seconds


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
