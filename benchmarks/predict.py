"""What `distdl predict` on two workers costs over a bare loop, on the same rows.

    python -m benchmarks.predict [--rows 20000] [--rounds 5] [--out benchmarks/results/predict.md]

The bare loop is what one would write by hand: two processes with a thread each, the model of the same checkpoint in each,
half of the rows of the same prepared data set for each, read 1,024 at a time, `model.answer` on 256 at a time without
gradients, and the answers kept as arrays. It writes nothing. distdl is `distdl predict RUN DATA --workers 2 -o
answers.parquet`, with processes of this machine and with actors of a Ray cluster: it reads the same rows, names the
classes, puts the answers in order and writes them. Neither's start is counted, as it does not grow with the rows: each has
answered some before. All three take turns in one run; what is compared is the median of the rounds.

A second table is what a CSV takes, where most of the work is reading: there is no bare loop for that.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

BARE = """
import sys, time
import numpy as np, torch
import distdl
from distdl.data.read import Dataset

run, data, rank, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
model, rows = distdl.load(run).eval(), Dataset(data, "test")
half = np.array_split(np.arange(rows.rows), 2)[rank]

def answered(numbers):
    found = []
    with torch.no_grad():
        for first in range(0, len(numbers), 1024):
            images = torch.from_numpy(rows.gather(numbers[first : first + 1024], ["image"])["image"])
            found += [{k: v.numpy() for k, v in model.answer({"image": some}).items()} for some in images.split(256)]
    return found

answered(half[:512])
print("ready", flush=True)
for _ in range(rounds):
    sys.stdin.readline()
    answered(half)
    print("done", flush=True)
