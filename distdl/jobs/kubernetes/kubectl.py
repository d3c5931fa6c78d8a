"""kubectl, with its failures in words: what is missing, and where it comes from."""

from __future__ import annotations

import re
import subprocess

from distdl.errors import DistdlError, InputError

REQUEST_TIMEOUT_S = 30
"""Seconds that one request to the API server may take."""


class NoSuchKind(InputError):
    """The cluster knows no such kind of object."""


class NotFound(DistdlError):
    """The cluster has no such object."""


class Kubectl:
    """kubectl for one namespace. `context`: of the kubeconfig; None: its current one."""

    def __init__(self, namespace: str, context: str | None) -> None:
        self.namespace, self.context = namespace, context

    def command(self, *args: str, timeout_s: float = REQUEST_TIMEOUT_S) -> list[str]:
        """The command line. `timeout_s` of each request; 0: none."""
        context = [f"--context={self.context}"] if self.context else []
        return ["kubectl", *context, f"--namespace={self.namespace}", f"--request-timeout={timeout_s:g}s", *args]

    def __call__(self, *args: str, stdin: str | None = None, timeout_s: float = REQUEST_TIMEOUT_S) -> str:
        """Runs kubectl and returns what it printed. Raises a DistdlError that says what is missing."""
        try:
            done = subprocess.run(
                self.command(*args, timeout_s=timeout_s),
                input=stdin,
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=4 * timeout_s,  # several requests: it asks for the kinds first
            )
        except FileNotFoundError:
            raise no_kubectl() from None
        except subprocess.TimeoutExpired:
            raise DistdlError(
                f"kubectl {args[0]} has not ended after {4 * timeout_s:g} s: is the cluster alive?"
            ) from None
        if done.returncode:
            raise self.error(done.stderr)
        return done.stdout

    def error(self, stderr: str) -> DistdlError:
        """kubectl's words as an error that says what to do."""
        lines = [line for line in stderr.splitlines() if line.strip() and not re.match(r"[EWI]\d{4} ", line)]
        text = re.sub(r"^(error: |Error from server( \(\w+\))?: )", "", "\n".join(lines)).strip()
        where = f"the context {self.context}" if self.context else "kubectl's current context"
        for pattern, kind, what, fix in WORDS:
            if re.search(pattern, stderr, re.IGNORECASE):
                what = what.format(where=where, namespace=self.namespace, text=text)
                if issubclass(kind, InputError):
                    return kind(what, fix=fix)
                return kind(f"{what}\n    fix: {fix}" if fix else what)
        return DistdlError(f"kubectl failed: {text or 'without a word'}")


def no_kubectl() -> DistdlError:
    fix = "https://kubernetes.io/docs/tasks/tools/"
    return DistdlError(f"kubectl is not installed, and distdl talks to Kubernetes by it\n    fix: {fix}")


WORDS: list[tuple[str, type[DistdlError], str, str]] = [
    (
        r"context .*(does not exist|was not found)",
        InputError,
        "{where} is not in the kubeconfig",
        "`kubectl config get-contexts` lists them",
    ),
    (
        r"no configuration has been provided|localhost:8080|current-context (is not set|must exist)",
        InputError,
        "kubectl is not set up for a cluster",
        "set KUBECONFIG, or `kubectl config use-context NAME`",
    ),
    (
        r"connection refused|unable to connect|no such host|i/o timeout|was refused|deadline exceeded|TLS handshake",
        DistdlError,
        "no cluster answers at {where}: {text}",
        "`kubectl cluster-info` tells more",
    ),
    (
        r"unauthorized|must be logged in|getting credentials",
        DistdlError,
        "{where} does not let you in: {text}",
        "log in to the cluster again",
    ),
    (
        r"namespaces? \S+ not found",
        InputError,
        "the cluster has no namespace {namespace}",
        "`kubectl apply -k` an overlay of k8s/ makes it (docs/deploy.md); or launch.kubernetes.namespace=OTHER",
    ),
    (
        r"no matches for kind \"RayJob\"|resource type \"rayjobs",
        InputError,
        "the cluster has no RayJob: KubeRay is not installed",
        "install KubeRay 1.6 or later (docs/deploy.md)",
    ),
    (r"doesn't have a resource type|no matches for kind", NoSuchKind, "the cluster knows no such kind: {text}", ""),
    (
        r"forbidden",
        DistdlError,
        "you may not do that in the namespace {namespace}: {text}",
        "ask for the right, or use a namespace where you have it",
    ),
    (
        r"unknown field|strict decoding|is invalid|BadRequest|denied the request|cannot be handled as",
        InputError,
        "the cluster refuses it: {text}",
        "change the config, or the patch",
    ),
    (r"not ?found", NotFound, "{text}", ""),
]
"""(what kubectl says, what that is, what to say instead, what to do about it); the first that fits."""
