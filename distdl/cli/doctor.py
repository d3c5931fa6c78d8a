"""`distdl doctor`: is this machine fit to train, in words."""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

FLOORS = {"torch": "2.10", "deepspeed": "0.19", "ray": "2.56", "mlflow": "3.11", "pyarrow": "14.0.1", "pydantic": "2.7"}
GOOD, NOTE, BAD = "ok", "note", "PROBLEM"


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("doctor", help="versions, GPUs, ports, disk, shared memory, in words")
    parser.add_argument("--runs", default="runs", help="folder of the runs (default: runs)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    findings = [*_versions(), *_processors(), *_memory(), *_disk(Path(args.runs)), *_ports()]
    for level, text in findings:
        print(f"{level:<8} {text}")
    problems = sum(level == BAD for level, _ in findings)
    print(f"\n{problems} problem{'s' if problems != 1 else ''}" if problems else "\nthis machine is fit to train")
    return 1 if problems else 0


Finding = tuple[str, str]


def _versions() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield (GOOD if sys.version_info >= (3, 10) else BAD, f"Python {python} (needs 3.10 or newer)")
    for name, floor in FLOORS.items():
        try:
            have = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield BAD, f"{name} is not installed; needs {floor} or newer: make install"
            continue
        yield (GOOD if _parts(have) >= _parts(floor) else BAD, f"{name} {have} (needs {floor} or newer)")


def _parts(version: str) -> tuple[int, ...]:
    numbers = version.split("+")[0].split(".")
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in numbers[:3])


def _processors() -> Iterator[Finding]:
    import torch

    yield GOOD, f"{len(os.sched_getaffinity(0))} CPU cores for this process"
    if not torch.cuda.is_available():
        built = f"torch was built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        yield NOTE, f"no GPU: {built}; training runs on the CPU over gloo"
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield GOOD, f"GPU {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if not torch.distributed.is_nccl_available():
        yield BAD, "this torch has no NCCL: several GPUs cannot train together"


def _memory() -> Iterator[Finding]:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    yield (GOOD if free > 2 else NOTE, f"{free:.1f} GiB of memory free")
    if Path("/dev/shm").is_dir():
        shared = shutil.disk_usage("/dev/shm").total / 2**30
        level = GOOD if shared >= 1 else BAD
        cure = (
            "" if level == GOOD else "; Ray's object store and NCCL need more: docker run --shm-size=8g, or an emptyDir"
        )
        yield level, f"{shared:.2f} GiB of shared memory in /dev/shm{cure}"


def _disk(runs: Path) -> Iterator[Finding]:
    place = next(p for p in (runs.absolute(), *runs.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free / 2**30
    yield (GOOD if free > 5 else BAD, f"{free:.0f} GiB of disk free for {runs}/")
    yield (
        GOOD if os.access(place, os.W_OK) else BAD,
        f"{place} is {'' if os.access(place, os.W_OK) else 'not '}writable",
    )


def _ports() -> Iterator[Finding]:
    for port, use in ((5000, "distdl ui"), (6379, "the head of a Ray cluster"), (8265, "Ray's dashboard and jobs")):
        with socket.socket() as probe:
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        yield (NOTE if taken else GOOD, f"port {port} ({use}) is {'in use' if taken else 'free'}")
