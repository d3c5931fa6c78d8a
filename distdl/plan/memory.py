"""How much of a worker's memory the model's state takes, and what to do where it is too much."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from distdl.config.schema import Config
from distdl.errors import Problem
from distdl.plan.birth import WHOLE, born, is_cut
from distdl.plan.deepspeed_json import DEEPSPEED_PREFETCH, overlaps, reduce_bucket
from distdl.plan.facts import Hardware, ModelFacts
from distdl.plan.mesh import Mesh, balanced
from distdl.plan.refuse import layout_problems, memory_problems

USABLE = 0.95
"""Share of a GPU's memory that is left beside CUDA's own, NCCL's buffers and the kernels."""

FLOOR = 700_000_000
"""Bytes that a worker has to itself with a model of nothing: Python, torch, DeepSpeed, the data (benchmarks/memory.py)."""

STATES_PER_WEIGHT = {"none": 0, "sgd": 0, "adam": 2, "adamw": 2, "rmsprop": 1, "adagrad": 1, "lion": 1, "lbfgs": 0}
STATES_PER_WEIGHT |= {"muon": 0, "adafactor": 0, "own": 2}
"""fp32 numbers that each optimizer keeps for a trainable weight; one more with momentum for sgd, rmsprop and muon (whose
embeddings have two of AdamW), rows and columns for adafactor, two of each pair in the history of
lbfgs; of one's own nobody knows, and it counts as Adam."""


def checkpoint_bytes(config: Config, model: ModelFacts) -> int:
    """Of one checkpoint: each weight and the optimizer's states of those that learn, in whole. Buffers are not counted."""
    full = 8 if config.train.precision == "fp64" else 4
    averages = 4 * model.trainable if config.train.ema else 0
    return full * (model.parameters + _states(config) * model.trainable) + averages


def _states(config: Config) -> int:
    """Numbers that the optimizer keeps for a trainable weight."""
    states = STATES_PER_WEIGHT[config.optimizer.name] + bool(getattr(config.optimizer, "momentum", 0))
    return states + 2 * getattr(config.optimizer, "history", 0)


