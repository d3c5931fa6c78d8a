"""Which keys of DeepSpeed's own JSON a config may give under `parallel.deepspeed`.

DeepSpeed accepts an unknown top-level key such as `zero_optimisation:` in silence; here every key is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distdl.errors import Problem, did_you_mean

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

ZERO_DERIVED = {
    "stage": "parallel.zero",
    "offload_optimizer": "parallel.offload",
    "offload_param": "parallel.offload_parameters",
}
"""The same below `zero_optimization`."""

ALLOWED = [
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "sparse_gradients",
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
    "zero_hpz_partition_size",
    "memory_efficient_linear",
    "ignore_unused_parameters",
    "log_trace_cache_warnings",
]
"""Keys of `zero_optimization` that may be given; `stage` comes from `parallel.zero`."""

ZERO_WRONG = {
    "round_robin_gradients": "DeepSpeed 0.19 loses track of which part of a shard is which weight there, and a checkpoint "
    "would mix them up",
}
"""Keys of `zero_optimization` that are refused, and why."""


def check(extra: Mapping[str, Any]) -> list[tuple[tuple[str, ...], Problem]]:
    """(key path below `parallel.deepspeed`, what is wrong with it) of every unknown and every derived key.

    Those that would give DeepSpeed another class of optimizer are among them: its state lies elsewhere, and a checkpoint
    would not find it.
    """
    problems: list[tuple[tuple[str, ...], Problem]] = []
    for key in extra:
        name = f"parallel.deepspeed.{key}"
        if key == "data_types":
            why = f"{name} would change DeepSpeed's optimizer: gradients are summed in fp32 on every stage"
            problems.append(((key,), Problem(why, fix="leave it out")))
        elif key in DERIVED:
            problems.append(((key,), Problem(f"{name} is derived by distdl", fix=f"set {DERIVED[key]} instead")))
        elif key != "zero_optimization" and key not in ALLOWED:
            known = [*ALLOWED, "zero_optimization"]
            problems.append(((key,), Problem(f"{name} is not a key of DeepSpeed's JSON", fix=did_you_mean(key, known))))
    zero = extra.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        problems.append((("zero_optimization",), Problem("parallel.deepspeed.zero_optimization is a mapping of keys")))
        zero = {}
    for key in zero:
        name, path = f"parallel.deepspeed.zero_optimization.{key}", ("zero_optimization", str(key))
        if key in ZERO_DERIVED:
            problems.append((path, Problem(f"{name} is derived by distdl", fix=f"set {ZERO_DERIVED[key]} instead")))
        elif key in ZERO_WRONG:
            problems.append((path, Problem(f"{name} is refused: {ZERO_WRONG[key]}", fix="leave it out")))
        elif key not in ZERO_ALLOWED:
            fix = did_you_mean(key, ZERO_ALLOWED)
            problems.append((path, Problem(f"{name} is not a key of DeepSpeed's zero_optimization", fix=fix)))
    return problems
