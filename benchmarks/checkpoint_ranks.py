"""What a checkpoint costs each of several ranks: stall, memory, bytes written, and bytes read by a resume. See README.md.

    python benchmarks/checkpoint_ranks.py [--base COMMIT] [--million 30] [--ranks 4] [--output FILE.md]

A GPT with AdamW's state on gloo ranks of this machine, one thread each. Each layout saves twice (the second time counts,
but for the memory) and then goes on, on the same layout and on another. `--base` does the same with another commit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run by path; the package may be another commit's, which the environment names first
    sys.path.append(str(Path(__file__).parent.parent))

REPOSITORY = Path(__file__).parent.parent
PAIRS = (("zero1", "zero3"), ("zero3", "zero1+tensor2"), ("zero1+tensor2", "zero3"))
"""Saved on -> continued on, after the same layout."""
TIMEOUT_S = 1800


def engine_of(million: float, layout: str, world: int, rank: int) -> Any:
    """A GPT of so many million parameters on a layout, one step old."""
    import torch

    from distdl.config.load import config_from_dict
    from distdl.families import build
    from distdl.parity.layouts import data_ranks, laid_out
    from distdl.plan.facts import DataFacts, Hardware, ModelFacts
    from distdl.plan.plan import make_plan
    from distdl.train.worker import make_engine

    width = 512
    layers = max(1, round(million * 1e6 / (12 * width**2)))
    model = {"family": "gpt", "vocabulary": 256, "context": 64, "width": width, "layers": layers, "heads": 8}
    rows = data_ranks(layout, world)
    values = {
        "name": "bench",
        "model": model,
        "data": {"path": "x", "threads": 0},
        "train": {"global_batch": world, "steps": 9, "micro_batch": world // rows},
        "optimizer": {"name": "adamw", "lr": 1e-4},
        "parallel": {},
        "runtime": {"kind": "local", "workers": world},
        "track": {"enabled": False},
    }
    proven = ("torch", "zero0", "zero1", "zero2", "zero3", "tensor")
    facts = ModelFacts("gpt", 1, 1, 1, "loss", "lower", proven, ())
    config = config_from_dict(laid_out(values, layout, world))
    plan = make_plan(config, facts, DataFacts("x", "f", 64, 0), Hardware("cpu", 1, 0))
    torch.manual_seed(0)
    engine = make_engine(build(model), plan, rank)
    count = plan.micro_batch
    batch = {"tokens": torch.zeros(count, 65, dtype=torch.long), "id": torch.arange(count)}
    for part in engine.feed(iter([batch | {"position": torch.arange(count)}]), 0):
        engine.learner.update(part, engine, 0)
    return engine


def anonymous_mb() -> float:
    """Memory of this process that is no mapping of a file."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


@contextmanager
def most_memory(told: dict[str, float]) -> Iterator[None]:
    """`extra_mb`: by how much the memory has grown within it at the most."""
    begin, peak, done = anonymous_mb(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous_mb())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        told["extra_mb"] = max(peak[0], anonymous_mb()) - begin


def save_twice(million: float, layout: str, world: int, rank: int, folder: Path) -> dict[str, float]:
    import torch.distributed as dist

    from benchmarks.checkpoint import state_at
    from distdl.checkpoint.save import Copies, Saving

    engine, copies, told = engine_of(million, layout, world, rank), Copies(), dict[str, float]()
    for step in (1, 2):
        dist.barrier()
        memory: dict[str, float] = {}
        with most_memory(memory):
            begin = time.perf_counter()
            saving = Saving(folder, engine, state_at(step), copies=copies)
            told["still_s"] = time.perf_counter() - begin
            path, _ = saving.finish()
            told["durable_s"] = time.perf_counter() - begin
        told.setdefault("extra_mb", memory["extra_mb"])
    own = sum(file.stat().st_size for file in path.glob(f"tensors-{rank:05d}-*"))
    return told | {"written_mb": own / 1e6, "whole_mb": sum(f.stat().st_size for f in path.iterdir()) / 1e6}


def go_on(million: float, layout: str, world: int, rank: int, folder: Path) -> dict[str, float]:
    """The optimizer of a new engine from the newest checkpoint."""
    import torch.distributed as dist

    from distdl.checkpoint.layout import checkpoints
    from distdl.checkpoint.load import Checkpoint

    engine, told = engine_of(million, layout, world, rank), dict[str, float]()
    path = checkpoints(folder)[-1][1]
    dist.barrier()
    with most_memory(told):
        begin = time.perf_counter()
        pieces = hasattr(Checkpoint, "regions")
        checkpoint = Checkpoint(path, verify=not pieces and rank == 0)  # as a worker does it
        dist.barrier()
        taken = [sum(f.stat().st_size for f in path.iterdir()) if not pieces and rank == 0 else 0]

        def read(name: str, *box: Any) -> Any:
            tensor = checkpoint.read(name, *box)
            taken.append(0 if pieces else tensor.nbytes)
            return tensor

        engine.load_optimizer(read, set(checkpoint.tensors), checkpoint.state.optimizer_steps)
        told["seconds"] = time.perf_counter() - begin
    told["read_mb"] = (checkpoint.reader.bytes_read if pieces else sum(taken)) / 1e6
    return told


