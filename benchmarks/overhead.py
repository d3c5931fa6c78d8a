"""Microseconds that a training step costs under distdl, under bare loops and under its peers. See README.md.

    python benchmarks/overhead.py [--steps N] [--rounds R] [--only a,b] [--output benchmarks/results/overhead.json]

Every contender lives in a process of its own, so that none changes the settings of another, and only one runs at a time:
a round is a block of N steps of each, then all wait where they are. A block lasts from the start of one forward pass to
the start of another, so whatever a loop does between them counts.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

ROWS, INPUTS, HIDDEN, CLASSES, BATCH = 4096, 64, 64, 10, 32
WARMUP_STEPS, RANKS_WARMUP_STEPS = 200, 40
TIMEOUT_S = 300.0
TARGETS_US = {"distdl deepspeed, telemetry off": 50.0, "distdl deepspeed, everything on": 150.0}
"""Most microseconds that a step may cost over bare DeepSpeed."""
NOT_DRAWN, DRAWN = "distdl deepspeed, evaluated, no pictures", "distdl deepspeed, evaluated, every one drawn"
"""Rows with an evaluation in every block, which differ by the pictures of it alone."""
BASES = ("bare torch", "bare deepspeed", "bare deepspeed + distdl data")
PACKAGES = ("torch", "deepspeed", "mlflow", "lightning", "accelerate", "transformers", "numpy")
CONFIG = f"""\
name: overhead
model: {{family: mlp, inputs: [{INPUTS}], column: image, hidden: [{HIDDEN}], classes: {CLASSES}}}
data: {{path: FOLDER/data, eval_split: null}}
train: {{global_batch: {BATCH}, steps: 1, threads_per_worker: 1}}
optimizer: {{name: adamw, lr: 1e-3}}
evaluate: {{every_steps: 0}}
checkpoint: {{every_steps: 0}}
runtime: {{kind: local, workers: 1}}
runs: FOLDER/runs
"""


@dataclass
class Row:
    """A contender's figures, or why it has none."""

    name: str
    wall_us: list[float] = field(default_factory=list)
    """Microseconds a step by the clock, one figure a round."""
    cpu_us: list[float] = field(default_factory=list)
    """CPU microseconds a step of the whole process: what a busy machine changes less."""
    reason: str = ""
    """Why it was skipped or failed."""
    failed: bool = False


# -- the process of a contender ------------------------------------------------------------------------------------------


def serve(name: str, folder: Path, block_steps: int, rounds: int, pipe: Connection, rank: int, world: int) -> None:
    """Trains block after block, each when a message allows it, and answers with its microseconds a step.

    The first answer is that of the warm-up; the last is the reason of a failure, or empty.
    """
    _be_quiet(folder / f"{name.replace(' ', '-')}-{rank}.log")
    import torch
    from contenders import CONTENDERS, ON_RANKS, PACE, Task

    def pause(wall_s: float, cpu_s: float) -> None:
        pipe.send((1e6 * wall_s / block_steps, 1e6 * cpu_s / block_steps))
        pipe.recv()

    torch.set_num_threads(1)
    warmup = WARMUP_STEPS if world == 1 else RANKS_WARMUP_STEPS
    PACE.start(warmup, block_steps, pause)
    try:
        loop = CONTENDERS[name] if world == 1 else ON_RANKS[name]
        loop(Task(folder, warmup + rounds * block_steps + 1, rank, world, name))
        pipe.send(("", False))
    except ModuleNotFoundError as error:
        pipe.send((f"{error.name} is not installed", False))
    except Exception as error:
        traceback.print_exc()
        pipe.send((f"{type(error).__name__}: {error}"[:300], True))


