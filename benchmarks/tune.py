"""What a search of twenty trials takes, beside twenty runs by hand. See README.md.

    python benchmarks/tune.py [--trials N] [--rounds R] [--output benchmarks/results/tune.md]

The same values, the same steps: the search is a random one without a scheduler, so that every trial is trained to its
end, and the runs by hand are `distdl train` with each trial's YAML, one after the other, as a loop in a shell is. They take
turns. The data set is prepared before; both track in MLflow.
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
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
CONFIG = REPOSITORY / "configs" / "ways" / "tune.yaml"
SEARCH = ["search.algorithm=random", "search.scheduler=none"]


def timed(*arguments: object, folder: Path) -> float:
    """Seconds of a distdl command."""
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    begin = time.perf_counter()
    command = [sys.executable, "-m", "distdl", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return seconds


def by_hand(trials: Path, folder: Path) -> float:
    """Every trial of a search again, each by a command of its own."""
    seconds = 0.0
    for yaml in sorted(trials.glob("*/config.yaml")):
        name = yaml.parent.name
        seconds += timed("train", yaml, "--plain", "runs=by-hand", f"name={name}", folder=folder)
    return seconds


def same_numbers(trials: Path, hand: Path) -> float:
    """The largest difference of a metric between a trial and its run by hand."""
    found = 0.0
    for summary in trials.glob("*/summary.json"):
        other = json.loads((hand / summary.parent.name / "summary.json").read_text())["metrics"]
        mine = json.loads(summary.read_text())["metrics"]
        found = max([found, *(abs(mine[name] - other[name]) for name in mine)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", default="benchmarks/results/tune.md")
    args = parser.parse_args()
    searched: list[float] = []
    hand: list[float] = []
    loads: list[float] = []
    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="distdl-tune-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        timed("data", "prepare", "digits", "data/digits", folder=folder)
        for turn in range(args.rounds):
            loads.append(os.getloadavg()[0])
            options = ["--plain", "--trials", args.trials, *SEARCH]
            searched.append(timed("tune", CONFIG, *options, folder=folder))
            trials = folder / "runs" / "tune-search"
            hand.append(by_hand(trials, folder))
            worst = max(worst, same_numbers(trials, folder / "by-hand"))
            print(
                f"round {turn + 1}: search {searched[-1]:.1f} s, by hand {hand[-1]:.1f} s, load {loads[-1]:.1f}",
                flush=True,
            )
            for done in ("runs", "by-hand"):
                shutil.rmtree(folder / done)
    found = (statistics.median(searched), statistics.median(hand))
    lines = [
        "# A search",
        "",
        f"`python benchmarks/tune.py --trials {args.trials} --rounds {args.rounds}`: medians; the machine has "
        f"{len(os.sched_getaffinity(0))} CPUs, and a load of {statistics.median(loads):.1f} before it began.",
        "",
        "| | seconds |",
        "| --- | ---: |",
        f"| `distdl tune`, {args.trials} trials | {found[0]:.1f} |",
        f"| {args.trials} times `distdl train` with the same values, one local worker | {found[1]:.1f} |",
        "",
        f"- the search takes {found[0] / found[1]:.2f} of the runs by hand",
        f"- the metrics of a trial and of its run by hand differ by {worst:.1e} at most",
    ]
    Path(args.output).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
