"""Ray Train without what this project has no use for.

Each helper that Ray Train starts is a process of its own, which takes a core for a second while the workers load torch: one
for its data sets (ours are read by the workers); and, where the Ray is this run's own and ends with it, one that asks for
more nodes, one that looks out for nodes that are to be taken away, and one that clears up behind a controller that died.

Its own `TorchConfig` makes the process group from the controller, which then imports torch before it asks for a worker, and
NCCL is not told of its GPU. Here the controller only tells the workers where to meet.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ray.train
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.result import Result


class Trainer(DataParallelTrainer):
    """`embedded`: the Ray is this run's own, whose nodes are those that it has."""

    embedded = False

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback) if self.embedded else (DatasetsCallback,)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unused)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        if self.embedded:
            arguments["scaling_policy"] = _AsItIs(self.scaling_config)
        return super()._initialize_and_run_controller(**arguments)


class _AsItIs(FixedScalingPolicy):
    """Asks nobody for nodes."""

    def _maybe_send_resource_request(self) -> None: ...

    def _cancel_resource_request(self) -> None: ...

    def after_controller_start(self, train_run_context: TrainRunContext) -> None: ...


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
