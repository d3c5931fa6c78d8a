"""`distdl launch`: the same config on a Ray cluster, Kubernetes, Slurm or machines reached over SSH."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distdl.cli.common import add_config_arguments, check_server, loaded, remember_family
from distdl.errors import DistdlError, InputError

if TYPE_CHECKING:
    from distdl.jobs.records import Record
    from distdl.jobs.target import Job, Package

DESCRIPTION = """\
Sends a config to machines elsewhere and trains it there, with the distdl that is installed here; on Kubernetes with the
one of launch.kubernetes.image. The same command again, after whatever ended the job, continues the run from its last
checkpoint, under the same MLflow run.

where to (--on, or launch.on in the YAML):
  http://HOST:8265      a running Ray cluster, by its dashboard (Ray Jobs); https:// works too
  ray://HOST:10001      the same, by its Ray Client server
  kubernetes[:CONTEXT]  a RayJob for KubeRay; CONTEXT is one of kubectl's
  slurm                 sbatch on this machine
  ssh, ssh://USER@HOST  bare machines: those of launch.ssh.hosts, or HOST
"""
EPILOG = """\
examples:
  distdl launch configs/families/gpt.yaml --on http://head:8265 launch.folder=/shared runtime.workers=8
  distdl launch configs/families/gpt.yaml --on kubernetes --dry-run      exactly what would be sent
  distdl launch configs/families/gpt.yaml --on ssh://gpu1 -f             and follow its output
  distdl jobs list                                              what was launched, and how it is
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "launch",
        help="train a config on a cluster: Ray, Kubernetes, Slurm or SSH",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser)
    parser.add_argument("--on", metavar="TARGET", help="where to; the default is launch.on of the config")
    parser.add_argument("--dry-run", action="store_true", help="print exactly what would be sent, and send nothing")
    parser.add_argument("--fresh", action="store_true", help="start a new run beside earlier ones of the same name")
    parser.add_argument("-f", "--follow", action="store_true", help="follow the job's output until it ends")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    config = loaded(args, "runtime.kind=ray").config
    on = args.on or config.launch.on
    if not on:
        from distdl.jobs.targets import ALLOWED

        raise InputError("where to? neither --on nor launch.on says it", allowed=ALLOWED, fix="--on http://HOST:8265")
    check_server(config, Path(args.config), args.overrides)

    from distdl.jobs.package import left_out, make_package
    from distdl.jobs.records import draft, record
    from distdl.jobs.target import job_id
    from distdl.jobs.targets import pinned, target_at

    if not args.dry_run:
        on = pinned(on)
    target = target_at(on, config.launch)
    overrides = list(args.overrides)
    if config.launch.folder is None and (folder := getattr(target, "folder", None)):
        # Written down: `distdl jobs` may be called from another folder, and must find the job and continue its run there.
        overrides.append(f"launch.folder={folder}")
    if args.dry_run:
        print(target.dry_run(make_package(args.config, overrides, fresh=args.fresh)))
        return 0
    if getattr(config.runtime, "gpus_per_worker", None) is None:
        print("note: the workers train on CPUs; runtime.gpus_per_worker=1 gives each a GPU")
    directory = draft(job_id(config.name))
    try:
        package = make_package(args.config, overrides, fresh=args.fresh, directory=directory)
        for name in left_out(args.config, args.overrides):
            print(f"left out: {name} looks like a secret, and a package never holds one")
        refuse_twice(package, on)
        job = target.submit(package)
        remember_family(config)
        remembered = record(package, on)
    finally:
        shutil.rmtree(directory.parent, ignore_errors=True)  # gone already where the record took it over
    print_submitted(job, remembered, config.track.uri if config.track.enabled else None)
    if args.follow:
        from distdl.cli.jobs import follow

        return follow(target, job.id)
    return 0


def refuse_twice(package: Package, on: str) -> None:
    """Tells where else a run was sent and is alive, or may be. Raises InputError where that is under another id of the
    same target: ids of earlier versions had no hash."""
    from distdl.jobs.records import place_of, records
    from distdl.jobs.targets import target_at

    place = place_of(on, package.config.launch)
    for r in records():
        if r.run != package.config.name or (r.id, r.place) == (package.id, place):
            continue
        try:
            job = target_at(r.on, r.config().launch).job(r.id)
        except DistdlError as error:
            print(f"note: {r.run} was sent to {r.place}, too, which cannot be asked: {str(error).splitlines()[0]}")
            continue
        if job.state.ended or job.run not in ("", r.run):
            continue
        fix = f"`distdl jobs stop {r.id} --on '{r.place}'` ends it"
        if r.place == place:
            raise InputError(f"the run {r.run} is alive there as the job {r.id}: {job.state.value}", fix=fix)
        print(f"note: {r.run} is {job.state.value} on {r.place}, too; {fix}")


def print_submitted(job: Job, record: Record, tracker: str | None) -> None:
    """What a person needs next, after a job was sent."""
    from distdl.cli.jobs import command_for

    attempt = f", attempt {job.attempt}" if job.attempt > 1 else ""
    rows = [
        ("follow", command_for("logs -f", job.id, record)),
        ("state", command_for("status", job.id, record)),
        ("stop", command_for("stop", job.id, record)),
    ]
    if job.tracking:
        rows.append(("tracking", job.tracking))
    elif tracker and tracker.startswith("http"):
        rows.append(("tracking", f"{tracker} (`distdl jobs status` links the run once it has begun)"))
    print(f"{job.id} was sent to {record.on}{attempt}: {job.state.value}")
    for name, text in rows:
        print(f"  {name:<9}{text}")
