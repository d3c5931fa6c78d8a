"""Loads DeepSpeed, quietly, and says what it keeps for the whole process.

What DeepSpeed 0.19 makes necessary here:
- `init_distributed` on a CPU compiles a shared-memory operator for over a minute and sums over the wrong ranks with it;
  it is switched off.
- ZeRO-3 replaces torch's linear function, and leaves it so: "this will persist unless manually reset".
- Importing it imports MLflow, where that is installed.
- ZeRO-3 on a CPU starts `numactl` to count the machine's parts, in every step; it is asked once.
- An engine that is given no model-parallel unit takes the one that an earlier engine of the process was given, and asks
  for the largest of all groups of experts that any was given; pipelines share one grid.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F

from distdl.layout import process


def import_deepspeed(device: str) -> Any:
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|deepspeed)\.")
    with _without_mlflow():
        import deepspeed
        import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        from deepspeed.utils import numa

        if not hasattr(numa.get_numa_cores, "cache_info"):
            numa.get_numa_cores = functools.cache(numa.get_numa_cores)
    _own_what_it_keeps()
    return deepspeed


@contextmanager
def _without_mlflow() -> Iterator[None]:
    """Within it MLflow is not found where it is not loaded: DeepSpeed's autotuning, which nobody calls here, would load it
    into every worker: four fifths of the time that importing DeepSpeed takes."""
    if "mlflow" in sys.modules:
        yield
        return
    sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop("mlflow", None)


def _own_what_it_keeps() -> None:
    """Not its clone of the group of all ranks: it is the same for every layout, and a new one costs connections."""
    from deepspeed.runtime.pipe import p2p
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.utils import groups

    process.owns(F, linear=torch._C._nn.linear)
    process.owns(
        groups,
        mpu=None,
        mesh_device=None,
        expert_tensor_parallel_world_size=1,
        _EXPERT_PARALLEL_GROUP={},
        _EXPERT_PARALLEL_GROUP_RANKS={},
        _EXPERT_DATA_PARALLEL_GROUP={},
        _EXPERT_DATA_PARALLEL_GROUP_RANKS={},
        _ALL_TO_ALL_GROUP={},
        _ZERO_PARAM_INTRA_PARALLEL_GROUP=None,
        _TENSOR_MODEL_PARALLEL_GROUP=None,
        _MODEL_PARALLEL_GROUP=None,
        _DATA_PARALLEL_GROUP=None,
        _MPU_TENSOR_MODEL_PARALLEL_WORLD_SIZE=None,
        _MPU_TENSOR_MODEL_PARALLEL_RANK=None,
    )
    process.owns(p2p, _grid=None, _groups=None)
    process.owns(parameter_offload, FWD_MODULE_STACK=[])  # which keeps the whole model alive
