"""`distdl k8s`: a run as a RayJob of KubeRay, to look at, to send, and to follow."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distdl.cli.common import (
    Verb,
    add_config_arguments,
    add_json_argument,
    add_verbs,
    follow,
    job_facts,
    loaded,
    print_json,
    print_submitted,
    refuse_foreign,
    refuse_twice,
    to_write,
)
from distdl.errors import InputError

if TYPE_CHECKING:
    from distdl.jobs.kubernetes.kubernetes import KubernetesTarget
    from distdl.jobs.records import Record
    from distdl.jobs.target import Job, Package

EPILOG = """\
examples:
  distdl k8s render configs/families/gpt.yaml runtime.workers=8 runtime.gpus_per_worker=1     what would be sent, as YAML
  distdl k8s render configs/families/gpt.yaml --patch site.yaml | kubectl diff --server-side -f -
  distdl k8s submit configs/families/gpt.yaml -f                                              send it, and follow
  distdl k8s status                                                                  every job of the namespace

A patch holds what the config does not know, as YAML documents: a JSON merge patch ({kind: RayJob, spec: {…}}), a list of
JSON patch operations on the RayJob ([{op: add, path: /spec/…, value: …}]), or {target: {kind: …}, patch: [operations]}.
`distdl launch --on kubernetes` and `distdl jobs` do the same for every kind of cluster.
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "k8s",
        help="a run as a RayJob on Kubernetes: render, submit, status, logs, stop",
        description="Runs as RayJobs on Kubernetes (KubeRay), by way of kubectl.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = add_verbs(
        parser,
        Verb("render", "print exactly what submit sends", _render),
        Verb("submit", "send a run; the same command continues it after whatever ended it", _submit),
        Verb("status", "one job, or every one of the namespace", _status),
        Verb("logs", "the output of its driver", _logs),
        Verb("stop", "end it so that `submit` continues it", _stop),
    )
    for name, verb in verbs.items():
        if name in ("render", "submit"):
            add_config_arguments(verb)
            text = "what the config does not know"
            verb.add_argument("--patch", metavar="FILE", action="append", default=[], help=text)
            continue
        verb.add_argument("id", metavar="ID", nargs="?" if name == "status" else None, help="name of the run")
        verb.add_argument("--namespace", help="(default: where the job was sent, else distdl)")
        text = "context of the kubeconfig (default: where the job was sent, else the current)"
        verb.add_argument("--context", help=text)
    text = "write one file for each object there instead"
    verbs["render"].add_argument("-o", "--output", metavar="DIR", type=to_write, help=text)
    verbs["submit"].add_argument("--context", help="context of the kubeconfig (default: the current one)")
    verbs["submit"].add_argument("-f", "--follow", action="store_true", help="follow the job's output until it ends")
    verbs["logs"].add_argument("-f", "--follow", action="store_true", help="until the job ends, over restarts of it")
    add_json_argument(verbs["status"])


def _render(args: argparse.Namespace) -> int:
    from distdl.jobs.kubernetes.kubernetes import KubernetesTarget
    from distdl.jobs.kubernetes.manifests import to_yaml
    from distdl.jobs.package import make_package

    package = make_package(args.config, args.overrides)
    _add_patches(package, args.patch)
    target = KubernetesTarget(package.config.launch)
    if args.output is None:
        print(target.dry_run(package), end="")
        return 0
    folder = Path(args.output)
    for o in target.manifests(package):
        file = folder / f"{o['kind'].lower()}.yaml"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(to_yaml([o]), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{file} cannot be written: {error.strerror}", where="-o") from None
        print(file)
    return 0


def _submit(args: argparse.Namespace) -> int:
    from distdl.jobs.kubernetes.kubernetes import KubernetesTarget
    from distdl.jobs.package import make_package
    from distdl.jobs.records import draft, record
    from distdl.jobs.target import job_id
    from distdl.jobs.targets import pinned

    config = loaded(args, "runtime.kind=ray").config
    directory = draft(job_id(config.name))
    on = f"kubernetes:{args.context}" if args.context else pinned("kubernetes")
    try:
        package = make_package(args.config, args.overrides, directory=directory)
        _add_patches(package, args.patch)
        target = KubernetesTarget(package.config.launch, args.context)
        refuse_twice(package, on)
        job = target.submit(package)
        remembered = record(package, on)
    finally:
        shutil.rmtree(directory.parent, ignore_errors=True)  # gone already where the record took it over
    print_submitted(job, remembered, config.track.uri if config.track.enabled else None)
    return follow(target, job.id) if args.follow else 0


def _status(args: argparse.Namespace) -> int:
    from distdl.jobs.target import State

    target = _target(args)
    if args.id is None:
        jobs = target.jobs()
        if args.json:
            print_json([job_facts(job) for job in jobs])
            return 0
        for job in jobs:
            print(_line(job))
        if not jobs:
            print(f"the namespace {target.namespace} has no job of distdl")
        return 0
    job = target.job(_id(args))
    if args.json:
        print_json([job_facts(job)])
    else:
        print(_line(job))
    return 1 if job.state is State.LOST else 0


def _logs(args: argparse.Namespace) -> int:
    target = _target(args)
    if args.follow:
        return follow(target, _id(args))
    for line in target.logs(_id(args)):
        print(line)
    return 0


def _stop(args: argparse.Namespace) -> int:
    from distdl.jobs.target import State

    target, id = _target(args), _id(args)
    job = target.job(id)
    if job.state is State.LOST:
        raise InputError(job.message, fix=f"`distdl k8s status --namespace {target.namespace}` lists what is there")
    refuse_foreign(job, f"Kubernetes, namespace {target.namespace}")
    job = target.stop(id)
    print(_line(job))
    return 0 if job.state.ended else 1


def _add_patches(package: Package, paths: list[str]) -> None:
    """Puts the patch files into the package: `distdl jobs resume` sends what was sent before."""
    from distdl.jobs.kubernetes.kubernetes import PATCHES
    from distdl.jobs.kubernetes.manifests import read_patches, to_yaml

    patches = [patch for path in paths for patch in read_patches(Path(path))]
    if patches:
        (package.folder / PATCHES).write_text(to_yaml(patches), encoding="utf-8")


def _target(args: argparse.Namespace) -> KubernetesTarget:
    """Where the job was sent, unless the arguments say otherwise."""
    from distdl.config.launch import Launch
    from distdl.jobs.kubernetes.kubernetes import KubernetesTarget

    record = _record(args)
    launch, context = Launch(), args.context
    if record is not None:
        launch, context = record.config().launch, context or record.on.partition(":")[2] or None
    if args.namespace:
        there = launch.kubernetes.model_copy(update={"namespace": args.namespace})
        launch = launch.model_copy(update={"kubernetes": there})
    return KubernetesTarget(launch, context)


def _record(args: argparse.Namespace) -> Record | None:
    """What is remembered of the job on Kubernetes, the last launched one first where several fit."""
    from distdl.jobs.records import named

    namespace = f", namespace {args.namespace}" if args.namespace else ""
    found = [r for r in named(args.id) if r.on.split(":")[0] == "kubernetes"] if args.id else []
    return next((r for r in found if r.place.endswith(namespace)), None)


def _id(args: argparse.Namespace) -> str:
    from distdl.jobs.target import job_id

    record = _record(args)
    return record.id if record else job_id(args.id)


def _line(job: Job) -> str:
    attempt = f", attempt {job.attempt}" if job.attempt > 1 else ""
    message = f": {job.message}" if job.message else ""
    return f"{job.id}  {job.state.value}{attempt}{message}{f'  {job.tracking}' if job.tracking else ''}"
