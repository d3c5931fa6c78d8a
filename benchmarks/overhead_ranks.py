"""What a step of ZeRO-1 and ZeRO-2 costs on several ranks beside the bare DeepSpeed loop. See README.md.

    python benchmarks/overhead_ranks.py [--ranks 2] [--steps N] [--rounds R] [--output benchmarks/results/overhead_ranks.md]

The tiny perceptron of `overhead.py`, whose step is Python and messages. Every contender is a process for each rank; they
take turns, block by block. What counts is processor time of all ranks: where other work runs, ranks wait for each other
whatever they do, and the clock says how busy the machine was.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from overhead import Row, circumstances, measure, prepare

GOAL = 0.75
"""Of the bare loop."""


def ratio(mine: list[float], base: list[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(mine, base))


def markdown(rows: list[Row], command: str, ranks: int, load: str) -> str:
    from contenders import ON_RANKS

    assert [row.name for row in rows] == list(ON_RANKS)
    lines = [
        "# A step on several ranks beside the bare DeepSpeed loop",
        "",
        f"`{command}`: a perceptron of 64-64-10, {ranks} ranks; {load}.",
        "Microseconds a step, medians over rounds; ratios are medians of those within a round. The bare loop has",
        "DeepSpeed's own defaults, no clipping, the same optimizer and the same reader of data.",
        "",
        "| | processor, all ranks | of the bare loop | by the clock | of the bare loop |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    said = []
    for row in rows:
        if not row.cpu_us:
            lines.append(f"| {row.name} | {row.reason} | | | |")
            continue
        bare = next(other for other in rows if other.name == f"bare deepspeed, {row.name.rpartition(', ')[2]}")
        cpu, wall = ratio(row.cpu_us, bare.cpu_us), ratio(row.wall_us, bare.wall_us)
        times = statistics.median(row.cpu_us), statistics.median(row.wall_us)
        lines.append(f"| {row.name} | {times[0]:,.0f} | {cpu:.2f} | {times[1]:,.0f} | {wall:.2f} |")
        if row is not bare:
            said.append(
                f"- {row.name}: {cpu:.2f} of the bare loop, at most {GOAL}: {'met' if cpu <= GOAL else 'MISSED'}"
            )
    return "\n".join([*lines, "", *said]) + "\n"


def main() -> int:
    from contenders import ON_RANKS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=128, help="steps of each contender in a round")
    parser.add_argument("--rounds", type=int, default=20, help="rounds")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "overhead_ranks.md")
    options = parser.parse_args()
    if options.ranks < 2 or options.steps < 1 or options.rounds < 1:
        parser.error("--ranks is at least 2, --steps and --rounds are at least 1")
    command = f"python benchmarks/overhead_ranks.py --ranks {options.ranks} --steps {options.steps}"
    command += f" --rounds {options.rounds}"
    began, load_before = time.time(), os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="distdl-overhead-") as folder:
        prepare(Path(folder))
        rows = measure(list(ON_RANKS), Path(folder), options.steps, options.rounds, options.ranks)
    about = circumstances(command, began, load_before)
    load = f"{about['date']}, {about['took_s']} s, {about['cpu']}; load average {about['load_before'][0]} before"
    text = markdown(rows, command, options.ranks, f"{load}, {about['load_after'][0]} after")
    options.output.write_text(text, encoding="utf-8")
    print(text)
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
