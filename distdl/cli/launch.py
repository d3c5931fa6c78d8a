"""`distdl launch`: the same config on a Ray cluster, Kubernetes, Slurm or machines reached over SSH."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from distdl.cli.common import add_config_arguments, follow, loaded, print_submitted, refuse_twice
from distdl.driver import check_server, remember_family
from distdl.errors import InputError

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
        return follow(target, job.id)
    return 0
