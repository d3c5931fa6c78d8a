"""Workers as processes of this machine, started by torch's elastic launcher.

One worker runs in this very process, so that a debugger works.
"""

from __future__ import annotations

import atexit
import logging
import os
import uuid
from pathlib import Path

from distdl.config import Config
from distdl.plan.plan import Plan
from distdl.run_folder import RunFolder


def start(config: Config, plan: Plan, folder: RunFolder) -> None:
    """Runs the plan to its end. Raises what the worker raised, or the launcher's error for the first that failed."""
    if plan.world == 1:
        in_process(plan, folder)
        return
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # A worker that fails leaves its error in the run folder; the launcher's own report of it is a traceback of ours.
    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn", *logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing.spawn")):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(plan.threads_per_worker))
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=plan.world,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=config.runtime.max_restarts,
        monitor_interval=0.2,
        local_addr="127.0.0.1",
    )
    try:
        elastic_launch(launch, worker_process)(str(folder.path), config.runtime.timeout_s)
    except SignalException as signal:  # the launcher's own handlers: it has ended the workers
        raise KeyboardInterrupt from signal


def in_process(plan: Plan, folder: RunFolder) -> None:
    """The single worker, here."""
    import torch.distributed as dist

    from distdl import worker

    if (
        not dist.is_initialized()
    ):  # DeepSpeed remembers its first group: a second run in this process must find the same
        worker.init_process_group(plan, 0, 60.0)
        atexit.register(dist.destroy_process_group)
    worker.run(plan, folder, 0)


def worker_process(folder_path: str, timeout_s: float) -> None:
    """Entry of each process that the launcher starts."""
    import signal

    import torch.distributed as dist

    from distdl import worker

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback; the launcher tells of it
    folder = RunFolder(Path(folder_path))
    plan, rank = worker.read_plan(folder), int(os.environ["RANK"])
    worker.init_process_group(plan, rank, timeout_s)
    worker.run(plan, folder, rank)
    dist.destroy_process_group()
