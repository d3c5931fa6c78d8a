"""What a RayJob cannot be, told before anything is sent: an API server takes most of it, and the pods never start."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from distdl.config.launch import Kubernetes
from distdl.config.schema import Config
from distdl.errors import InputError, Problem
from distdl.jobs.kubernetes.pods import CONFIG_FOLDER, DATA_FOLDER, FOLDER, OBJECT_STORE_MIB, runs_folder
from distdl.jobs.target import Package

NAME = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
"""Of most objects (DNS-1123)."""
LABEL = r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"
"""Value of a label."""
KEY = r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
"""Name of a label or of a resource: example.com/name."""
FORMS = {
    **dict.fromkeys(("namespace", "service_account", "runs_claim", "data_claim", "secret", "priority_class"), NAME),
    **dict.fromkeys(("topology", "gpu_resource", "rdma_resource"), KEY),
    "queue": LABEL,
    "image": r"[A-Za-z0-9][A-Za-z0-9._/:@-]*",
}
"""What the text of a key of `launch.kubernetes` must look like."""
WORDS = {
    NAME: "small letters, digits, hyphens and dots",
    KEY: "NAME or DOMAIN/NAME, of letters, digits, hyphens, dots and underscores",
    LABEL: "at most 63 letters, digits, hyphens, dots and underscores",
    FORMS["image"]: "REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:…",
}
HEAD_MIB = 1024
"""Of a head pod: Ray's processes and the driver beside the shared memory that it holds."""


def refuse(package: Package) -> None:
    """Raises InputError for what a RayJob cannot do or be."""
    launch = package.config.launch
    problems = [*_kubernetes(launch.kubernetes), *_folders(package.config)]
    if package.fresh:
        what = "--fresh would begin once more from the first step each time that the cluster is started again"
        problems.append(Problem(what, fix=f"give the new run a name of its own: name={package.config.name}-2"))
    if launch.files:
        what = f"launch.files: {', '.join(launch.files)}: on Kubernetes the code comes with the image"
        problems.append(
            Problem(what, fix=f"put them into the image, or below {runs_folder(package.config)} on the claim")
        )
    if package.config.family_name.file:
        what = f"model.family: {package.config.family_name.text}: on Kubernetes the code comes with the image"
        problems.append(Problem(what, fix="install it in the image as a module, and write family: package.module"))
    for name in launch.environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            problems.append(Problem(f"launch.environment: {name!r} is no name of a variable"))
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", package.id):
        allowed = "at most 47 small letters, digits and hyphens, a letter first (KubeRay)"
        problems.append(Problem(f"{package.id!r} cannot be the name of a RayJob", allowed=allowed, fix="name=OTHER"))
    if problems:
        raise InputError(*problems)


def _kubernetes(kubernetes: Kubernetes) -> Iterator[Problem]:
    """What is wrong with `launch.kubernetes`: a text of the wrong form, and a key that would do nothing."""
    for name, form in FORMS.items():
        value, key = getattr(kubernetes, name), f"launch.kubernetes.{name}"
        if value is not None and not (value and re.fullmatch(form, value)):
            yield Problem(f"{key} = {value!r} is no name that Kubernetes takes", allowed=WORDS[form])
    for label, value in kubernetes.node_selector.items():
        if not re.fullmatch(KEY, label) or not re.fullmatch(LABEL, value):
            what = f"launch.kubernetes.node_selector: {label!r}: {value!r} is no label of a node"
            yield Problem(what, allowed=f"a label: {WORDS[KEY]}; its value: {WORDS[LABEL]}")
    if kubernetes.scheduler != "none" and not kubernetes.queue:
        what = f"launch.kubernetes.scheduler is {kubernetes.scheduler}, and no queue is named"
        yield Problem(what, fix="launch.kubernetes.queue=NAME")
    if kubernetes.scheduler == "none" and kubernetes.queue:
        what = f"launch.kubernetes.queue is {kubernetes.queue}, and no scheduler has queues: the job would go around it"
        yield Problem(what, fix="launch.kubernetes.scheduler=kueue, volcano or yunikorn")
    if kubernetes.topology and kubernetes.scheduler != "kueue":
        what = f"launch.kubernetes.topology is read by Kueue, and the scheduler is {kubernetes.scheduler}"
        yield Problem(what, fix="launch.kubernetes.scheduler=kueue, or leave topology out")
    if kubernetes.head_memory_gib * 1024 <= HEAD_MIB:
        what = (
            f"a head pod of {kubernetes.head_memory_gib:g} GiB, of which {2 * OBJECT_STORE_MIB} MiB are shared memory"
        )
        yield Problem(what, allowed=f"more than {HEAD_MIB / 1024:g} GiB", fix="launch.kubernetes.head_memory_gib=3")


def _folders(config: Config) -> Iterator[Problem]:
    """What is wrong with where the runs are mounted, and with a folder of runs that is not on that mount."""
    folder = runs_folder(config)
    taken = [top for top in (CONFIG_FOLDER, DATA_FOLDER, "/tmp", "/dev", "/proc", "/sys") if _within(folder, top)]
    if not re.fullmatch(r"(/[^/:]+)+", folder) or taken:
        why = f"{taken[0]} is taken" if taken else "it is not the absolute path of a folder"
        yield Problem(f"the runs cannot be mounted at launch.folder={folder}: {why}", fix=f"{FOLDER}")
    elif os.path.isabs(config.runs) and not _within(os.path.normpath(config.runs), folder):
        what = f"runs = {config.runs} is not below launch.folder={folder}: pods can write nowhere else"
        yield Problem(what, fix="runs=runs, or a path below it")


def _within(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")
