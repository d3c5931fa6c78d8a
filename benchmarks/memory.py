"""The most memory that a rank has to itself, from the start of a run through its checkpoint and a resume. See README.md.

    python -m benchmarks.memory [--million 350] [--ranks 4] [--layouts zero3,zero1+tensor2+pipeline2] [--base COMMIT]
                                [--output benchmarks/results/memory.md]

A GPT of so many million parameters, `distdl train` with local workers on CPUs: two steps and a checkpoint, then two more
from it. Beside it every rank is looked at: private memory as the kernel counts it (smaps_rollup, clean and dirty), which no
other process shares. `--base` adds the same run of another commit of this repository, with the packages installed here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.startup import REPOSITORY, checkout
from distdl.plan.refuse import layout_key

EVERY_S = 0.02
VOCABULARY, CONTEXT = 50257, 64
NOTHING = {"vocabulary": 256, "width": 8, "layers": 4}
"""The model of the floor."""
SHARE = 1.2
"""Goal: this times a rank's share and two layers, beside the floor."""


class Peak(NamedTuple):
    """Bytes that a rank had to itself at most."""

    first: int
    """Until the first run's checkpoint was whole."""
    resumed: int
    idle: int
    """What the same process has with a model of nothing: the floor."""


def config(million: float, layout: str, ranks: int, data: Path, runs: Path) -> dict[str, Any]:
    width = 1024 if million > 100 else 512
    layers = max(2, round((million * 1e6 - VOCABULARY * width) / (12 * width**2)))
    model = {
        "family": "gpt",
        "vocabulary": VOCABULARY,
        "context": CONTEXT,
        "width": width,
        "heads": 8,
        "layers": layers,
    }
    cuts = dict(layout_key(layout))
    data_ranks = ranks // (cuts.get("tensor", 1) * cuts.get("pipeline", 1))
    return {
        "name": "memory",
        "model": model,
        "data": {"path": str(data), "threads": 0, "eval_split": None},
        "train": {"global_batch": data_ranks, "micro_batch": 1, "steps": 2},
        "optimizer": {"name": "adamw", "lr": 1e-4},
        "parallel": {"engine": "deepspeed", **cuts},
        "runtime": {"kind": "local", "workers": ranks},
        "track": {"enabled": False},
        "runs": str(runs),
    }


def tokens(path: Path, vocabulary: int) -> None:
    """A data set of random tokens."""
    import numpy as np

    from distdl.data.manifest import Column
    from distdl.data.write import DatasetWriter

    drawn = np.random.default_rng(0).integers(0, vocabulary, (64, CONTEXT + 1), dtype=np.int32)
    with DatasetWriter(path, {"tokens": Column("int32", (CONTEXT + 1,))}, "memory", {}) as writer:
        writer.write("train", {"tokens": drawn})


def watched(command: list[str], package: Path, folder: Path) -> list[int]:
    """Runs a command; the peak of each of its workers, in bytes."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(package),
        "OMP_NUM_THREADS": "1",
        "DISTDL_HOME": str(folder / "home"),
    }
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        peaks: dict[int, int] = {}
        while process.poll() is None:
            for pid in workers_of(process.pid):
                with contextlib.suppress(OSError):
                    peaks[pid] = max(peaks.get(pid, 0), private(pid))
            time.sleep(EVERY_S)
    if process.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {process.returncode}:\n{(folder / 'output').read_text()[-3000:]}"
        )
    return list(peaks.values())


def workers_of(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                yield int(child)


def private(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def measure(package: Path, values: dict[str, Any], folder: Path) -> Peak:
    """Trains, resumes, and trains a model of nothing, each beside a watch."""

    def run(values: dict[str, Any], *options: str) -> int:
        (folder / "run.yaml").write_text(json.dumps(values))
        command = [sys.executable, "-m", "distdl", "train", str(folder / "run.yaml"), *options, "--plain"]
        return max(watched(command, package, folder))

    few = {**values["data"], "path": values["data"]["path"] + "-small"}
    nothing = {**values, "name": "nothing", "model": {**values["model"], **NOTHING}, "data": few}
    return Peak(run(values), run(values, "train.steps=4"), run(nothing))


def planned(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    (folder / "run.yaml").write_text(json.dumps(values))
    command = [sys.executable, "-m", "distdl", "plan", str(folder / "run.yaml"), "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def two_layers(plan: dict[str, Any], tensor: int) -> int:
    """Bytes of the two largest layers of a rank."""
    return sum(sorted((4 * count // tensor for _, count in plan["model"]["layers"]), reverse=True)[:2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--million", type=float, default=350)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--layouts", default="zero3,zero1+tensor2+pipeline2")
    parser.add_argument("--base", metavar="COMMIT")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    lines = [
        "| layout | build | share | two layers | floor | first run | resumed | over share and two layers |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    with tempfile.TemporaryDirectory(prefix="distdl-memory-") as place, contextlib.ExitStack() as stack:
        folder = Path(place)
        tokens(folder / "data", VOCABULARY)
        tokens(folder / "data-small", NOTHING["vocabulary"])
        builds = {"this": REPOSITORY}
        if args.base:
            builds[args.base] = stack.enter_context(checkout(args.base, folder / "base"))
        for layout in args.layouts.split(","):
            values = config(args.million, layout, args.ranks, folder / "data", folder / "runs")
            plan = planned(values, folder)
            share = sum(plan["state_bytes_per_worker"].values())
            layers = two_layers(plan, plan["mesh"]["tensor"])
            for name, package in builds.items():
                values["runs"] = str(folder / f"runs-{name}-{layout}")
                peak = measure(package, values, folder)
                over = (max(peak.first, peak.resumed) - peak.idle) / (share + layers)
                sizes = " | ".join(
                    f"{size / 1e6:,.0f}" for size in (share, layers, peak.idle, peak.first, peak.resumed)
                )
                lines.append(f"| {layout} | {name} | {sizes} | {over:.2f} |")
                print(lines[-1], file=sys.stderr)
    base = f" --base {args.base}" if args.base else ""
    told = f"`python -m benchmarks.memory --million {args.million:g} --ranks {args.ranks}{base}`"
    what = f"private MB of the fullest of {args.ranks} ranks; the goal is {SHARE:g} in the last column"
    text = "\n".join([f"# Memory\n\n{told}: {what}.\n", *lines])
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
