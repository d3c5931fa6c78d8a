"""The DeepSpeed JSON of a run, written out in full and checked strictly.

DeepSpeed accepts an unknown top-level key such as `zero_optimisation:` in silence, and clips at 1.0 when
`gradient_clipping` is left out; so every key that matters is written, and the user's were checked (deepspeed_keys.py).
"""

from __future__ import annotations

from typing import Any

from distdl.config.schema import Config
from distdl.plan.batch import BatchSplit
from distdl.plan.mesh import Mesh

DEEPSPEED_BUCKET = 500_000_000
"""Elements of DeepSpeed's default communication buckets."""

DEEPSPEED_NVME_BUFFER = 100_000_000
"""Elements of DeepSpeed's default buffers between memory and disk; the largest parameter must fit into one."""


def deepspeed_json(config: Config, split: BatchSplit, mesh: Mesh, trainable: int) -> dict[str, Any]:
    """The JSON that `deepspeed.initialize` gets."""
    extra = config.parallel.deepspeed
    stage = config.parallel.zero
    bf16 = config.train.precision in ("bf16", "fp8")  # 8-bit products between 16-bit activations
    half = stage > 0 and config.train.precision not in ("fp32", "fp64")
    zero_extra = extra.get("zero_optimization", {})
    # DeepSpeed allocates whole buckets of 5e8 elements (2 GB) whatever the model's size; none need be larger than it.
    bucket = min(DEEPSPEED_BUCKET, -(-max(trainable, 1) // 1024) * 1024)  # it insists on an even number
    return {
        # Left out, gradients are summed in the weights' type, over micro-batches and over ranks: beyond some dozens that
        # agree, a bf16 sum of 8 bits rounds what is added away (512 micro-batches gave a step that was a fifth too short).
        **({"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"} if half else {}),
        **{key: value for key, value in extra.items() if key != "zero_optimization"},
        # To DeepSpeed a rank with a slice of a sequence has samples of its own, and its product must come out.
        "train_batch_size": split.global_batch * mesh.sequence,
        "train_micro_batch_size_per_gpu": split.micro_batch,
        "gradient_accumulation_steps": split.accumulate,
        "gradient_clipping": config.train.clip_norm or 0.0,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            # Small models too must be sharded when stage 3 is asked for; the default keeps tensors below 1e5 whole.
            **({"stage3_param_persistence_threshold": 0} if stage == 3 else {}),
            **_offload(config, trainable),
            **zero_extra,
        },
        # The optimizer stays torch's when its state is offloaded: the same numbers, and nothing is compiled at the start.
        **({"zero_force_ds_cpu_optimizer": False} if config.parallel.offload != "none" else {}),
        # bf16 at stage 0 would take an optimizer without fp32 master weights, which drifts by 0.1 in the loss within
        # ten steps; there the weights stay fp32 and autocast does the arithmetic in bf16.
        "bf16": {"enabled": bf16 and stage > 0},
        **({"fp16": {"enabled": True, "loss_scale": 0}} if config.train.precision == "fp16" else {}),  # 0: dynamic
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def _offload(config: Config, trainable: int) -> dict[str, Any]:
    """Where ZeRO keeps the optimizer's state and the weights."""
    parallel, keys = config.parallel, dict[str, Any]()
    for key, device in (("offload_optimizer", parallel.offload), ("offload_param", parallel.offload_parameters)):
        if device != "none":
            # Pinned memory would compile an operator at the start.
            where = {"nvme_path": parallel.nvme_path} if device == "nvme" else {"pin_memory": False}
            keys[key] = {"device": device, **where}
            if device == "nvme" and key == "offload_param":  # five of these, 2 GB by default, whatever the model's size
                keys[key]["buffer_size"] = min(DEEPSPEED_NVME_BUFFER, max(trainable, 1))
    return keys
