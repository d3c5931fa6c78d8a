"""Workers placed by Ray Train. The only file that imports ray.

Ray Train makes the process group, restarts the workers after a failure and keeps them placed; the state of the run is
in our own checkpoints, so a restart is the same function again.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from pathlib import Path
from typing import Any

from distdl.config import Config
from distdl.config import Ray as RayConfig
from distdl.errors import TrainingFailed
from distdl.plan.plan import Plan
from distdl.run_folder import RunFolder


def start(config: Config, plan: Plan, folder: RunFolder) -> None:
    """Runs the plan to its end on Ray workers. Raises Ray Train's error where they failed for good."""
    runtime = config.runtime
    assert isinstance(runtime, RayConfig)
    _quiet()
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = runtime.gpus_per_worker if runtime.gpus_per_worker is not None else int(plan.device == "cuda")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _connect(ray, runtime, plan, gpus)
        trainer = TorchTrainer(
            worker_loop,
            train_loop_config={"folder": str(folder.path)},
            scaling_config=ScalingConfig(
                num_workers=plan.world,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": runtime.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
            ),
            torch_config=TorchConfig(
                backend="nccl" if plan.device == "cuda" else "gloo", timeout_s=int(runtime.timeout_s)
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=str(folder.path),
                failure_config=FailureConfig(
                    max_failures=runtime.max_restarts,
                    controller_failure_limit=runtime.max_restarts,  # -1 by default: workers that never fit hang for ever
                ),
            ),
        )
        trainer.fit()
    except SystemExit as end:  # Ray's own answer to Ctrl-C and to SIGTERM: it has ended the workers
        raise KeyboardInterrupt from end
    finally:
        ray.shutdown()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def worker_loop(settings: dict[str, Any]) -> None:
    """The train function of each Ray worker."""
    import ray.train

    from distdl import worker

    folder = RunFolder(Path(settings["folder"]))
    plan, rank = worker.read_plan(folder), ray.train.get_context().get_world_rank()
    known = next((record for record in folder.failure_records() if record["known"]), None)
    if known:  # the same input fails the same way: no restart helps
        raise TrainingFailed(known["message"])
    worker.run(plan, folder, rank)


def _connect(ray: Any, runtime: RayConfig, plan: Plan, gpus: int) -> None:
    """Joins the cluster at the address, or starts an embedded Ray that has the resources that the plan asks for."""
    variables = {
        "OMP_NUM_THREADS": str(plan.threads_per_worker),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "PYTHONWARNINGS": "ignore",
        **({"DS_ACCELERATOR": "cpu"} if plan.device == "cpu" else {}),
    }
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": variables},
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    address = runtime.address or os.environ.get("RAY_ADDRESS")
    if address:
        _probe(address)
        try:
            ray.init(address=address, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _no_cluster(address, str(error).strip().splitlines()[0]) from error
        return
    cores = len(os.sched_getaffinity(0))
    needed = int(-(-plan.world * runtime.cpus_per_worker // 1)) + 1  # one more for Ray Train's controller
    ray.init(num_cpus=max(cores, needed), include_dashboard=False, **options)


def _probe(address: str, timeout_s: float = 5.0) -> None:
    """Raises at once where nothing listens: Ray itself tries for many minutes before it says so."""
    host, colon, port = address.split("://")[-1].rpartition(":")
    if not colon or not port.isdigit():
        return  # `auto`, or another word that Ray resolves
    try:
        socket.create_connection((host, int(port)), timeout_s).close()
    except OSError as error:
        raise _no_cluster(address, error.strerror or str(error)) from error


def _no_cluster(address: str, why: str) -> TrainingFailed:
    return TrainingFailed(
        f"no Ray cluster answers at {address}: {why}\n"
        "    fix: `ray start --head` there, or runtime.address=null for an embedded Ray"
    )


def _quiet() -> None:
    """Ray's defaults that a person at a terminal does not need; what is already set stays."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # the default of 2 s delays start and failure
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for name in ("ray", "ray.train", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
