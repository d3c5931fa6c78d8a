"""Time of a training step on every layout. See README.md.

    python benchmarks/step.py [--ranks 2,4] [--rounds R]       a 10M-parameter GPT on CPU ranks, over plain DDP
    python benchmarks/step.py --gpu [--models 124m,1.3b]       one GPU: MFU, tokens/s and peak memory over a bare loop

On CPU ranks all contenders live in the same processes and take turns, a step each, so that a busy machine disturbs them
alike; a figure is the median over rounds of the ratio to DDP's step of the same round. On a GPU each contender has it for
itself, one after the other, round by round.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
CPU_MODEL = {"vocabulary": 8192, "context": 64, "layers": 8, "heads": 8, "width": 288, "dropout": 0.0}  # 10.3M
CPU_BATCH = 8
CPU_LAYOUTS = {
    2: ["zero0", "zero1", "zero2", "zero3", "zero1+tensor2", "zero1+sequence2", "zero1+pipeline2"],
    4: ["zero0", "zero1", "zero2", "zero3", "zero1+tensor2", "zero1+sequence2", "zero1+pipeline2", "zero1+tensor4",
        "zero1+tensor2+pipeline2", "zero1+tensor2+sequence2"],
}  # fmt: skip
GPU_MODELS = {
    "124m": ({"vocabulary": 50257, "context": 1024, "layers": 12, "heads": 12, "width": 768}, 16),
    "1.3b": ({"vocabulary": 50257, "context": 2048, "layers": 24, "heads": 16, "width": 2048}, 4),
}
"""Model (GPT-2 small; the 1.3B form of Brown et al. 2020, table 2.1) and samples of a step."""
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 operations a second, from the data sheets."""
GOALS = {"124m": 0.45, "1.3b": 0.50}
GOAL_OVER_BARE = 0.98


def run_config(folder: str, model: dict[str, Any], batch: int, **sections: Any) -> dict[str, Any]:
    """A complete config of a gpt."""
    return {
        "name": "step",
        "model": {"family": "gpt", **model},
        "data": {"path": f"{folder}/data", "eval_split": None, "threads": 0},
        "train": {"global_batch": batch, "steps": 10_000, "deterministic": False, "clip_norm": 1.0},
        "optimizer": {"name": "adamw", "lr": 1e-4},
        "evaluate": {"every_steps": 0},
        "runtime": {"kind": "local", "workers": 1},
        "track": {"enabled": False},
        **sections,
    }


def write_data(folder: str, model: dict[str, Any], rows: int) -> None:
    """Random tokens: the time of a step does not depend on them."""
    from distdl.data.manifest import Column
    from distdl.data.write import DatasetWriter

    shape = (model["context"] + 1,)
    tokens = np.random.default_rng(0).integers(0, model["vocabulary"], (rows, *shape)).astype(np.uint16)
    with DatasetWriter(f"{folder}/data", {"tokens": Column("uint16", shape)}, "random", {}) as writer:
        writer.write("train", {"tokens": tokens})


# -- CPU ranks -------------------------------------------------------------------------------------------------------


def ddp_steps(values: dict[str, Any], rank: int, world: int) -> Iterator[float]:
    """Plain DistributedDataParallel over the same module, its samples already in memory. Yields the loss of each step."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from distdl.families import build

    torch.manual_seed(0)
    model = DistributedDataParallel(build(values["model"]), gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    share, shape = values["train"]["global_batch"] // world, values["model"]["context"] + 1
    tokens = torch.randint(0, values["model"]["vocabulary"], (share, shape))
    while True:
        loss, _ = model({"tokens": tokens}, 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield float(loss.detach())


def our_steps(values: dict[str, Any], rank: int) -> Iterator[float]:
    """The worker's own pieces, without hooks, which take turns with others in this process."""
    from distdl.config.load import config_from_dict
    from distdl.layout.process import ProcessState
    from distdl.train import worker
    from distdl.train.survey import survey

    config = config_from_dict(values)
    plan, state = survey(config), ProcessState()
    with state:
        learner = worker.build_learner(config, None)
        engine = worker.make_engine(learner, plan, rank)
        source = worker.make_source(plan, rank)
    learner.train()
    step = 0
    while True:
        loss = 0.0
        with state:
            for batch in engine.feed(source, step):
                total, count = learner.update(batch, engine, step)["loss"]
                loss = float(total) / count
        step += 1
        yield loss


