"""How long a run takes before it trains, and after. See README.md.

    python benchmarks/startup.py [--base COMMIT] [--rounds R] [--only WORD ...] [--output benchmarks/results/startup.md]

Every contender is a command in a process of its own, timed from outside: to the end of its first step, and to its own end.
They take turns, round by round, and the order turns too. `--base` adds the same commands of another commit of this
repository, with the packages that are installed here. The data set is prepared before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
ONE_STEP = ["train.epochs=null", "train.steps=1", "track.every_steps=1", "--fresh", "--plain"]
TRAINER_NAME = "bare TorchTrainer, two workers"
LOCAL = ["runtime.kind=local", "runtime.workers=1"]
BARE = """
import sys

CONFIG = {"train_batch_size": 32, "train_micro_batch_size_per_gpu": 16, "zero_optimization": {"stage": 1},
          "zero_allow_untested_optimizer": True}

def loop(settings):
    import time
    import deepspeed, torch, torch.distributed as dist

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 300), torch.nn.ReLU(), torch.nn.Linear(300, 10))
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    engine = deepspeed.initialize(model=net, optimizer=optimizer, config=CONFIG)[0]
    loss = torch.nn.functional.cross_entropy(engine(torch.rand(16, 1, 8, 8)), torch.zeros(16, dtype=torch.long))
    engine.backward(loss)
    engine.step()
    if dist.get_rank() == 0:
        open(settings["told"], "w").write(str(time.time()))
"""
TRAINER = (
    BARE
    + """
import ray.train.torch
from ray.train import RunConfig, ScalingConfig

ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
scaling = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1})
settings = {"told": sys.argv[1]}
ray.train.torch.TorchTrainer(
    loop, train_loop_config=settings, scaling_config=scaling, run_config=RunConfig(name="bare", storage_path=sys.argv[2])
).fit()
"""
)
TORCHRUN = (
    BARE
    + """
import torch.distributed as dist

dist.init_process_group("gloo")
loop({"told": sys.argv[1]})
dist.destroy_process_group()
"""
)


@dataclass
class Contender:
    """A command, and what was measured of it."""

    name: str
    command: list[str]
    package: Path | None = None
    """The checkout whose distdl it runs; None: it is a peer."""
    first_s: list[float] = field(default_factory=list)
    """Seconds to the end of the first step."""
    all_s: list[float] = field(default_factory=list)


def contenders(package: Path, label: str, data: Path) -> Iterator[Contender]:
    """distdl's own, of a checkout."""
    train = [sys.executable, "-m", "distdl", "train"]
    mlp, quickstart = (next((package / "configs").rglob(f"{name}.yaml")) for name in ("mlp", "quickstart"))
    given = [f"data.path={data}", *ONE_STEP]
    untracked = ["parallel.engine=torch", "track.enabled=false"]
    yield Contender(
        f"{label}: one local worker, plain torch, untracked", [*train, str(mlp), *LOCAL, *given, *untracked], package
    )
    yield Contender(f"{label}: one local worker, DeepSpeed, tracked", [*train, str(mlp), *LOCAL, *given], package)
    on_ray = [*train, str(quickstart), f"data.path={data}", "track.every_steps=1", "--fresh", "--plain"]
    yield Contender(f"{label}: quickstart, two workers on Ray", on_ray, package)
    yield Contender(f"{label}: distdl families", [sys.executable, "-m", "distdl", "families"], package)


def peers(folder: Path) -> Iterator[Contender]:
    """A bare Ray Train run and a bare torchrun, two workers each, with the imports that training needs."""
    for name, text in (("trainer", TRAINER), ("launched", TORCHRUN)):
        (folder / f"{name}.py").write_text(text)
    told = str(folder / "told")
    yield Contender(TRAINER_NAME, [sys.executable, str(folder / "trainer.py"), told, str(folder / "ray")])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    yield Contender("bare torchrun, two workers", [*launch, str(folder / "launched.py"), told])


