"""Runs a function on 1, 2 or 4 real gloo processes and returns what each rank returned. They are forked (`tests.forks`).

A process that fails ends the others at once, with its traceback in the test's message: a hung collective must never
hang the suite.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.forks import REPOSITORY, SERVERS, Fork

COLLECTIVE_TIMEOUT_S = 120


def run_ranks(function: Callable[..., Any], world: int, *args: Any, timeout_s: float = 500) -> list[Any]:
    """`function(rank, world, *args)` on every rank; arguments and results travel as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        task = {"module": function.__module__, "function": function.__name__, "world": world, "args": args}
        (Path(folder) / "task.json").write_text(json.dumps(task))
        variables = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "DS_ACCELERATOR": "cpu",
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONWARNINGS": "ignore",
        }
        outputs = [Path(folder) / f"output-{rank}" for rank in range(world)]
        processes: list[Fork] = []
        for server in SERVERS[:world]:
            server.ready()
        try:
            for rank, output in enumerate(outputs):
                mine = {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
                server = SERVERS[rank % len(SERVERS)]
                processes.append(server.fork("tests.ranks", [folder, str(rank)], mine, REPOSITORY, output, output))
            _wait(processes, timeout_s)
        finally:
            for process in processes:
                process.kill()
        results = [Path(folder) / f"result-{rank}.json" for rank in range(world)]
        if not all(path.is_file() for path in results):
            failed = [
                f"--- rank {r}, exit code {p.returncode}\n{o.read_text(errors='replace')[-4000:]}"
                for r, (p, o) in enumerate(zip(processes, outputs))
            ]
            raise AssertionError("a rank failed or was too slow:\n" + "\n".join(failed))
        return [json.loads(path.read_text()) for path in results]


def _wait(processes: list[Fork], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        codes = [process.poll() for process in processes]
        if all(code == 0 for code in codes) or any(code not in (None, 0) for code in codes):
            return
        time.sleep(0.05)


def main(folder: str, rank: int) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    task = json.loads((Path(folder) / "task.json").read_text())
    store = dist.FileStore(f"{folder}/store", task["world"])
    timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=task["world"], timeout=timeout)
    function = getattr(importlib.import_module(task["module"]), task["function"])
    result = function(rank, task["world"], *task["args"])
    draft = Path(folder) / f".result-{rank}"
    draft.write_text(json.dumps(result))
    draft.rename(Path(folder) / f"result-{rank}.json")
    dist.barrier()
    os._exit(0)  # engines of several cases leave threads behind that have nothing left to do


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]))
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
