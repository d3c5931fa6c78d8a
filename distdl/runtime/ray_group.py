"""Where the process group of Ray's workers meets.

Ray Train's own `TorchConfig` makes the group from its controller. The controller then imports torch, for more than a second
and 200 MB, before it asks for a worker, and NCCL is not told of its GPU. Here it only tells the workers where to meet.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import ray.train
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig


@dataclass
class Addresses(BackendConfig):
    """Gives each worker torch's variables: address and port at the first worker, ranks, and how many there are."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Told


class _Told(Backend):
    share_cuda_visible_devices = True
    """NCCL reaches the GPUs of the same node only where each worker sees them."""

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(_set_variables, address, port)


def _set_variables(address: str, port: int) -> None:
    """On a worker: https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables"""
    context = ray.train.get_context()
    told = {
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "RANK": context.get_world_rank(),
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_RANK": context.get_local_rank(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        "NODE_RANK": context.get_node_rank(),
    }
    os.environ.update({name: str(value) for name, value in told.items()})
