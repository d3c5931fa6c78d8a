"""`distdl doctor`: is this machine, or the cluster of a config, fit to train, in words."""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from distdl.cli.common import add_json_argument, add_override_arguments, aside, print_json, to_write, work_in
from distdl.config.load import load_config
from distdl.driver import check_server
from distdl.errors import InputError
from distdl.runtime.preflight import BAD, GOOD, NOTE, Finding, preflight

FLOORS = {"torch": "2.10", "deepspeed": "0.19", "ray": "2.56", "mlflow": "3.11", "pyarrow": "14.0.1", "pydantic": "2.7"}


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("doctor", help="is this machine, or a config's cluster, fit to train, in words")
    parser.add_argument("--runs", default="runs", type=to_write, help="folder of the runs (default: runs)")
    parser.add_argument(
        "--config", metavar="CONFIG", help="look at every rank of this config's run, where it would run: some seconds"
    )
    parser.add_argument(
        "--on",
        metavar="TARGET",
        help="with --config: local, a Ray cluster (auto, HOST:PORT), or one of distdl launch",
    )
    parser.add_argument("-C", "--directory", metavar="DIR", help="folder that relative paths of the config lie in")
    add_override_arguments(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.config and args.on and ("://" in args.on or args.on.partition(":")[0] in ("kubernetes", "slurm", "ssh")):
        return _elsewhere(args)
    if args.config:
        what, findings = "the cluster", _preflight(args)
    elif args.on or args.overrides or args.directory:
        raise InputError("no config is given", fix="distdl doctor --config CONFIG --on ADDRESS")
    else:
        here = (_versions(), _processors(), _memory(), _disk(Path(args.runs)), _ports())
        what, findings = "this machine", itertools.chain(*here)
    if args.json:
        with aside(args.json):
            found = list(findings)
        return _print_json(found)
    problems = 0
    for level, text in findings:
        print(f"{level:<8} {text}", flush=True)
        problems += level == BAD
    print(f"\n{problems} problem{'s' if problems != 1 else ''}" if problems else f"\n{what} is fit to train")
    return 1 if problems else 0


def _print_json(findings: list[Finding]) -> int:
    problems = sum(level == BAD for level, _ in findings)
    rows = [{"level": level, "text": text} for level, text in findings]
    print_json({"fit": not problems, "problems": problems, "findings": rows})
    return 1 if problems else 0


def _preflight(args: argparse.Namespace) -> Iterator[Finding]:
    """The findings of every rank of a config's run."""
    work_in(args)
    place = {None: [], "local": ["runtime.kind=local"]}.get(args.on, ["runtime.kind=ray", f"runtime.address={args.on}"])
    config = load_config(args.config, [*args.overrides, *place]).config
    check_server(config, Path(args.config), args.overrides)

    from distdl.train.survey import survey, survey_elsewhere

    try:
        plan = survey(config)
    except InputError as error:
        plan = survey_elsewhere(config)  # the data set is all that this one does without
        yield BAD, f"on this machine, which runs the driver: {error}"
    yield from preflight(plan)


def _elsewhere(args: argparse.Namespace) -> int:
    """The same command as a job of the target; its output, and the exit code that it came to."""
    from distdl.jobs.package import make_package
    from distdl.jobs.target import State, job_id
    from distdl.jobs.targets import target_at

    limits = ("max_retries=0", "deadline_hours=0.5", "start_deadline_minutes=15")
    overrides = [*args.overrides, *(f"launch.{limit}" for limit in limits)]
    config = load_config(args.config, [*overrides, "runtime.kind=ray"]).config
    target = target_at(args.on, config.launch)
    with tempfile.TemporaryDirectory() as folder:
        package = make_package(args.config, overrides, directory=Path(folder) / "package")
        package = replace(package, id=job_id(f"doctor-{config.name}"), doctor=True)
        job = target.submit(package)
    lines = []
    with aside(args.json):
        for line in target.logs(job.id, follow=True):
            print(line, flush=True)
            lines.append(line)
    finished = target.job(job.id).state is State.FINISHED
    if args.json:
        found = [(line[:8].strip(), line[9:]) for line in lines if line[:9].strip() in (GOOD, NOTE, BAD)]
        return _print_json(found if finished or BAD in dict(found) else [*found, (BAD, f"the job {job.id} failed")])
    return 0 if finished else 1


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
