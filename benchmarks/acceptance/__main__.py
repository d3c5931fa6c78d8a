"""Runs acceptance cases, prints their table and keeps the last result of each in benchmarks/results/."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.acceptance import REPOSITORY, Absent, Bench, Case
from distdl.config.family import family_names

RESULTS = REPOSITORY / "benchmarks" / "results"
HEAD = """# Acceptance

`make acceptance` trains every family on the data named here through `distdl train`, as one process of plain PyTorch on two
CPU threads, and measures. "required" is what the literature, an independent implementation or a trivial predictor sets, or,
where there is no such figure, what earlier runs of our own suggest (the cases in benchmarks/acceptance/cases say so).
Seconds are wall time of the whole case, start-up included; the commit is the last one before the measurement.

| family | data | metric | reached | required | | seconds | commit |
|---|---|---|---:|---:|---|---:|---|
"""


def all_cases(chosen: list[str]) -> list[Case]:
    found: list[Case] = []
    for name in chosen or family_names():
        found += importlib.import_module(f"benchmarks.acceptance.cases.{name}").CASES
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.acceptance", description=__doc__)
    parser.add_argument("family", nargs="*", choices=[[], *family_names()], metavar="FAMILY", help="only these")
    parser.add_argument("--scratch", type=Path, help="folder for data sets and runs, kept from time to time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench((args.scratch or Path(temporary)).absolute())
        bench.scratch.mkdir(parents=True, exist_ok=True)
        failed = [case for case in all_cases(args.family) if not run(case, bench)]
    return 1 if failed else 0


def run(case: Case, bench: Bench) -> bool:
    """Runs one case, prints its row and keeps it. Returns whether it was met; absent data is no failure."""
    begin = time.perf_counter()
    try:
        reached = case.run(bench)
    except Absent as reason:
        print(f"{case.family}: {case.metric}: not run, {reason}", flush=True)
        return True
    row = {
        "family": case.family,
        "data": case.data,
        "metric": case.metric,
        "reached": reached,
        "required": case.required,
        "better": case.better,
        "met": case.met(reached),
        "seconds": round(time.perf_counter() - begin, 1),
        "commit": commit(),
    }
    print(line(row), flush=True)
    keep(row)
    return bool(row["met"])


def line(row: dict[str, Any]) -> str:
    sign = "≥" if row["better"] == "higher" else "≤"
    met = "met" if row["met"] else "**missed**"
    return (
        f"| `{row['family']}` | {row['data']} | {row['metric']} | {row['reached']:.4g} | {sign} {row['required']:.4g} "
        f"| {met} | {row['seconds']:.0f} | {row.get('commit', '')} |"
    )


def commit() -> str:
    """The checked-out commit; + where files that git knows have been changed since."""
    git = ["git", "-C", str(REPOSITORY)]
    head = subprocess.run([*git, "rev-parse", "--short=9", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", "distdl", "configs", "benchmarks/acceptance"],
        capture_output=True,
        text=True,
    )
    return head + "+" * bool(changed.stdout.strip())


def keep(row: dict[str, Any]) -> None:
    """Puts the row in the place of the last one of the same case."""
    path = RESULTS / "acceptance.json"
    kept = json.loads(path.read_text())["cases"] if path.exists() else []
    kept = [old for old in kept if (old["family"], old["metric"]) != (row["family"], row["metric"])]
    current = {(case.family, case.metric) for case in all_cases([row["family"]])}  # a case that is no more, goes
    kept = [old for old in kept if old["family"] != row["family"] or (old["family"], old["metric"]) in current]
    kept = sorted([*kept, row], key=lambda r: (r["family"], r["metric"]))
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    path.write_text(json.dumps({"machine": machine, "cases": kept}, indent=1) + "\n")
    (RESULTS / "acceptance.md").write_text(HEAD + "\n".join(map(line, kept)) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