def _be_quiet(log: Path) -> None:
    """Sends whatever this process prints to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
    warnings.filterwarnings("ignore")
    for library in ("lightning", "lightning.pytorch", "lightning.fabric", "DeepSpeed", "transformers", "accelerate"):
        logging.getLogger(library).setLevel(logging.ERROR)


# -- the measurement -----------------------------------------------------------------------------------------------------


class Contender:
    """The processes of one row, seen from here: one for each of its ranks."""

    def __init__(self, name: str, folder: Path, steps: int, rounds: int, world: int = 1) -> None:
        context = multiprocessing.get_context("spawn")
        self.row = Row(name)
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for rank in range(world):
            ours, theirs = context.Pipe()
            told = (name, folder, steps, rounds, theirs, rank, world)
            process = context.Process(target=serve, args=told, daemon=False)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._take()  # it is warm now, and waits

    @property
    def alive(self) -> bool:
        return not self.row.reason

    def block(self) -> None:
        """Lets it do one block."""
        self._go_on()
        if figures := self._take():
            self.row.wall_us.append(figures[0])
            self.row.cpu_us.append(figures[1])

    def end(self) -> None:
        """Lets it finish its run: the last checkpoint, the end of tracking."""
        if self.alive:
            self._go_on()
            self._take()
        for process in self._processes:
            process.join(20)
            if process.is_alive():
                process.kill()
                process.join()

    def _go_on(self) -> None:
        for pipe in self._pipes:
            pipe.send(True)

    def _take(self) -> tuple[float, float] | None:
        """The figures of a block, of the slowest rank by the clock and of all ranks' processors; or the reason why there
        are none, which goes into the row."""
        answers = [self._answer(pipe) for pipe in self._pipes]
        if reasons := [answer for answer in answers if isinstance(answer[0], str)]:
            self.row.reason, self.row.failed = next((r for r in reasons if r[0]), reasons[0])
            return None
        wall, cpu = zip(*answers)
        return max(wall), sum(cpu)

    @staticmethod
    def _answer(pipe: Connection) -> tuple[Any, Any]:
        try:
            if pipe.poll(TIMEOUT_S):
                return pipe.recv()
            return f"no answer within {TIMEOUT_S:.0f} s", True
        except (OSError, EOFError) as error:
            return f"its process ended: {error or type(error).__name__}", True


def measure(names: list[str], folder: Path, steps: int, rounds: int, world: int = 1) -> list[Row]:
    """All rounds of all contenders; the order rotates from round to round."""
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    os.environ |= {"FORCE_COLOR": "1", "TERM": "xterm"}  # rich draws its live lines for a terminal only
    contenders: list[Contender] = []
    try:
        for name in names:
            print(f"starting {name}", file=sys.stderr, flush=True)
            contenders.append(Contender(name, folder, steps, rounds, world))
        for turn in range(rounds):
            for contender in contenders[turn % len(names) :] + contenders[: turn % len(names)]:
                if contender.alive:
                    contender.block()
            seen = ", ".join(f"{c.row.wall_us[-1]:.0f}" for c in contenders if c.alive)
            print(f"round {turn + 1} of {rounds}: {seen} us a step", file=sys.stderr, flush=True)
    finally:
        for contender in contenders:
            contender.end()
    return [contender.row for contender in contenders]


def prepare(folder: Path) -> None:
    """The data set and the config that every contender trains."""
    from distdl.data.manifest import Column
    from distdl.data.write import DatasetWriter

    draw = np.random.default_rng(0)
    columns = {"image": Column("float32", (INPUTS,)), "label": Column("int64")}
    with DatasetWriter(folder / "data", columns, source="overhead", options={}) as writer:
        for split, rows in (("train", ROWS), ("test", BATCH)):
            image = draw.standard_normal((rows, INPUTS), np.float32)
            writer.write(split, {"image": image, "label": draw.integers(0, CLASSES, rows)})
    (folder / "config.yaml").write_text(CONFIG.replace("FOLDER", str(folder)), encoding="utf-8")


# -- the report ----------------------------------------------------------------------------------------------------------


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: microseconds a step, the differences and ratios between minima."""
    base = {row.name: min(row.wall_us) for row in rows if row.wall_us}
    header = ["us a step", "min", "median", "CPU min", *(f"over {name}" for name in BASES)]
    header += [f"x {name}" for name in BASES[:2]]
    cells = []
    for row in rows:
        if not row.wall_us:
            cells.append([row.name, f"skipped: {row.reason}", *[""] * (len(header) - 2)])
            continue
        wall = base[row.name]
        over = [f"{wall - base[name]:+.0f}" if name in base else "" for name in BASES]
        ratio = [f"{wall / base[name]:.2f}" if name in base else "" for name in BASES[:2]]
        figures = [wall, statistics.median(row.wall_us), min(row.cpu_us)]
        cells.append([row.name, *(f"{value:.0f}" for value in figures), *over, *ratio])
    return header, cells


