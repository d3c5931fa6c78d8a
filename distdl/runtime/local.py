"""Workers as processes of this machine, started by torch's elastic launcher.

One worker runs in this very process, so that a debugger works.
"""

from __future__ import annotations

import atexit
import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distdl.config import Config
from distdl.plan.plan import Plan
from distdl.run_folder import RunFolder

if TYPE_CHECKING:
    from distdl.runtime.probe import Facts, Question


def start(config: Config, plan: Plan, folder: RunFolder) -> None:
    """Runs the plan to its end. Raises what the worker raised, or the launcher's error for the first that failed."""
    if plan.world == 1:
        in_process(plan, folder)
        return
    arguments = (str(folder.path), folder.attempt.number, plan.to_dict(), config.runtime.timeout_s)
    _launched(plan, config.runtime.max_restarts, worker_process, arguments)


def on_every_rank(config: Config, plan: Plan, question: Question, timeout_s: float) -> list[Facts]:
    """What every rank sees, by rank: `probe.look_around` on workers as training would start them."""
    if plan.world == 1:
        from distdl import worker
        from distdl.runtime.probe import look_around

        if not worker.dist.is_initialized():
            worker.init_process_group(plan, 0, timeout_s)
            atexit.register(worker.dist.destroy_process_group)
        return look_around(question, 0, 1, os.uname().nodename)
    found: list[Facts] = _launched(plan, 0, probe_process, (plan.to_dict(), question, timeout_s))[0]
    return found


def _launched(plan: Plan, max_restarts: int, process: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[int, Any]:
    """`process(*arguments)` in a process for every rank of the plan; rank -> what it returned."""
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
        max_restarts=max_restarts,
        monitor_interval=0.2,
        local_addr="127.0.0.1",
        signals_to_handle="SIGINT,SIGHUP,SIGQUIT",  # not SIGTERM, which asks the workers for a checkpoint
    )
    try:
        ended: dict[int, Any] = elastic_launch(launch, process)(*arguments)
        return ended
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


def worker_process(folder_path: str, attempt: int, plan_values: dict[str, Any], timeout_s: float) -> None:
    """Entry of each process that the launcher starts. All that it is told comes from its own driver: what lies in the
    folder may be a newer attempt's."""
    import signal

    import torch.distributed as dist

    from distdl import worker

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback; the launcher tells of it
    folder = RunFolder(Path(folder_path), attempt)
    plan, rank = Plan.from_dict(plan_values), int(os.environ["RANK"])
    worker.init_process_group(plan, rank, timeout_s)
    worker.run(plan, folder, rank)
    dist.destroy_process_group()


def probe_process(plan_values: dict[str, Any], question: Question, timeout_s: float) -> list[Facts]:
    """As `worker_process`, for a look around instead of a training."""
    import torch.distributed as dist

    from distdl import worker
    from distdl.runtime.probe import look_around

    plan, rank = Plan.from_dict(plan_values), int(os.environ["RANK"])
    worker.init_process_group(plan, rank, timeout_s)
    facts = look_around(question, rank, plan.world, os.uname().nodename)
    dist.destroy_process_group()
    return facts
