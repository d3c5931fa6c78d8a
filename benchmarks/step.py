"""Time of a training step on every layout. See README.md.

    python benchmarks/step.py [--ranks 2,4] [--rounds R]       a 10M-parameter GPT on CPU ranks, over plain DDP
    python benchmarks/step.py --base COMMIT [--ranks 2]        the same ranks, beside another commit of this repository
    python benchmarks/step.py --gpu [--models 124m,1.3b]       one GPU: MFU, tokens/s and peak memory over a bare loop

On CPU ranks all contenders live in the same processes and take turns, a step each, so that a busy machine disturbs them
alike; a figure is the median over rounds of the ratio to DDP's step of the same round. With `--base` each build has
processes of its own, with what a user gets switched on (guard and hooks) and with all of that off, and they take turns in
blocks of steps. On a GPU each contender is a process that has it for itself, one after the other, round by round: nothing
that one has compiled or left in memory meets the next.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":  # run by path
    sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.startup import checkout

REPOSITORY = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
WARM_STEPS = 5
"""Of a contender on a GPU, before its block."""
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
    from distdl.own_process import memory_kept
    from distdl.train import worker
    from distdl.train.survey import survey

    config = config_from_dict(values)
    plan, state = survey(config), ProcessState()
    with state:
        learner = worker.build_learner(config, None)
        engine = worker.make_engine(learner, plan, rank)
        source = worker.make_source(plan, rank)
    learner.train()
    with memory_kept(plan.device):  # the whole process, peers and all
        for step in itertools.count():
            loss = 0.0
            with state:
                for batch in engine.feed(source, step):
                    total, count = learner.update(batch, engine, step)["loss"]
                    loss = float(total) / count
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


def gpu_contenders(folder: str, model: dict[str, Any], batch: int) -> dict[str, dict[str, Any]]:
    """Name -> what a process of its own is told: the config, and for ours whether guard and hooks are on, as for users."""
    values = run_config(folder, model, batch)
    found = {
        "bare loop, compiled": {"bare": True, "compiled": True, "values": values},
        "bare loop": {"bare": True, "compiled": False, "values": values},
    }
    for engine, compiled, on in itertools.product(("torch", "zero1"), (True, False), (True, False)):
        ours = run_config(folder, model, batch)
        ours["train"] |= {"precision": "bf16", "compile": compiled}
        ours["parallel"] = {"engine": "torch"} if engine == "torch" else {"zero": 1}
        if not on:
            ours["guard"] = {"nonfinite": False, "parity_every_steps": 0}
        name = f"distdl {engine}{', compiled' * compiled}{', guard and hooks' * on}"
        found[name] = {"bare": False, "on": on, "values": ours}
    return found


def on_gpu(names: list[str], rounds: int, block: int) -> dict[str, Any]:
    """Tokens/s, MFU and peak memory of our layouts and of the bare loop: a process for each model and contender."""
    import torch

    from distdl.families import build

    result: dict[str, Any] = {"models": {}}
    for name in names:
        model, batch = GPU_MODELS[name]
        with torch.device("meta"):
            parameters = sum(p.numel() for p in build({"family": "gpt", **model}).parameters())
        with tempfile.TemporaryDirectory(prefix="distdl-step-") as folder:
            write_data(folder, model, 8 * batch)
            contenders = gpu_contenders(folder, model, batch)
            rows: dict[str, dict[str, Any]] = {key: {"s": []} for key in contenders}
            for _ in range(rounds):
                for key, told in contenders.items():
                    found = apart({**told, "block": block, "folder": folder})
                    rows[key]["s"].append(found["s"])
                    rows[key]["peak_gb"] = found["peak_gb"]
                    result["device"] = found["device"]
        peak = next((flops for chip, flops in PEAK_FLOPS.items() if chip in result["device"]), math.nan)
        result["peak_flops"], tokens = peak, batch * model["context"]
        for row in rows.values():
            seconds = statistics.median(row.pop("s"))
            row |= {"tokens_per_s": tokens / seconds, "step_ms": 1e3 * seconds}
            row["mfu"] = row["tokens_per_s"] * flops_per_token(model, parameters) / peak
        for key, row in rows.items():
            row["over_bare_compiled"] = row["tokens_per_s"] / rows["bare loop, compiled"]["tokens_per_s"]
            print(f"{name} {key:<44}{row['tokens_per_s']:12,.0f} tokens/s  MFU {row['mfu']:6.1%}  "
                  f"{row['peak_gb']:6.1f} GB  {row['over_bare_compiled']:.3f}", flush=True)  # fmt: skip
        best = max(row["mfu"] for key, row in rows.items() if key.startswith("distdl"))
        print(f"{name}: best of distdl {best:.1%} MFU, goal {GOALS[name]:.0%}")
        result["models"][name] = {"parameters": parameters, "batch": batch, "rows": rows}
    return result


def apart(told: dict[str, Any]) -> dict[str, Any]:
    """What `alone_on_gpu` finds in a process of its own, which compiles its one model and ends with its memory."""
    file = Path(told["folder"]) / "found.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--alone", json.dumps({**told, "file": str(file)})]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    if done.returncode or not file.exists():
        raise RuntimeError(f"{command[-1]}: {done.stdout[-1000:]}{done.stderr[-3000:]}")
    return json.loads(file.read_text())


def alone_on_gpu(told: dict[str, Any]) -> None:
    """Seconds a step over a block and the peak of memory of one contender, into a file."""
    import torch

    marks: list[float] = []

    def step_begins() -> None:
        if len(marks) in (WARM_STEPS, WARM_STEPS + told["block"]):
            torch.cuda.synchronize()
        marks.append(time.perf_counter())

    values = told["values"] | {"runs": f"{told['folder']}/runs"}
    values["train"]["steps"] = WARM_STEPS + told["block"] + 1
    steps = bare_steps(values, told["compiled"]) if told["bare"] else ours_with_marks(values, told["on"], step_begins)
    for _ in steps:
        if told["bare"]:
            step_begins()
        if len(marks) > WARM_STEPS + told["block"]:
            break
    found = {
        "s": (marks[WARM_STEPS + told["block"]] - marks[WARM_STEPS]) / told["block"],
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "device": torch.cuda.get_device_name(),
    }
    Path(told["file"]).write_text(json.dumps(found))
    os._exit(0)


def ours_with_marks(values: dict[str, Any], on: bool, step_begins: Callable[[], None]) -> Iterator[float]:
    """The steps of a worker, which calls `step_begins` before each; with guard and hooks it takes all of them at once."""
    from distdl.config.load import config_from_dict
    from distdl.engine.base import Engine
    from distdl.run.folder import open_run
    from distdl.train import worker
    from distdl.train.survey import survey

    config, feed = config_from_dict(values), Engine.feed

    def marked(self: Any, source: Any, step: int) -> Iterator[Any]:
        step_begins()
        yield from feed(self, source, step)

    Engine.feed = marked  # type: ignore[method-assign]
    worker.init_process_group(survey(config), 0, 60.0)
    if on:
        worker.run(survey(config), open_run(config, None, fresh=True), 0)
        yield 0.0
    else:
        yield from our_steps(values, 0)


# -- beside another commit -------------------------------------------------------------------------------------------


class Contender:
    """The ranks of one build on one layout, which train when they are told to."""

    def __init__(self, package: Path, folder: Path, layout: str, world: int, on: bool) -> None:
        from distdl.parity.layouts import laid_out

        folder.mkdir(parents=True)
        values = laid_out(run_config(str(folder), CPU_MODEL, CPU_BATCH, runs=f"{folder}/runs"), layout, world)
        values["train"]["micro_batch"] = 1 if "pipeline" in layout else None
        if not on:
            values["guard"] = {"nonfinite": False, "parity_every_steps": 0}
        told = {"world": world, "folder": str(folder), "values": values, "model": CPU_MODEL, "on": on}
        self.ranks = [self._start(package, {**told, "rank": rank}) for rank in range(world)]

    def _start(self, package: Path, told: dict[str, Any]) -> tuple[Any, Any, Any]:
        (asked, ask), (tell, answer) = os.pipe(), os.pipe()
        command = [sys.executable, str(Path(__file__).parent / "step_turns.py")]
        command.append(json.dumps({**told, "asked": asked, "told": answer}))
        variables = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
        with (Path(told["folder"]) / f"rank-{told['rank']}.log").open("w") as log:
            process = subprocess.Popen(
                command, env=variables, pass_fds=(asked, answer), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        os.close(asked), os.close(answer)
        return process, os.fdopen(ask, "w"), os.fdopen(tell)

    def steps(self, count: int) -> tuple[float, float]:
        """Seconds a step of the slowest rank, and those of the processor for all ranks."""
        for _, ask, _ in self.ranks:
            print(count, file=ask, flush=True)
        lines = [tell.readline() for _, _, tell in self.ranks]
        if not all(lines):
            raise RuntimeError(f"a rank of {self.ranks[0][0].args} ended: see its log")
        wall, busy = zip(*(map(float, line.split()) for line in lines))
        return max(wall) / count, sum(busy) / count

    def end(self) -> None:
        for process, ask, _ in self.ranks:
            ask.close()  # which tells it to leave
            process.wait(120)


def beside(base: str, worlds: list[int], layouts: list[str], rounds: int, block: int) -> dict[str, Any]:
    """Seconds a step of this build and of another commit's on each layout, in turns, with guard and hooks and without."""
    result: dict[str, Any] = {
        "model": CPU_MODEL,
        "global_batch": CPU_BATCH,
        "base": base,
        "rounds": rounds,
        "worlds": {},
    }
    with tempfile.TemporaryDirectory(prefix="distdl-step-") as name, checkout(base, Path(name) / "base") as package:
        for world in worlds:
            rows = result["worlds"].setdefault(str(world), {})
            for layout in layouts or ["torch", *CPU_LAYOUTS[world]]:
                place = Path(name) / f"{world}-{layout}"
                kinds = list(itertools.product((("now", REPOSITORY), ("base", package)), (True, False)))
                found = {(b, on): Contender(at, place / f"{b}-{on}", layout, world, on) for (b, at), on in kinds}
                seconds: dict[tuple[str, bool], list[tuple[float, float]]] = {key: [] for key in found}
                try:
                    for turn in range(rounds + 1):  # the first one warms up
                        for at in range(len(found)):
                            key = list(found)[(at + turn) % len(found)]
                            seconds[key].append(found[key].steps(block))
                finally:
                    for contender in found.values():
                        contender.end()
                rows[layout] = _compared({key: times[1:] for key, times in seconds.items()})
                print(
                    f"{world} ranks  {layout:<28}" + "  ".join(f"{k} {v:.3g}" for k, v in rows[layout].items()),
                    flush=True,
                )
    return result