def cpu_rank(rank: int, world: int, folder: str, rounds: int) -> None:
    """One rank: every contender takes a step in turn."""
    import torch
    import torch.distributed as dist

    from distdl.parity.layouts import laid_out

    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store-{world}", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=600))
    values = run_config(folder, CPU_MODEL, CPU_BATCH)
    contenders: dict[str, Iterator[float]] = {"DDP": ddp_steps(values, rank, world)}
    for name in ["torch", *CPU_LAYOUTS[world]]:
        case = laid_out(values, name, world)
        if "pipeline" in name:
            case["train"]["micro_batch"] = 1
        contenders[name] = our_steps(case, rank)
    for steps in contenders.values():
        next(steps), next(steps)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        names = list(contenders)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            dist.barrier()
            begin = time.perf_counter()
            next(contenders[name])
            dist.barrier()
            seconds[name].append(time.perf_counter() - begin)
    if rank == 0:
        Path(f"{folder}/result-{world}.json").write_text(json.dumps(seconds))
    dist.barrier()
    os._exit(0)


def on_cpus(worlds: list[int], rounds: int) -> dict[str, Any]:
    """Ratios to DDP on each number of ranks."""
    import torch.multiprocessing as mp

    result: dict[str, Any] = {"model": CPU_MODEL, "global_batch": CPU_BATCH, "rounds": rounds, "worlds": {}}
    with tempfile.TemporaryDirectory(prefix="distdl-step-") as folder:
        write_data(folder, CPU_MODEL, 256)
        for world in worlds:
            mp.spawn(cpu_rank, (world, folder, rounds), nprocs=world)
            seconds = json.loads(Path(f"{folder}/result-{world}.json").read_text())
            rows = {}
            for name, times in seconds.items():
                ratios = [t / base for t, base in zip(times, seconds["DDP"])]
                rows[name] = {"median_ms": 1e3 * statistics.median(times), "over_ddp": statistics.median(ratios)}
                print(
                    f"{world} ranks  {name:<28}{rows[name]['median_ms']:10.1f} ms {rows[name]['over_ddp']:8.2f}",
                    flush=True,
                )
            result["worlds"][str(world)] = rows
    return result


# -- a GPU -----------------------------------------------------------------------------------------------------------


def flops_per_token(model: dict[str, Any], parameters: int) -> float:
    """Of a forward and backward pass: 6N + 12 L T D (Chowdhery et al. 2022, appendix B), N without the places."""
    n = parameters - model["context"] * model["width"]
    return 6.0 * n + 12.0 * model["layers"] * model["context"] * model["width"]