"""
SIZE = (3, 32, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out = args.out.absolute() if args.out else None
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="distdl-predict-") as folder, contextlib.chdir(folder):
        pictures(args.rows)
        found = compared(args.rows, args.rounds)
        tables = of_a_table(5 * args.rows, args.rounds)
    text = told(args.rows, args.rounds, found, tables, (before, os.getloadavg()[0]))
    print(text)
    if out:
        out.write_text(text, encoding="utf-8")


def pictures(rows: int) -> None:
    """A small convolutional network, and pictures for it, which need not mean anything."""
    from distdl.data.prepare import prepare_dataset

    rng = np.random.default_rng(0)
    sizes = {"train": 64, "test": rows}
    arrays = {f"x_{split}": rng.integers(0, 256, (count, *SIZE), np.uint8) for split, count in sizes.items()}
    arrays |= {f"y_{split}": np.arange(count) % 10 for split, count in sizes.items()}
    np.savez("pictures.npz", **arrays)
    prepare_dataset("npz", "pictures", {"path": "pictures.npz", "test": "x_test,y_test"})
    model = {"family": "cnn", "image": list(SIZE), "classes": 10, "stages": [[32, 3, 2], [64, 3, 2]], "dense": [128]}
    trained("pictures", model)


def trained(name: str, model: dict[str, object]) -> None:
    import distdl

    distdl.train(
        {
            "name": name,
            "model": model,
            "data": {"path": name, "threads": 0},
            "train": {"global_batch": 32, "steps": 1},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "parallel": {"engine": "torch"},
            "runtime": {"kind": "local", "workers": 1},
            "track": {"enabled": False},
        }
    )


@contextlib.contextmanager
def bare(rounds: int) -> Iterator[Callable[[], float]]:
    """What makes both processes answer their half, and says how long that took."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BARE, "pictures", "pictures"]
    both = [
        subprocess.Popen(
            [*command, str(rank), str(rounds)], env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    def once() -> float:
        begin = time.perf_counter()
        for process in both:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in both:
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n"
        return time.perf_counter() - begin

    try:
        yield once
    finally:
        for process in both:
            process.kill()
            process.wait()


@contextlib.contextmanager
def by_workers(run: str, path: str, workers: int, ray: str | None = None) -> Iterator[Callable[[], float]]:
    """What makes distdl answer the same rows, and says how long that took."""
    from distdl.data import workers as data_workers
    from distdl.data.asking.open import How
    from distdl.data.asking.told import Wish
    from distdl.model import asked
    from distdl.model.model import Model
    from distdl.run.folder import find_run

    model = Model(find_run(run, "runs"))
    with asked.workers(workers, ray, "cpu"):
        mine = data_workers.current()

        def once() -> float:
            token = data_workers._current.set(mine)  # others are in use, too
            try:
                begin = time.perf_counter()
                model.tell([path], "answers.parquet", "parquet", Wish(), How(), overwrite=True)
                return time.perf_counter() - begin
            finally:
                data_workers._current.reset(token)

        once()
        yield once


def compared(rows: int, rounds: int) -> dict[str, list[float]]:
    """Way -> rows a second, of each round."""
    found: dict[str, list[float]] = {}
    with (
        bare(rounds) as loop,
        by_workers("pictures", "pictures", 2) as processes,
        by_workers("pictures", "pictures", 2, "local") as actors,
    ):
        ways = {"bare loop": loop, "distdl, processes": processes, "distdl, Ray actors": actors}
        for _ in range(rounds):
            for way, once in ways.items():
                found.setdefault(way, []).append(rows / once())
    return found


def of_a_table(rows: int, rounds: int) -> dict[int, float]:
    """Workers -> rows a second of a CSV of 14 columns."""
    from distdl.data.prepare import prepare_dataset

    rng = np.random.default_rng(1)
    names = [*(f"x{i}" for i in range(8)), *(f"w{i}" for i in range(6)), "label"]
    for name, count in (("train.csv", 500), ("new.csv", rows)):
        numbers = rng.normal(size=(count, 8)).round(4).astype(str)
        words = np.array(["red", "green", "blue", "black"])[rng.integers(4, size=(count, 6))]
        label = np.array(["no", "yes"])[rng.integers(2, size=(count, 1))]
        lines = [",".join(row) for row in np.concatenate([numbers, words, label], 1)]
        Path(name).write_text("\n".join([",".join(names), *lines]) + "\n")
    manifest = prepare_dataset("csv", "table", {"path": "train.csv", "label": "label"})
    inputs = list(manifest.columns["x"].shape)
    trained("table", {"family": "mlp", "column": "x", "inputs": inputs, "hidden": [128, 64], "classes": 2})
    found = {}
    for count in (1, 2):
        with by_workers("table", "new.csv", count) as once:
            found[count] = statistics.median(rows / once() for _ in range(rounds))
    return found


def told(
    rows: int, rounds: int, found: dict[str, list[float]], tables: dict[int, float], load: tuple[float, float]
) -> str:
    """The results in Markdown."""
    middle = {way: statistics.median(speeds) for way, speeds in found.items()}
    lines = [
        "# Prediction on two workers",
        "",
        f"`python -m benchmarks.predict --rows {rows} --rounds {rounds}` ([what it does](../README.md)), on "
        f"{len(os.sched_getaffinity(0))} cores, whose load was {load[0]:.1f} before and {load[1]:.1f} behind it.",
        f"{rows:,} prepared pictures of 3 x 32 x 32, a network of two convolutions and two dense layers.",
        "",
        "| | rows/s | of the bare loop | slowest and fastest round |",
        "|---|---|---|---|",
    ]
    for way, speeds in found.items():
        part = middle[way] / middle["bare loop"]
        lines.append(f"| {way} | {middle[way]:,.0f} | {part:.2f} | {min(speeds):,.0f} to {max(speeds):,.0f} |")
    lines += [
        "",
        f"A CSV of {5 * rows:,} rows and 14 columns, raw, and a perceptron: reading and encoding are most of it.",
        "",
        "| workers | rows/s |",
        "|---|---|",
        *(f"| {count} | {speed:,.0f} |" for count, speed in tables.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
