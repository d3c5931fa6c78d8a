"""What it costs to compare what is read with its checksums again (`data.verify_again_mb_per_s`). See README.md.

    python benchmarks/verify_again.py [--rounds R] [--output benchmarks/results/verify_again.md]

28x28 pictures in batches of 256 through the public reader, one pass a round. The settings take turns within a round, so
that a disturbance of seconds hits them all; CPU seconds count the reading thread, too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from distdl.data.manifest import Column
from distdl.data.read import Dataset
from distdl.data.source import BatchSource
from distdl.data.write import DatasetWriter

ROWS, BATCH = 120_000, 256
SETTINGS = {"never (0)": 0.0, "100 MB/s (default)": 100e6, "1,000 MB/s": 1e9, "as much as is handed out": 1e15}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--output", default="benchmarks/results/verify_again.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pictures"
        write(path)
        data = {name: Dataset(path, "train", verify_again_bytes_per_s=rate) for name, rate in SETTINGS.items()}
        for dataset in data.values():
            one_pass(dataset)  # maps and first touch
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in data}
        for turn in range(args.rounds):
            names = list(data)[turn % len(data) :] + list(data)[: turn % len(data)]
            for name in names:
                found[name].append(one_pass(data[name]))
    table = report(found, args.rounds)
    Path(args.output).write_text(table, encoding="utf-8")
    print(table)


def write(path: Path) -> None:
    random = np.random.default_rng(0)
    columns = {"image": Column("uint8", (1, 28, 28)), "label": Column("int64")}
    with DatasetWriter(path, columns, "benchmark", {}) as writer:
        for _ in range(ROWS // 10_000):
            pictures = random.integers(0, 256, (10_000, 1, 28, 28), dtype=np.uint8)
            writer.write("train", {"image": pictures, "label": random.integers(0, 10, 10_000)})


def one_pass(data: Dataset) -> tuple[float, float]:
    """(wall seconds, CPU seconds) of one epoch."""
    source = BatchSource(data, seed=1, global_batch=BATCH, micro_batch=BATCH, accumulate=1, rank=0, world=1)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(ROWS // BATCH):
        next(source)
    spent = time.perf_counter() - wall, time.process_time() - cpu
    source.close()
    return spent


def report(found: dict[str, list[tuple[float, float]]], rounds: int) -> str:
    base = next(iter(found.values()))
    lines = [
        f"`python benchmarks/verify_again.py --rounds {rounds}`: {ROWS:,} pictures of 28x28, {BATCH} a batch, medians.\n",
        "| compared again | samples/s | CPU ns a sample | wall, of never | CPU, of never |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, spent in found.items():
        wall, cpu = (statistics.median(s[i] for s in spent) for i in (0, 1))
        ratios = [statistics.median(s[i] / b[i] for s, b in zip(spent, base)) for i in (0, 1)]
        lines.append(f"| {name} | {ROWS / wall:,.0f} | {cpu / ROWS * 1e9:,.0f} | {ratios[0]:.3f} | {ratios[1]:.3f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