def bare_steps(values: dict[str, Any], compiled: bool) -> Iterator[float]:
    """The same model in the loop that one would write by hand: autocast, fused AdamW, torch.compile."""
    import torch

    from distdl.families import build

    torch.manual_seed(0)
    model: Any = build(values["model"]).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    run: Callable[..., Any] = torch.compile(model) if compiled else model
    shape = (values["train"]["global_batch"], values["model"]["context"] + 1)
    tokens = torch.randint(0, values["model"]["vocabulary"], shape, device="cuda")
    while True:
        with torch.autocast("cuda", torch.bfloat16):
            loss, _ = run({"tokens": tokens}, 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield float(loss.detach())


def on_gpu(names: list[str], rounds: int, block: int) -> dict[str, Any]:
    """Tokens/s, MFU and peak memory of our layouts and of the bare loop."""
    import torch

    from distdl.families import build
    from distdl.train.worker import init_process_group

    device = torch.cuda.get_device_name()
    peak = next((flops for chip, flops in PEAK_FLOPS.items() if chip in device), math.nan)
    result: dict[str, Any] = {"device": device, "peak_flops": peak, "models": {}}
    for name in names:
        model, batch = GPU_MODELS[name]
        with torch.device("meta"):
            parameters = sum(p.numel() for p in build({"family": "gpt", **model}).parameters())
        with tempfile.TemporaryDirectory(prefix="distdl-step-") as folder:
            write_data(folder, model, 8 * batch)

            def ours(engine: str, compiled: bool, folder: str = folder, model: Any = model, batch: int = batch) -> Any:
                values = run_config(folder, model, batch)
                values["train"] |= {"precision": "bf16", "compile": compiled}
                values["parallel"] = {"engine": "torch"} if engine == "torch" else {"zero": 1}
                values["guard"] = {"nonfinite": False, "parity_every_steps": 0}
                if not torch.distributed.is_initialized():
                    from distdl.config.load import config_from_dict
                    from distdl.train.survey import survey

                    init_process_group(survey(config_from_dict(values)), 0, 60.0)
                return our_steps(values, 0)

            base = run_config(folder, model, batch)
            contenders: dict[str, Callable[[], Iterator[float]]] = {
                "bare loop, compiled": lambda base=base: bare_steps(base, True),  # type: ignore[misc]
                "bare loop": lambda base=base: bare_steps(base, False),  # type: ignore[misc]
                **{
                    f"distdl {engine}{', compiled' * compiled}": lambda e=engine, c=compiled, o=ours: o(e, c)  # type: ignore[misc]
                    for engine in ("torch", "zero1")
                    for compiled in (True, False)
                },
            }
            tokens = batch * model["context"]
            rows: dict[str, dict[str, Any]] = {key: {"s": []} for key in contenders}
            for _ in range(rounds):
                for key, make in contenders.items():
                    _measure(rows[key], make, block)
            for key, row in rows.items():
                seconds = statistics.median(row.pop("s"))
                row |= {"tokens_per_s": tokens / seconds, "step_ms": 1e3 * seconds}
                row["mfu"] = row["tokens_per_s"] * flops_per_token(model, parameters) / peak
                row["over_bare_compiled"] = row["tokens_per_s"] / rows["bare loop, compiled"]["tokens_per_s"]
                print(f"{name} {key:<28}{row['tokens_per_s']:12,.0f} tokens/s  MFU {row['mfu']:6.1%}  "
                      f"{row['peak_gb']:6.1f} GB  {row['over_bare_compiled']:.3f}", flush=True)  # fmt: skip
        goal = max(row["mfu"] for key, row in rows.items() if key.startswith("distdl"))
        print(f"{name}: best of distdl {goal:.1%} MFU, goal {GOALS[name]:.0%}")
        result["models"][name] = {"parameters": parameters, "batch": batch, "rows": rows}
    return result


def _measure(row: dict[str, Any], make: Callable[[], Iterator[float]], block: int) -> None:
    """Seconds a step over a block, and the peak of memory."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    steps = make()
    for _ in range(5):
        next(steps)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(block):
        next(steps)
    torch.cuda.synchronize()
    row["s"].append((time.perf_counter() - begin) / block)
    row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    del steps


def markdown(result: dict[str, Any]) -> str:
    """The CPU table."""
    lines = ["| ranks | layout | ms a step (median) | over DDP (median of ratios) |", "| --- | --- | ---: | ---: |"]
    for world, rows in result["worlds"].items():
        for name, row in rows.items():
            lines.append(f"| {world} | {name} | {row['median_ms']:.1f} | {row['over_ddp']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="2,4", help="numbers of CPU ranks")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--models", default="124m,1.3b", help="with --gpu")
    parser.add_argument("--block", type=int, default=20, help="with --gpu: steps of a contender at a time")
    parser.add_argument("--output", type=Path, help="folder for the results (default: benchmarks/results)")
    args = parser.parse_args()
    folder, about = args.output or RESULTS, {"command": " ".join(["python", *sys.argv]), "machine": platform.machine()}
    folder.mkdir(parents=True, exist_ok=True)
    if args.gpu:
        result = about | on_gpu(args.models.split(","), min(args.rounds, 3), args.block)
        (folder / "step_gpu.json").write_text(json.dumps(result, indent=1) + "\n")
        return
    about["cores"] = str(len(os.sched_getaffinity(0)))
    result = about | on_cpus([int(n) for n in args.ranks.split(",")], args.rounds)
    (folder / "step.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "step.md").write_text(markdown(result))


if __name__ == "__main__":
    main()
