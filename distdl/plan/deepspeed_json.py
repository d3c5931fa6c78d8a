"""The DeepSpeed JSON of a run, written out in full and checked strictly.

DeepSpeed accepts an unknown top-level key such as `zero_optimisation:` in silence, and clips at 1.0 when
`gradient_clipping` is left out; so every key that matters is written, and the user's were checked (deepspeed_keys.py).
"""

from __future__ import annotations

from typing import Any

from distdl.config.schema import Config
from distdl.plan.batch import BatchSplit
from distdl.plan.birth import SMALL
from distdl.plan.facts import ModelFacts
from distdl.plan.mesh import Mesh

DEEPSPEED_BUCKET = 500_000_000
"""Elements of DeepSpeed's default communication buckets."""

DEEPSPEED_PERSISTENCE, DEEPSPEED_PREFETCH = 100_000, 50_000_000
"""DeepSpeed's default: elements of a tensor that stage 3 leaves whole on every rank, and that it gathers ahead."""

DEEPSPEED_NVME_BUFFER = 100_000_000
"""Elements of DeepSpeed's default buffers between memory and disk; the largest parameter must fit into one."""


GPU_BUCKET = 50_000_000
"""Elements that GPUs reduce at a time, while the backward pass goes on: enough to fill a network, as few as leave little to
wait for at the end."""

PIECES = 8
"""Reductions of a model that is smaller than eight of those: a bucket as large as the model is full when all is over."""

CPU_BUCKET = 2**22
"""Elements that CPUs reduce at a time of a large model that is cut: what is larger goes by itself, and is not copied."""

REASONS = {
    "data_types": "sums of micro-batches in bf16 round what is added away",
    "communication_data_type": "sums over ranks likewise",
    "train_batch_size": "to DeepSpeed a rank with a slice of a sequence has samples of its own: the product must come out",
    "train_micro_batch_size_per_gpu": "the plan's",
    "gradient_accumulation_steps": "the plan's",
    "gradient_clipping": "left out, DeepSpeed clips at 1.0",
    "zero_force_ds_cpu_optimizer": "an offloaded optimizer stays torch's: the same numbers, nothing compiled at the start",
    "bf16": "at stage 0 it would take an optimizer without fp32 master weights, which drifts by 0.1 in the loss within ten "
    "steps; there the weights stay fp32 and autocast does the arithmetic in bf16",
    "fp16": "its loss scale 0 is a dynamic one",
    "zero_allow_untested_optimizer": "the optimizers are torch's",
    "steps_per_print": "the log is ours",
    "stage": "parallel.zero",
    "reduce_bucket_size": "DeepSpeed allocates whole buckets of 5e8 elements (2 GB) whatever the model's size. On GPUs "
    "several fill during the backward pass, and the largest tensor fits into one; on CPUs all goes at once, but of large "
    "models that are cut",
    "allgather_bucket_size": "likewise; the weights are gathered after the step, when nothing else goes on",
    "overlap_comm": "on stages 1 and 2 DeepSpeed reduces after the backward pass unless told otherwise; not in a pipeline, "
    "which it does not overlap, nor at stage 1 where a family is not proven on stage 2, whose path this takes",
    "reduce_scatter": "DeepSpeed's way to it sums whole buckets, too, and copies them twice; experts need it, and GPUs "
    "keep it until both have been measured there",
    "stage3_param_persistence_threshold": "0 on CPUs, so that small models, too, are sharded when a test asks for stage 3; "
    "on GPUs DeepSpeed's own: a hundred gains and biases need not be gathered one by one",
    "stage3_prefetch_bucket_size": "DeepSpeed's own, written out: elements of the next layers that are gathered ahead; "
    "none on CPUs where a model is large: they do nothing beside",
    "stage3_max_live_parameters": "DeepSpeed keeps 1e9 gathered elements, all of many a model: large ones on CPUs keep "
    "what a layer needs",
    "stage3_max_reuse_distance": "likewise: what is used again within so many elements is not let go of",
    "sub_group_size": "DeepSpeed copies the gradients of 1e9 elements of a shard for a step of the optimizer",
    "offload_optimizer": "parallel.offload; pinned memory on GPUs, which copy from it while they compute, and not on CPUs, "
    "where it would compile an operator at the start",
    "offload_param": "parallel.offload_parameters; likewise",
}
"""Key of the JSON, or of its `zero_optimization` -> why it is written."""


