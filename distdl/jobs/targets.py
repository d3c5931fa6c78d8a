"""Finds the target that `--on` names."""

from __future__ import annotations

import re

from distdl.config.launch import Launch
from distdl.errors import DistdlError, InputError, did_you_mean
from distdl.jobs.target import Target

ALLOWED = "ray://HOST:PORT, http(s)://HOST:PORT, kubernetes[:CONTEXT], slurm, ssh, ssh://[USER@]HOST"


def target_at(on: str, launch: Launch) -> Target:
    """The target of an address. Nothing is reached yet. Raises InputError for an address of no kind."""
    kind, scheme, rest = on.partition("://")
    if not scheme:
        kind, _, rest = on.partition(":")
    if scheme and kind in ("ray", "http", "https"):
        if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+)(:\d+)?(/.*)?", rest):
            raise InputError(f"{on!r} names no host", where="--on", allowed=ALLOWED)
        from distdl.jobs.ray_cluster import RayJobsTarget

        return RayJobsTarget(on, launch)
    if kind == "kubernetes" and not scheme:
        from distdl.jobs.kubernetes.kubernetes import KubernetesTarget

        return KubernetesTarget(launch, rest or None)
    if on == "slurm":
        from distdl.jobs.slurm import SlurmTarget

        return SlurmTarget(launch)
    if kind == "ssh" and (on == "ssh" or (scheme and rest)):
        from distdl.jobs.ssh import SshTarget

        return SshTarget([rest] if rest else launch.ssh.hosts, launch)
    raise InputError(f"{on!r} is no place to run a job", where="--on", allowed=ALLOWED, fix=_meant(on, kind, rest))


def pinned(on: str) -> str:
    """The address with the context of the kubeconfig that `kubernetes` alone means now: tomorrow it may mean another
    cluster, with a job of the same name."""
    if on != "kubernetes":
        return on
    from distdl.jobs.kubernetes.kubectl import Kubectl

    try:
        context = Kubectl("default", None)("config", "current-context").strip()
    except DistdlError:  # it is not set up, as inside a pod: then there is nothing that could change
        return on
    return f"{on}:{context}" if context else on


def _meant(on: str, kind: str, rest: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9._-]+:\d+", on) and not did_you_mean(kind, KINDS).startswith("did"):
        return f"did you mean 'http://{on}'?"
    if kind in ("k8s", "kube"):
        return "did you mean 'kubernetes'?"
    meant = did_you_mean(kind, KINDS)
    return meant if meant.startswith("did") else "give one of these"


KINDS = ("ray", "http", "https", "kubernetes", "slurm", "ssh")
