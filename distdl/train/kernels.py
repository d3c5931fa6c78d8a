"""How torch computes in this process: in as many binary places, threads and the same bits as the plan says."""

from __future__ import annotations

import contextlib
import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from distdl import own_process
from distdl.errors import InputError
from distdl.plan.arithmetic import BF16_CAPABILITY
from distdl.plan.plan import Plan
from distdl.plan.refuse import FP8_CAPABILITY
from distdl.run.folder import FLIGHTS

CAPABILITY = {"bf16": BF16_CAPABILITY, "fp8": FP8_CAPABILITY}
"""Compute capability that a precision needs, where the launching machine could not know that of the workers."""


ALLOCATOR = "PYTORCH_ALLOC_CONF"
FLIGHT_RECORDER = {"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
"""NCCL's last collectives, kept in memory and written when one does not end in time."""


def prepare_process(device: str, folder: Path) -> None:
    """Before anything is allocated on a GPU or sent to another. What is set already stays."""
    if device != "cuda":
        return
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its older name
        # Blocks that grow: micro-batches and gathers of changing sizes would leave holes that nothing fits into.
        os.environ.setdefault(ALLOCATOR, "expandable_segments:True")
    for name, value in FLIGHT_RECORDER.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(folder / FLIGHTS))


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """Within it Python's garbage collector leaves alone what is there at the start: the model, the engine and all modules
    would be looked through again and again, some hundred milliseconds at a time, on another rank at another step. Where
    somebody has told it before what to leave alone, nothing is changed: that could not be put back."""
    fresh = own_process.loaded()
    if gc.get_freeze_count():
        yield
        return
    if not fresh:
        gc.collect()  # the user's garbage, and an earlier run's: looking through all modules takes 0.2 s
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def set_up_torch(plan: Plan) -> None:
    """Threads, places and determinism of this process. Raises InputError on a GPU that lacks the plan's precision."""
    torch.set_num_threads(plan.threads_per_worker)
    train, cuda = plan.settings.train, plan.device == "cuda"
    if cuda:
        _refuse_old_gpu(train.precision)
        torch.set_float32_matmul_precision("high" if train.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = train.tf32
        # cuDNN's attention has no deterministic backward pass, and on H100 it comes first. What is tried out, and taken as
        # the fastest, may differ from run to run.
        torch.backends.cuda.enable_cudnn_sdp(not train.deterministic)
        torch.backends.cudnn.benchmark = not train.deterministic
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # With warn_only the backward passes of flash and of memory-efficient attention are not deterministic. CPUs have all
        # such kernels; there it keeps a few operations quiet that are deterministic in the way that they are used.
        torch.use_deterministic_algorithms(True, warn_only=not cuda)
        # Filling every new buffer with NaN finds reads of unwritten memory; it makes nothing more deterministic.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _refuse_old_gpu(precision: str) -> None:
    needed, have = CAPABILITY.get(precision), torch.cuda.get_device_capability()
    if needed and have < needed:
        what = f"train.precision is {precision} and this is a GPU of compute capability {have} ({os.uname().nodename})"
        raise InputError(
            what,
            allowed=f"{needed[0]}.{needed[1]} and up",
            fix=f"train.precision={'bf16' if have >= (8, 0) else 'fp32'}",
        )


@contextlib.contextmanager
def missing_kernel() -> Iterator[None]:
    """Within it a kernel that cannot give the same bits again, where the config asks for that, is an InputError."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"(\S+) does not have a deterministic implementation", str(error))
        if not found:
            raise
        what = f"train.deterministic is true, and torch's {found[1]} has no version that gives the same bits again"
        raise InputError(what, fix="train.deterministic=false or auto") from error