def deepspeed_json(config: Config, split: BatchSplit, mesh: Mesh, model: ModelFacts, device: str) -> dict[str, Any]:
    """The JSON that `deepspeed.initialize` gets: each key for the reason in REASONS."""
    extra, stage = config.parallel.deepspeed, config.parallel.zero
    bf16 = config.train.precision in ("bf16", "fp8")  # 8-bit products between 16-bit activations
    half = stage > 0 and config.train.precision not in ("fp32", "fp64")
    zero_extra = extra.get("zero_optimization", {})
    return {
        # Beyond some dozens of addends that agree, a bf16 sum of 8 bits rounds what is added away (512 micro-batches gave a
        # step that was a fifth too short).
        **({"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"} if half else {}),
        **{key: value for key, value in extra.items() if key != "zero_optimization"},
        "train_batch_size": split.global_batch * mesh.sequence,
        "train_micro_batch_size_per_gpu": split.micro_batch,
        "gradient_accumulation_steps": split.accumulate,
        "gradient_clipping": config.train.clip_norm or 0.0,
        "zero_optimization": {
            "stage": stage,
            **_traffic(stage, mesh, model, device),
            **_offload(config, model.trainable, device),
            **zero_extra,
        },
        **({"zero_force_ds_cpu_optimizer": False} if config.parallel.offload != "none" else {}),
        "bf16": {"enabled": bf16 and stage > 0},
        **({"fp16": {"enabled": True, "loss_scale": 0}} if config.train.precision == "fp16" else {}),
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def reduce_bucket(model: ModelFacts, device: str) -> int:
    """Elements of gradients that are reduced at a time."""
    whole = min(DEEPSPEED_BUCKET, _even(model.trainable))
    if device == "cpu":
        return whole
    return min(whole, _even(max(model.largest, min(GPU_BUCKET, model.trainable // PIECES))))


def overlaps(stage: int, mesh: Mesh, model: ModelFacts, device: str) -> bool:
    """Whether gradients are reduced while the backward pass goes on."""
    proven = stage >= 2 or (stage == 1 and "zero2" in model.layouts)
    return device == "cuda" and proven and mesh.pipeline == 1


def _traffic(stage: int, mesh: Mesh, model: ModelFacts, device: str) -> dict[str, Any]:
    """What travels between the ranks at a time, and when."""
    cut = stage == 3 or max(mesh.tensor, mesh.pipeline, mesh.expert) > 1  # then no rank need have all gradients
    bucket = CPU_BUCKET if device == "cpu" and cut and model.trainable > SMALL else reduce_bucket(model, device)
    keys: dict[str, Any] = {
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": min(DEEPSPEED_BUCKET, _even(model.trainable)),
    }
    if device == "cpu" and stage in (1, 2) and mesh.expert == 1:
        keys["reduce_scatter"] = False
    if overlaps(stage, mesh, model, device):
        keys["overlap_comm"] = True
    if stage == 3:
        keys["stage3_param_persistence_threshold"] = 0 if device == "cpu" else DEEPSPEED_PERSISTENCE
        keys |= {"stage3_prefetch_bucket_size": DEEPSPEED_PREFETCH} if device == "cuda" else {}
    if stage == 3 and device == "cpu" and model.trainable > SMALL:
        largest = _even(max(model.largest, *(count for _, count in model.layers), 0))
        keys |= {"stage3_max_live_parameters": largest, "stage3_max_reuse_distance": 0}
        keys |= {"stage3_prefetch_bucket_size": 0, "sub_group_size": _even(largest // (mesh.data * mesh.sequence))}
    return keys


def _even(elements: int) -> int:
    """DeepSpeed insists on an even number."""
    return -(-max(elements, 1) // 1024) * 1024


def _offload(config: Config, trainable: int, device: str) -> dict[str, Any]:
    """Where ZeRO keeps the optimizer's state and the weights."""
    parallel, keys = config.parallel, dict[str, Any]()
    for key, place in (("offload_optimizer", parallel.offload), ("offload_param", parallel.offload_parameters)):
        if place != "none":
            where = {"nvme_path": parallel.nvme_path} if place == "nvme" else {"pin_memory": device == "cuda"}
            keys[key] = {"device": place, **where}
            if place == "nvme" and key == "offload_param":  # five of these, 2 GB by default, whatever the model's size
                keys[key]["buffer_size"] = min(DEEPSPEED_NVME_BUFFER, max(trainable, 1))
    return keys
