"""Workers as processes of this machine, started by torch.multiprocessing.

One worker runs in this very process, so that a debugger works.
"""

from __future__ import annotations

import atexit
import dataclasses
import faulthandler
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from distdl import own_process
from distdl.plan.plan import Plan
from distdl.run.folder import RunFolder
from distdl.run.heartbeat import Beat
from distdl.runtime.blame import WorkersEnded, ending
from distdl.runtime.watch import state_and_kill

if TYPE_CHECKING:
    from distdl.runtime.probe import Facts, Question

LAST_WORDS_S = 2.0
"""Seconds that the others have to end by themselves once a worker has failed: one whose peer died may be seen first."""
TERM_S = 5.0
"""Seconds between SIGTERM and SIGKILL for workers that are left."""


@contextmanager
def workers(plan: Plan, folder: RunFolder) -> Iterator[tuple[Callable[[int], None], Callable[[Beat, str], str]]]:
    """(what starts the workers and returns when they have ended well, `watch.state_and_kill` for one of them)."""

    def start(restart: int) -> None:
        if plan.world == 1:
            in_process(plan, folder)
        else:
            timeout_s = plan.settings.runtime.timeout_s
            run_processes(plan, worker_process, (str(folder.path), folder.attempt.number, plan.to_dict(), timeout_s))

    yield start, lambda beat, stack: state_and_kill(beat.pid, stack)


def on_every_rank(plan: Plan, question: Question, timeout_s: float) -> list[Facts]:
    """What every rank sees, by rank: `probe.look_around` on workers as training would start them."""
    if plan.world == 1:
        import torch.distributed as dist

        from distdl.runtime.group import init_process_group
        from distdl.runtime.probe import look_around

        if not dist.is_initialized():
            init_process_group(plan, 0, timeout_s)
            atexit.register(dist.destroy_process_group)
        return look_around(question, 0, 1, os.uname().nodename)
    from distdl.runtime.probe import Facts

    with tempfile.TemporaryDirectory(prefix="distdl-probe-") as folder:
        answer = Path(folder) / "facts.json"
        run_processes(plan, probe_process, (plan.to_dict(), question, timeout_s, str(answer)))
        found = json.loads(answer.read_text(encoding="utf-8"))
    return [Facts(**f | {"links": {int(rank): tuple(link) for rank, link in f["links"].items()}}) for f in found]


def run_processes(plan: Plan, process: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """`process(rank, *arguments)` in a process for every rank of the plan, until all have ended well. Raises WorkersEnded
    where one has not; the others are ended, and so are all of them when this is interrupted."""
    import torch.distributed as dist
    import torch.multiprocessing as mp

    os.environ.setdefault("OMP_NUM_THREADS", str(plan.threads_per_worker))
    # The driver holds the store: a port that is free stays ours, and no rank takes it along when it dies.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(plan.world)}
    place["LOCAL_WORLD_SIZE"] = place["WORLD_SIZE"]
    with _without_main():
        context = mp.start_processes(_placed, (place, process, arguments), nprocs=plan.world, join=False)
    assert context is not None
    try:
        alive = dict(enumerate(context.processes))
        while alive and all(p.exitcode in (None, 0) for p in context.processes):
            wait([p.sentinel for p in alive.values()], timeout=0.2)
            alive = {rank: p for rank, p in alive.items() if p.exitcode is None}
        if all(p.exitcode == 0 for p in context.processes):
            return
        end = time.monotonic() + LAST_WORDS_S
        while alive and time.monotonic() < end:
            wait([p.sentinel for p in alive.values()], timeout=0.05)
            alive = {rank: p for rank, p in alive.items() if p.exitcode is None}
        deaths = {rank: ending(p.exitcode) for rank, p in enumerate(context.processes) if p.exitcode is not None}
        for p in alive.values():
            p.terminate()
        end = time.monotonic() + TERM_S
        for p in alive.values():
            p.join(max(0.0, end - time.monotonic()))
            p.kill()
            p.join()
        raise WorkersEnded(deaths | {rank: how for rank, how in _raised(context).items() if rank in deaths})
    finally:
        for p in context.processes:
            if p.exitcode is None:
                p.kill()
            p.join()
        for file in context.error_files:
            with suppress(OSError):
                os.unlink(file)


@contextmanager
def _without_main() -> Iterator[None]:
    """A process that is spawned within it does not run the user's script again, which would train once more: nothing of a
    worker lies there, so that the script needs no `if __name__ == "__main__"`."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _raised(context: Any) -> dict[int, str]:
    """Rank -> the last line of the exception that ended it. All processes of the context have ended."""
    import torch.multiprocessing as mp

    found: dict[int, str] = {}
    while context.sentinels:
        try:
            context.join(timeout=0)
        except mp.ProcessRaisedException as error:
            found[error.error_index] = f"failed: {str(error).strip().splitlines()[-1]}"
        except mp.ProcessExitedException:
            continue
    return found


def _placed(rank: int, place: dict[str, str], process: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Entry of each process. It leaves the terminal's process group: Ctrl-C and a signal to the group are for the driver
    alone, which asks for a checkpoint. The kernel ends it with the driver (torch sees to that, by SIGINT)."""
    finish = own_process.begin()
    with suppress(OSError):
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
    process(*arguments)
    finish(0)


def in_process(plan: Plan, folder: RunFolder) -> None:
    """The single worker, here. It reads the plan as others do, beside the run's own copy of a family's file."""
    import torch
    import torch.distributed as dist

    from distdl.layout.process import alone
    from distdl.runtime.group import init_process_group
    from distdl.train import worker
    from distdl.train.kernels import prepare_process

    prepare_process(plan.device, folder.path)
    if not faulthandler.is_enabled():
        with suppress(OSError, ValueError, AttributeError):  # a stderr that is no file
            faulthandler.enable()  # a fault in native code ends this process: its stack is all that is left to say
    with alone, torch.inference_mode(False), torch.enable_grad():  # whatever the caller is in the middle of
        if not dist.is_initialized():  # DeepSpeed remembers its first group: a second run must find the same
            init_process_group(plan, 0, 60.0)
            atexit.register(dist.destroy_process_group)
        worker.run(Plan.from_dict(plan.to_dict(), folder.path), folder, 0)


def worker_process(folder_path: str, attempt: int, plan_values: dict[str, Any], timeout_s: float) -> None:
    """What each process does. All that it is told comes from its own driver: what lies in the folder may be a newer
    attempt's."""
    import torch.distributed as dist

    from distdl.runtime.group import init_process_group
    from distdl.train import worker
    from distdl.train.kernels import prepare_process

    folder = RunFolder(Path(folder_path), attempt)
    plan, rank = Plan.from_dict(plan_values, folder.path), int(os.environ["RANK"])
    prepare_process(plan.device, folder.path)
    init_process_group(plan, rank, timeout_s)
    worker.run(plan, folder, rank)
    dist.destroy_process_group()


def probe_process(plan_values: dict[str, Any], question: Question, timeout_s: float, answer: str) -> None:
    """As `worker_process`, for a look around instead of a training; the first rank writes what all saw."""
    import torch.distributed as dist

    from distdl.runtime.group import init_process_group
    from distdl.runtime.probe import look_around

    plan, rank = Plan.from_dict(plan_values), int(os.environ["RANK"])
    init_process_group(plan, rank, timeout_s)
    facts = look_around(question, rank, plan.world, os.uname().nodename)
    if rank == 0:
        Path(answer).write_text(json.dumps([dataclasses.asdict(f) for f in facts]), encoding="utf-8")
    dist.destroy_process_group()