def state_bytes(
    config: Config, model: ModelFacts, mesh: Mesh, device: str = "cpu", of_stage: int | None = None
) -> dict[str, int]:
    """Bytes of model state on a worker of a pipeline's stage (None: the fullest), by ZeRO's own accounting (Rajbhandari et
    al. 2020, table 1); on GPUs with the buffers that DeepSpeed keeps beside it."""
    zero = config.parallel.zero if config.parallel.engine == "deepspeed" else 0
    half_weights = config.train.precision not in ("fp32", "fp64") and zero > 0
    full = 8 if config.train.precision == "fp64" else 4
    width = 2 if half_weights else full
    per_weight = full * _states(config) + (
        4 if half_weights else 0
    )  # optimizer states, and fp32 master weights beside the half ones
    whole = mesh.data * mesh.sequence
    dense = model.trainable - model.experts - model.sharded * (1 - 1 / mesh.tensor)
    frozen = model.parameters - model.trainable
    shares = stage_shares(model, mesh)
    stage = max(shares) if of_stage is None else shares[of_stage]

    def held(from_stage: int, frozen: int = 0) -> float:
        """Elements on a rank of what ZeRO shards from this stage on: experts over the ranks that hold the same ones."""
        ranks = whole if zero >= from_stage else 1
        own = model.experts / mesh.expert / (ranks // mesh.expert if ranks > 1 else 1)
        return (stage * (dense + frozen)) / ranks + own

    found = {
        "weights": math.ceil(width * held(3, frozen)),
        "gradients": math.ceil(full * held(2)),  # half precision sums them in fp32
        "optimizer": math.ceil(per_weight * held(1)),
    }
    if config.train.ema:  # whole on every rank, in fp32
        found["average"] = math.ceil(4 * (stage * dense + model.experts / mesh.expert))
    if device == "cuda" and zero:
        buckets = 2 if overlaps(zero, mesh, model, device) else 1
        # Stage 1 fills its buckets in fp32; the others in the weights' type, and sum an fp32 copy.
        of_bucket = full * buckets if zero == 1 or not half_weights else width * buckets + full
        shard = full * held(1)  # of the gradient, in fp32, while the optimizer steps
        ahead = width * (min(DEEPSPEED_PREFETCH, model.trainable) + 2 * model.largest) if zero == 3 else 0
        found["buffers"] = math.ceil(of_bucket * reduce_bucket(model, device) + shard + ahead)
    return found


def stage_shares(model: ModelFacts, mesh: Mesh) -> list[float]:
    """Of each pipeline stage: the share of the weights that it holds, copies of what it shares with others among them."""
    if mesh.pipeline == 1:
        return [1.0]
    counts = [count for _, count in model.layers]
    bounds = list(itertools.pairwise(balanced([float(count) for count in counts], mesh.pipeline)))
    copies = [sum(n for first, later, n in model.ties if first < a <= later < b) for a, b in bounds]
    return [(sum(counts[a:b]) + copy) / sum(counts) for (a, b), copy in zip(bounds, copies)]


def peaks(config: Config, model: ModelFacts, mesh: Mesh, device: str = "cpu") -> list[dict[str, int]]:
    """Of a worker of each pipeline stage: the bytes that it holds at most, from its start through a checkpoint, by what
    they are for. Activations are not counted; a GPU's worker has the copy for a checkpoint and the floor in host memory."""
    full = 8 if config.train.precision == "fp64" else 4
    whole = is_cut(config, mesh) and born(config, model, mesh) == WHOLE
    sizes = sorted((count for _, count in model.layers), reverse=True)[:2] or [model.largest, model.largest]
    found = []
    for stage in range(mesh.pipeline):
        state = state_bytes(config, model, mesh, device, stage)
        layers = full * sum(sizes) // mesh.tensor
        # Before its share is cut, a model that is made whole is there, and its gradients and states are not yet.
        making = max(0, full * model.parameters - sum(state.values())) if whole else 0
        copy = -(-checkpoint_bytes(config, model) // mesh.world) if config.checkpoint.asynchronous else 0
        found.append(state | {"two largest layers": max(layers, making), "copy for a checkpoint": copy, "floor": FLOOR})
    return found


def on_gpu(config: Config, model: ModelFacts, mesh: Mesh) -> int:
    """Bytes of state that a GPU holds at its fullest: what is offloaded lies elsewhere, and at the start the model is there
    in fp32, before ZeRO cuts it, where it does not cut it as it is made."""
    found = state_bytes(config, model, mesh, "cuda")
    parallel = config.parallel
    if parallel.offload != "none":
        found |= {"optimizer": 0, "buffers": found.get("buffers", 0) // 2}
    if parallel.offload_parameters != "none":
        found["weights"] = 0
    if parallel.zero == 3 and parallel.engine == "deepspeed" and born(config, model, mesh) != WHOLE:
        return sum(found.values())
    uncut = config.model_copy(
        update={
            "parallel": parallel.model_copy(update={"zero": 0}),
            "train": config.train.model_copy(update={"precision": "fp32"}),
        }
    )
    return max(sum(found.values()), state_bytes(uncut, model, mesh)["weights"])


def too_large(config: Config, model: ModelFacts, mesh: Mesh, hardware: Hardware) -> list[Problem]:
    """Where the model's state alone does not fit on a GPU, with the nearest layout whose state does."""
    if hardware.device == "cpu" or not hardware.gpu_memory_bytes:
        return []
    room, needed = USABLE * hardware.gpu_memory_bytes, on_gpu(config, model, mesh)
    if needed <= room:
        return []
    what = (
        f"the state of {model.trainable:,} weights takes {needed / 1e9:.1f} GB of each GPU, which has "
        f"{hardware.gpu_memory_bytes / 1e9:.1f} GB, activations not counted"
    )
    for changes in _smaller(config, mesh):
        parallel = config.parallel.model_copy(update=changes)
        other = config.model_copy(update={"parallel": parallel})
        cut = Mesh(mesh.world // (parallel.tensor * mesh.pipeline * mesh.sequence), parallel.tensor, *_rest(mesh))
        if cut.world != mesh.world or layout_problems(other, model) or memory_problems(other, model, hardware):
            continue
        if on_gpu(other, model, cut) <= room:
            return [Problem(what, fix=" and ".join(f"parallel.{key}={value}" for key, value in changes.items()))]
    return [
        Problem(
            what,
            fix="GPUs with more memory, more of them along parallel.tensor or parallel.pipeline, or a smaller model",
        )
    ]


def _rest(mesh: Mesh) -> tuple[int, int, int]:
    return mesh.pipeline, mesh.sequence, mesh.expert


def _smaller(config: Config, mesh: Mesh) -> Iterator[dict[str, Any]]:
    """Changes of `parallel` that take less memory, those first that cost least time."""
    parallel = config.parallel
    engine: dict[str, Any] = {"engine": "deepspeed"} if parallel.engine == "torch" else {}
    stage = parallel.zero if parallel.engine == "deepspeed" else 0
    for zero in range(stage + 1, 4):
        yield engine | {"zero": zero}
    tensors = [n for n in (2, 4, 8) if n > mesh.tensor and mesh.world % (n * mesh.pipeline * mesh.sequence) == 0]
    for tensor, zero in itertools.product(tensors, range(max(stage, 1), 4)):
        yield engine | {"tensor": tensor} | ({"zero": zero} if zero != stage or engine else {})
    for zero in range(max(stage, 1), 4):
        yield engine | ({"zero": zero} if zero != stage or engine else {}) | {"offload": "cpu"}
    yield engine | {"zero": 3, "offload": "cpu", "offload_parameters": "cpu"}