def _compared(seconds: dict[tuple[str, bool], list[tuple[float, float]]]) -> dict[str, float]:
    """Medians in ms, and the median over rounds of this build's time over the base's of the same round: by the clock, and
    of the processor's time, which a machine that has other work to do disturbs less."""
    found: dict[str, float] = {}
    for on in (True, False):
        word = "on" if on else "off"
        for build in ("base", "now"):
            found[f"{build}_{word}_ms"] = 1e3 * statistics.median(wall for wall, _ in seconds[build, on])
        pairs = list(zip(seconds["now", on], seconds["base", on]))
        found[f"{word}_ratio"] = statistics.median(now[0] / base[0] for now, base in pairs)
        found[f"{word}_busy_ratio"] = statistics.median(now[1] / base[1] for now, base in pairs)
    return found


def heading(result: dict[str, Any]) -> list[str]:
    """The command, and what else one needs to get the figures again."""
    load = f", load average {float(result['load_before']):.1f} before" if "load_before" in result else ""
    return [f"`{result['command']}`: {result['cores']} cores{load}.", ""]


def beside_markdown(result: dict[str, Any]) -> str:
    """The table of two builds."""
    base = result["base"]
    head = "| ranks | layout |" + "".join(
        f" {base}, {w} (ms) | now, {w} | ratio | of CPU time |" for w in ("on", "off")
    )
    lines = [*heading(result), head, "| --- | --- |" + " ---: |" * 8]
    for world, rows in result["worlds"].items():
        for name, row in rows.items():
            told = [
                text
                for w in ("on", "off")
                for text in (
                    *(f"{row[f'{build}_{w}_ms']:.1f}" for build in ("base", "now")),
                    *(f"{row[f'{w}_{kind}ratio']:.3f}" for kind in ("", "busy_")),
                )
            ]
            lines.append(f"| {world} | {name} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def markdown(result: dict[str, Any]) -> str:
    """The CPU table."""
    head = "| ranks | layout | ms a step (median) | over DDP (median of ratios) |"
    lines = [*heading(result), head, "| --- | --- | ---: | ---: |"]
    for world, rows in result["worlds"].items():
        for name, row in rows.items():
            lines.append(f"| {world} | {name} | {row['median_ms']:.1f} | {row['over_ddp']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="2,4", help="numbers of CPU ranks")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--base", help="a commit of this repository to compare with, on CPU ranks")
    parser.add_argument("--layouts", default="", help="with --base: only these, with commas between")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--models", default="124m,1.3b", help="with --gpu")
    parser.add_argument(
        "--block", type=int, help="steps of a contender at a time (default: 20 with --gpu, 4 with --base)"
    )
    parser.add_argument("--alone", help=argparse.SUPPRESS)  # what a process of one contender on a GPU is told
    parser.add_argument("--output", type=Path, help="folder for the results (default: benchmarks/results)")
    args = parser.parse_args()
    if args.alone:
        alone_on_gpu(json.loads(args.alone))
    folder, about = args.output or RESULTS, {"command": " ".join(["python", *sys.argv]), "machine": platform.machine()}
    folder.mkdir(parents=True, exist_ok=True)
    if args.gpu:
        result = about | on_gpu(args.models.split(","), min(args.rounds, 3), args.block or 20)
        (folder / "step_gpu.json").write_text(json.dumps(result, indent=1) + "\n")
        return
    about["cores"] = str(len(os.sched_getaffinity(0)))
    worlds = [int(n) for n in args.ranks.split(",")]
    if args.base:
        about["load_before"] = str(os.getloadavg()[0])
        layouts = [name for name in args.layouts.split(",") if name]
        result = about | beside(args.base, worlds, layouts, args.rounds, args.block or 4)
        (folder / "step_beside.json").write_text(json.dumps(result, indent=1) + "\n")
        (folder / "step_beside.md").write_text(beside_markdown(result))
        return
    result = about | on_cpus(worlds, args.rounds)
    (folder / "step.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "step.md").write_text(markdown(result))


if __name__ == "__main__":
    main()