def verdicts(rows: list[Row], steps: int) -> list[str]:
    """One sentence for each target and base: the difference of the minima, and the median of the rounds' differences; and
    one of what the pictures of an evaluation cost, of which there is one in a block of so many `steps`."""
    walls = {row.name: row.wall_us for row in rows if row.wall_us}
    said = []
    for name, target in TARGETS_US.items():
        for base in BASES[1:]:
            if name in walls and base in walls:
                best = min(walls[name]) - min(walls[base])
                usual = statistics.median(mine - theirs for mine, theirs in zip(walls[name], walls[base]))
                met = "met" if best <= target else "MISSED"
                said.append(
                    f"{name}: {best:+.0f} us over {base} ({usual:+.0f} in the median), at most {target:.0f}: {met}"
                )
    if NOT_DRAWN in walls and DRAWN in walls:
        best = steps * (min(walls[DRAWN]) - min(walls[NOT_DRAWN]))
        usual = steps * statistics.median(a - b for a, b in zip(walls[DRAWN], walls[NOT_DRAWN]))
        told = "what training waits for, apart from the process that draws"
        said.append(f"pictures of an evaluation: {best:+,.0f} us ({usual:+,.0f} in the median), {told}")
    return said


def circumstances(command: str, steps: int, began: float, load_before: tuple[float, ...]) -> dict[str, Any]:
    """What someone needs to know to believe the figures, or to get them again."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "command": command,
        "steps": steps,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(began)),
        "took_s": round(time.time() - began),
        "versions": {"python": platform.python_version(), **versions},
        "cpu": f"{cpu[0].split(':')[1].strip() if cpu else platform.machine()}, {os.cpu_count()} cores",
        "load_before": [round(x, 2) for x in load_before],
        "load_after": [round(x, 2) for x in os.getloadavg()],
    }


def markdown(rows: list[Row], about: dict[str, Any]) -> str:
    """The table as a Markdown page."""
    header, cells = table(rows)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        "# Overhead of a training step",
        "",
        f"`{about['command']}`, {about['date']}, {about['took_s']} s",
        f"\nCPU: {about['cpu']}; load average {about['load_before']} before, {about['load_after']} after",
        f"\nVersions: {versions}",
        "",
        "| " + " | ".join(header) + " |",
        "|" + " --- |" + " ---: |" * (len(header) - 1),
        *("| " + " | ".join(line) + " |" for line in cells),
        "",
        *(f"- {verdict}" for verdict in verdicts(rows, about["steps"])),
    ]
    return "\n".join(lines) + "\n"


def show(rows: list[Row], steps: int) -> None:
    """The table in the terminal."""
    header, cells = table(rows)
    widths = [max(len(line[i]) for line in [header, *(c for c in cells if c[2])]) for i in range(len(header))]
    for line in [header, *cells]:
        first, *rest = (text.rjust(width) for text, width in zip(line, widths))
        print("  ".join([first.strip().ljust(widths[0]), *rest]).rstrip())
    print("", *verdicts(rows, steps), sep="\n")


def main() -> int:
    from contenders import CONTENDERS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=128, help="steps of each contender in a round")
    parser.add_argument("--rounds", type=int, default=60, help="rounds")
    parser.add_argument(
        "--only", default="", help="contenders whose name holds one of these texts, with commas between"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "overhead.json")
    options = parser.parse_args()
    if options.steps < 1 or options.rounds < 1:
        parser.error("--steps and --rounds are at least 1")
    names = [name for name in CONTENDERS if any(part in name for part in options.only.split(","))]
    if not names:
        parser.error(f"--only names none of: {'; '.join(CONTENDERS)}")
    command = f"python benchmarks/overhead.py --steps {options.steps} --rounds {options.rounds}"
    command += f" --only '{options.only}'" if options.only else ""
    began, load_before = time.time(), os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="distdl-overhead-") as folder:
        prepare(Path(folder))
        rows = measure(names, Path(folder), options.steps, options.rounds)
    about = circumstances(command, options.steps, began, load_before)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    record = {**about, "targets_us": TARGETS_US, "rows": [asdict(row) for row in rows]}
    options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text(markdown(rows, about), encoding="utf-8")
    show(rows, options.steps)
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
