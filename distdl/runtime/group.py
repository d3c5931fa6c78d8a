"""The process group of a run's workers."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from distdl.plan.plan import Plan


def init_process_group(plan: Plan, rank: int, timeout_s: float, *, hosts: bool = False) -> None:
    """Joins the run's process group at the store of the driver, or of the worker that `hosts` it, or makes one of a single
    process."""
    backend, gpu = "gloo", None
    if plan.device == "cuda":  # told of its GPU, NCCL connects at once, and splits the groups of the axes off
        backend, gpu = "nccl", torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(gpu)
    if plan.world == 1:
        os.environ.setdefault("LOCAL_RANK", "0")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, device_id=gpu)
    else:
        timeout = timedelta(seconds=timeout_s)
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=hosts, timeout=timeout, wait_for_workers=False)
        dist.init_process_group(backend, store=store, rank=rank, world_size=plan.world, timeout=timeout, device_id=gpu)