@contextmanager
def checkout(commit: str, folder: Path) -> Iterator[Path]:
    """Another commit of this repository, in a folder of its own."""
    git = ["git", "-C", str(REPOSITORY), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def prepared(package: Path, data: Path) -> Path:
    """The digits, prepared by the distdl of a checkout."""
    prepare = [sys.executable, "-m", "distdl", "data", "prepare", "digits", str(data)]
    subprocess.run(
        prepare, check=True, capture_output=True, cwd=data.parent, env={**os.environ, "PYTHONPATH": str(package)}
    )
    return data


def measure(contender: Contender, folder: Path) -> None:
    """Runs it once, in an empty folder, and keeps its seconds."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    (folder / "told").unlink(missing_ok=True)
    variables = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    if contender.package:
        variables["PYTHONPATH"] = str(contender.package)
    begin = time.time()
    done = subprocess.run(contender.command, cwd=work, env=variables, capture_output=True, text=True)
    end = time.time()
    if done.returncode:
        raise RuntimeError(f"{contender.name}: {done.stdout[-1000:]}{done.stderr[-3000:]}")
    contender.all_s.append(end - begin)
    if (first := first_step(folder, work)) is not None:
        contender.first_s.append(first - begin)


def first_step(folder: Path, work: Path) -> float | None:
    """When the first step had ended, in seconds since 1970; None: there was none."""
    if (folder / "told").exists():
        return float((folder / "told").read_text())
    for file in work.glob("runs/*/events.jsonl"):
        events = (json.loads(line) for line in file.read_text().splitlines())
        return float(next(event["t"] for event in events if event["kind"] == "metrics"))
    return None


def table(found: list[Contender]) -> str:
    lines = ["| | first step, s | in all, s |", "| --- | ---: | ---: |"]
    median = {c.name: [statistics.median(s) if s else None for s in (c.first_s, c.all_s)] for c in found}
    for name, seconds in median.items():
        lines.append(" | ".join([f"| {name}", *("-" if s is None else f"{s:.2f}" for s in seconds)]) + " |")
    ratios = []
    for name, (first, whole) in median.items():
        kind, _, what = name.partition(": ")
        before = median.get(f"before: {what}") if kind == "now" else None
        if before:
            ratios.append(
                f"- {what}: {whole / before[1]:.2f} of before in all"
                + (f", {first / before[0]:.2f} to the first step" if first else "")
            )
    (trainer, _), (ours, _) = (
        median.get(name, (None, None)) for name in (TRAINER_NAME, "now: quickstart, two workers on Ray")
    )
    if trainer and ours:
        ratios.append(f"- quickstart on Ray to the first step: {ours / trainer:.2f} of the bare TorchTrainer's")
    return "\n".join([*lines, "", *ratios])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="a commit to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[""], help="contenders whose name has one of these words")
    parser.add_argument("--output", default="benchmarks/results/startup.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="distdl-startup-") as name:
        folder = Path(name)
        with checkout(args.base or "HEAD", folder / "base") as base:
            found = [*contenders(REPOSITORY, "now", prepared(REPOSITORY, folder / "digits")), *peers(folder)]
            if args.base:  # an older one may not read what a newer one prepares
                found += contenders(base, "before", prepared(base, folder / "digits-before"))
            found = [c for c in found if any(word in c.name for word in args.only)]
            for turn in range(args.rounds + 1):
                for at in range(len(found)):
                    measure(found[(at + turn) % len(found)], folder)
                print(f"round {turn} of {args.rounds}", file=sys.stderr)
            for contender in found:  # the first round fills caches
                del contender.first_s[:1], contender.all_s[:1]
    command = " ".join(
        ["python benchmarks/startup.py", *(["--base", args.base] if args.base else []), f"--rounds {args.rounds}"]
    )
    told = f"# Start-up\n\n`{command}`: medians.\n\n{table(found)}\n"
    Path(args.output).write_text(told)
    print(told)


if __name__ == "__main__":
    main()
