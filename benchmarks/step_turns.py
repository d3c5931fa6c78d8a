"""One rank of a contender of `step.py --base`: trains when it is told to, so many steps, and tells how long they took, by
the clock and of the processor's time.

Run by path with PYTHONPATH at the checkout whose distdl and `benchmarks/step.py` it takes: it alone must know where either
build has its modules. It waits for its turn where a step begins.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any


def module(*names: str) -> Any:
    """The first of these that this build has."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(f"none of {', '.join(names)}")


class Turns:
    """Between two steps this rank waits until it is told how many to take, and then says the seconds that they took."""

    def __init__(self, asked: int, told: int) -> None:
        self.asked, self.told = os.fdopen(asked), os.fdopen(told, "w")
        self.left, self.begin, self.busy = 0, 0.0, 0.0

    def step_begins(self) -> None:
        if self.left == 0:
            if self.begin:
                print(time.perf_counter() - self.begin, time.process_time() - self.busy, file=self.told, flush=True)
            line = self.asked.readline()
            if not line.strip():
                os._exit(0)
            self.left, self.begin, self.busy = int(line), time.perf_counter(), time.process_time()
        self.left -= 1


def main() -> None:
    told = json.loads(sys.argv[1])
    rank, world, folder, values = told["rank"], told["world"], Path(told["folder"]), told["values"]
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world), "DS_ACCELERATOR": "cpu"}
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    turns = Turns(told["asked"], told["told"])
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=3600))
    step, base = importlib.import_module("benchmarks.step"), importlib.import_module("distdl.engine.base")
    worker = module("distdl.train.worker", "distdl.worker")
    config_from_dict = module("distdl.config.load", "distdl.config_load").config_from_dict
    survey = module("distdl.train.survey", "distdl.survey").survey
    if rank == 0 and not (folder / "data").exists():
        step.write_data(str(folder), told["model"], 256)
    dist.barrier()
    feed = base.Engine.feed

    def waiting(self: Any, source: Any, step: int) -> Iterator[Any]:
        turns.step_begins()
        yield from feed(self, source, step)

    base.Engine.feed = waiting
    config = config_from_dict(values)
    if told["on"]:  # guard, parity, log, progress and spool: what `distdl train` does in a worker
        opened = (
            module("distdl.run.folder", "distdl.run_folder").open_run(config, None, fresh=True) if rank == 0 else None
        )
        paths = [str(opened.path) if opened else ""]
        dist.broadcast_object_list(paths, 0)
        run = opened or module("distdl.run.folder", "distdl.run_folder").RunFolder(Path(paths[0]))
        worker.run(survey(config), run, rank)
    else:
        for _ in step.our_steps(values, rank):
            pass


if __name__ == "__main__":
    main()