# -- processes -----------------------------------------------------------------------------------------------------------


def child(act: str, million: float, layout: str, world: int, rank: int, folder: Path, out: Path) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(str(out / "store"), world)
    timeout = timedelta(seconds=TIMEOUT_S)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timeout)
    told = {"save": save_twice, "go_on": go_on}[act](million, layout, world, rank, folder)
    (out / f"{rank}.json").write_text(json.dumps(told))
    dist.barrier()


def on_ranks(act: str, package: Path, million: float, layout: str, world: int, folder: Path) -> dict[str, float]:
    """The largest of all ranks' figures."""
    variables = {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{REPOSITORY}", "OMP_NUM_THREADS": "1"}
    variables |= {"DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore", "WORLD_SIZE": str(world)}
    with tempfile.TemporaryDirectory(prefix="distdl-ranks-") as out:
        command = [sys.executable, __file__, "--child", act, str(million), layout, str(world)]
        processes = []
        for rank in range(world):
            mine = {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            log = (Path(out) / f"{rank}.log").open("wb")
            arguments = [*command, str(rank), str(folder), out]
            processes.append(subprocess.Popen(arguments, env=mine, stdout=log, stderr=log, cwd=package))
        for rank, process in enumerate(processes):
            if process.wait(timeout=TIMEOUT_S):
                for other in processes:
                    other.kill()
                raise RuntimeError(f"{act} {layout}: {(Path(out) / f'{rank}.log').read_text()[-2000:]}")
        told = [json.loads((Path(out) / f"{rank}.json").read_text()) for rank in range(world)]
    return {key: max(of[key] for of in told) for key in told[0]}


HEAD = [
    "| saved on | stall, s | until whole on disk, s | more memory, MB | written by a rank, MB | of |",
    "| --- | ---: | ---: | ---: | ---: | ---: |",
]
HEAD_2 = ["| continued on | s | more memory, MB | read by a rank, MB |", "| --- | ---: | ---: | ---: |"]


def measure(name: str, package: Path, million: float, world: int, folder: Path) -> tuple[list[str], list[str]]:
    saved, read = [], []
    for layout, other in PAIRS:
        place = folder / f"{name}-{layout}"
        of = on_ranks("save", package, million, layout, world, place)
        row = (f"{of['still_s']:.3f}", f"{of['durable_s']:.2f}", f"{of['extra_mb']:,.0f}", f"{of['written_mb']:,.0f}")
        saved.append(f"| {name}: {layout} | {' | '.join(row)} | {of['whole_mb']:,.0f} |")
        for target in (layout, other):
            of = on_ranks("go_on", package, million, target, world, place)
            row = (f"{of['seconds']:.2f}", f"{of['extra_mb']:,.0f}", f"{of['read_mb']:,.0f}")
            read.append(f"| {name}: {layout} to {target} | {' | '.join(row)} |")
    return saved, read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="a commit to compare with")
    parser.add_argument("--million", type=float, default=30, help="parameters; each takes 12 bytes of a checkpoint")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--output", type=Path, help="a Markdown file for the tables")
    parser.add_argument("--child", nargs=7, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        act, million, layout, world, rank, folder, out = args.child
        child(act, float(million), layout, int(world), int(rank), Path(folder), Path(out))
        sys.stdout.flush()
        os._exit(0)
    from benchmarks.startup import checkout

    with tempfile.TemporaryDirectory(prefix="distdl-base-") as folder, contextlib.ExitStack() as stack:
        found = [measure("distdl", REPOSITORY, args.million, args.ranks, Path(folder))]
        if args.base:
            base = stack.enter_context(checkout(args.base, Path(folder) / "base"))
            found.append(measure("before", base, args.million, args.ranks, Path(folder)))
    saved, read = ([row for rows in found for row in rows[part]] for part in (0, 1))
    text = "\n".join([*HEAD, *saved, "", *HEAD_2, *read])
    print(text)
    if args.output:
        said = f"`python benchmarks/checkpoint_ranks.py --million {args.million:g} --ranks {args.ranks}"
        said += f" --base {args.base}`" if args.base else "`"
        args.output.write_text(f"# Checkpoints of several ranks\n\n{said}: the largest figure of any rank.\n\n{text}\n")


if __name__ == "__main__":
    main()
