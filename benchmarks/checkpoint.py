"""How long training stands still for a checkpoint, and when it is whole on disk. See README.md.

    python benchmarks/checkpoint.py [--base COMMIT] [--million 30] [--rounds 5] [--output benchmarks/results/checkpoint.md]

A GPT with AdamW's state, in one process and one thread. Every contender is a process of its own; they take turns, round by
round, the order turning too, and each saves twice: the second time counts, whose memory is there. `--base` adds this
repository's own of another commit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run by path; the package may be another commit's, which the environment names first
    sys.path.append(str(Path(__file__).parent.parent))

REPOSITORY = Path(__file__).parent.parent
BEFORE = "distdl before, synchronous"
CHILD_TIMEOUT_S = 900


# -- what a child process does ---------------------------------------------------------------------------------------------


def engine_of(million: float) -> Any:
    """A GPT of so many million parameters, one step old."""
    import torch

    from distdl.config.load import config_from_dict
    from distdl.engine.torch import TorchEngine
    from distdl.families import build
    from distdl.plan.facts import DataFacts, Hardware, ModelFacts
    from distdl.plan.plan import make_plan

    width = 512
    layers = max(1, round(million * 1e6 / (12 * width**2)))
    model = {"family": "gpt", "vocabulary": 256, "context": 64, "width": width, "layers": layers, "heads": 8}
    values = {
        "name": "bench",
        "model": model,
        "data": {"path": "x", "threads": 0},
        "train": {"global_batch": 2, "steps": 9, "micro_batch": 2},
        "optimizer": {"name": "adamw", "lr": 1e-4},
        "parallel": {"engine": "torch"},
        "runtime": {"kind": "local", "workers": 1},
        "track": {"enabled": False},
    }
    facts = ModelFacts("gpt", 1, 1, 1, "loss", "lower", ("torch",), ())
    plan = make_plan(config_from_dict(values), facts, DataFacts("x", "f", 64, 0), Hardware("cpu", 1, 0))
    torch.manual_seed(0)
    engine = TorchEngine(build(model), plan, 0)
    rows = {"tokens": torch.zeros(2, 65, dtype=torch.long), "id": torch.arange(2), "position": torch.arange(2)}
    for part in engine.feed(iter([rows]), 0):
        engine.learner.update(part, engine, 0)
    return engine


def state_at(step: int) -> Any:
    from distdl.checkpoint.state import RunState

    return RunState(step, stopped=False, data={}, optimizer_steps={"learner": 1}, hooks={}, primary=None)


Save = Callable[[Path, int], Callable[[], object]]
"""A folder and a step -> what waits until the checkpoint is whole on disk. Training stands still for its own time."""


def distdl_asynchronous(engine: Any) -> Save:
    from distdl.checkpoint.save import Copies, Saving

    copies = Copies()
    return lambda folder, step: Saving(folder, engine, state_at(step), copies=copies).finish


def distdl_synchronous(engine: Any) -> Save:
    from distdl.checkpoint.save import save

    def run(folder: Path, step: int) -> Callable[[], object]:
        save(folder, engine, state_at(step))
        return lambda: None

    return run


def tensors_of(engine: Any) -> dict[str, Any]:
    return dict(engine.tensors())


def host_copy(engine: Any) -> Save:
    """The yardstick: the same tensors into memory that is kept."""
    import torch

    kept = {name: torch.empty_like(tensor) for name, tensor in tensors_of(engine).items()}

    def run(folder: Path, step: int) -> Callable[[], object]:
        for name, tensor in engine.tensors():
            kept[name].copy_(tensor)
        return lambda: None

    return run


def torch_save(engine: Any) -> Save:
    import torch

    def run(folder: Path, step: int) -> Callable[[], object]:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{step}.pt", "wb") as file:
            torch.save(tensors_of(engine), file)
            file.flush()
            os.fsync(file.fileno())
        return lambda: None

    return run


def torch_dcp(engine: Any, asynchronous: bool = False) -> Save:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    if not dist.is_initialized():
        store = dist.HashStore()
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)

    def run(folder: Path, step: int) -> Callable[[], object]:
        call = dcp.async_save if asynchronous else dcp.save
        saved = call(tensors_of(engine), checkpoint_id=str(folder / str(step)))
        return saved.result if asynchronous else lambda: None

    return run


def deepspeed_own(engine: Any) -> Save:
    """DeepSpeed's engine around the same learner's weights, ZeRO-1 on one rank."""
    import deepspeed
    import torch

    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    module = engine.learner
    optimizer = torch.optim.AdamW(module.parameters(), 1e-4)
    json_ = {"train_batch_size": 1, "zero_optimization": {"stage": 1}, "zero_allow_untested_optimizer": True}
    wrapped = deepspeed.initialize(model=module, optimizer=optimizer, config=json_)[0]
    for parameter in module.parameters():
        parameter.grad = None
    loss = sum(parameter.square().sum() for parameter in module.parameters())
    wrapped.backward(loss)
    wrapped.step()

    def run(folder: Path, step: int) -> Callable[[], object]:
        wrapped.save_checkpoint(str(folder), tag=str(step))
        return lambda: None

    return run


CONTENDERS: dict[str, Callable[[Any], Save]] = {
    "distdl": distdl_asynchronous,
    "distdl, asynchronous: false": distdl_synchronous,
    BEFORE: distdl_synchronous,
    "a host copy into kept memory": host_copy,
    "torch.save and fsync": torch_save,
    "torch.distributed.checkpoint": torch_dcp,
    "torch.distributed.checkpoint, async": lambda engine: torch_dcp(engine, asynchronous=True),
    "DeepSpeed's own, ZeRO-1": deepspeed_own,
}


def child(name: str, million: float, folder: Path) -> dict[str, float]:
    import resource

    import torch

    torch.set_num_threads(1)
    engine = engine_of(million)
    save = CONTENDERS[name](engine)
    found: dict[str, float] = {}
    for step in (1, 2):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin = time.perf_counter()
        wait = save(folder, step)
        still = time.perf_counter() - begin
        wait()
        found = {"still_s": still, "durable_s": time.perf_counter() - begin} | (
            {"extra_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024}
            if step == 1
            else {"extra_mb": found["extra_mb"]}
        )
    return found | {"bytes": float(sum(tensor.nbytes for _, tensor in engine.tensors()))}


# -- the turns -----------------------------------------------------------------------------------------------------------


def measure(name: str, package: Path, million: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="distdl-checkpoint-") as folder:
        variables = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        command = [sys.executable, __file__, "--child", name, str(million), folder]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S)
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def table(found: dict[str, list[dict[str, float]]]) -> str:
    lines = [
        "| | training stands still, s | of a host copy | until whole on disk, s | first time: more memory, MB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    median = {
        name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        for name, rounds in found.items()
    }
    copy = median["a host copy into kept memory"]["still_s"]
    for name, of in median.items():
        lines.append(
            f"| {name} | {of['still_s']:.3f} | {of['still_s'] / copy:.1f} | {of['durable_s']:.2f} | {of['extra_mb']:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="a commit to compare with")
    parser.add_argument("--million", type=float, default=30, help="parameters; each takes 12 bytes of a checkpoint")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="a Markdown file for the table")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child[0], float(args.child[1]), Path(args.child[2]))))
        return
    names = [name for name in CONTENDERS if args.base or name != BEFORE]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    from benchmarks.startup import checkout

    with tempfile.TemporaryDirectory(prefix="distdl-base-") as folder, contextlib.ExitStack() as stack:
        package = dict.fromkeys(names, REPOSITORY)
        if args.base:
            package[BEFORE] = stack.enter_context(checkout(args.base, Path(folder) / "base"))
        for turn in range(args.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                found[name].append(measure(name, package[name], args.million))
            print(f"round {turn + 1} of {args.rounds}", file=sys.stderr)
    size = next(iter(found.values()))[0]["bytes"]
    text = table(found)
    print(text)
    if args.output:
        base = f" --base {args.base}" if args.base else ""
        said = f"`python benchmarks/checkpoint.py --million {args.million:g} --rounds {args.rounds}{base}`"
        args.output.write_text(
            f"# Checkpoints\n\n{said}: medians of a save of {size / 1e9:.2f} GB, the second of a process.\n\n{text}\n"
        )


if __name__ == "__main__":
    main()
