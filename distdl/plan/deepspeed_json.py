"""The DeepSpeed JSON of a run, written out in full and checked strictly.

DeepSpeed accepts an unknown top-level key such as `zero_optimisation:` in silence, and clips at 1.0 when
`gradient_clipping` is left out; so every key that matters is written, and every key of the user's is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distdl.config import Config
from distdl.errors import InputError, Problem, did_you_mean
from distdl.plan.batch import BatchSplit

DERIVED = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.micro_batch",
    "gradient_clipping": "train.clip_norm",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "torch_autocast": "train.precision",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "zero_allow_untested_optimizer": "optimizer",
    "steps_per_print": "track.every_steps",
}
"""DeepSpeed keys that distdl decides, and the config key that decides them."""

DEEPSPEED_BUCKET = 500_000_000
"""Elements of DeepSpeed's default communication buckets."""

ALLOWED = [
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "sparse_gradients",
    "data_types",
    "graph_harvesting",
    "dump_state",
    "wall_clock_breakdown",
    "memory_breakdown",
    "comms_logger",
    "flops_profiler",
    "activation_checkpointing",
    "aio",
    "seq_parallel_communication_data_type",
    "compile",
]
"""Further top-level keys of DeepSpeed 0.19 that may be given under `parallel.deepspeed`."""

ZERO_ALLOWED = [
    "contiguous_gradients",
    "reduce_scatter",
    "reduce_bucket_size",
    "use_multi_rank_bucket_allreduce",
    "allgather_partitions",
    "allgather_bucket_size",
    "overlap_comm",
    "sub_group_size",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_model_persistence_threshold",
    "stage3_module_granularity_threshold",
    "round_robin_gradients",
    "zero_hpz_partition_size",
    "memory_efficient_linear",
    "ignore_unused_parameters",
    "log_trace_cache_warnings",
]
"""Keys of `zero_optimization` that may be given; `stage` comes from `parallel.zero`."""


def deepspeed_json(config: Config, split: BatchSplit, trainable: int) -> dict[str, Any]:
    """The JSON that `deepspeed.initialize` gets. Raises InputError for a key of the user's that is unknown or derived."""
    extra = config.parallel.deepspeed
    check(extra)
    stage = config.parallel.zero
    bf16 = config.train.precision == "bf16"
    zero_extra = extra.get("zero_optimization", {})
    # DeepSpeed allocates whole buckets of 5e8 elements (2 GB) whatever the model's size; none need be larger than it.
    bucket = min(DEEPSPEED_BUCKET, -(-max(trainable, 1) // 1024) * 1024)  # it insists on an even number
    return {
        **{key: value for key, value in extra.items() if key != "zero_optimization"},
        "train_batch_size": split.global_batch,
        "train_micro_batch_size_per_gpu": split.micro_batch,
        "gradient_accumulation_steps": split.accumulate,
        "gradient_clipping": config.train.clip_norm or 0.0,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            # Small models too must be sharded when stage 3 is asked for; the default keeps tensors below 1e5 whole.
            **({"stage3_param_persistence_threshold": 0} if stage == 3 else {}),
            **zero_extra,
        },
        # bf16 at stage 0 would take an optimizer without fp32 master weights, which drifts by 0.1 in the loss within
        # ten steps; there the weights stay fp32 and autocast does the arithmetic in bf16.
        "bf16": {"enabled": bf16 and stage > 0},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def check(extra: Mapping[str, Any]) -> None:
    """Refuses unknown and derived keys of `parallel.deepspeed`, all at once."""
    problems = []
    for key in extra:
        name = f"parallel.deepspeed.{key}"
        if key in DERIVED:
            problems.append(Problem(f"{name} is derived by distdl", fix=f"set {DERIVED[key]} instead"))
        elif key != "zero_optimization" and key not in ALLOWED:
            known = [*ALLOWED, "zero_optimization"]
            problems.append(Problem(f"{name} is not a key of DeepSpeed's JSON", fix=did_you_mean(key, known)))
    zero = extra.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        problems.append(Problem("parallel.deepspeed.zero_optimization is a mapping of keys"))
        zero = {}
    for key in zero:
        name = f"parallel.deepspeed.zero_optimization.{key}"
        if key == "stage":
            problems.append(Problem(f"{name} is derived by distdl", fix="set parallel.zero instead"))
        elif key not in ZERO_ALLOWED:
            fix = did_you_mean(key, ZERO_ALLOWED)
            problems.append(Problem(f"{name} is not a key of DeepSpeed's zero_optimization", fix=fix))
    if problems:
        raise InputError(*problems)
