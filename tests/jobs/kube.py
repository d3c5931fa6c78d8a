"""A small API server that plays Kubernetes, KubeRay and Kueue for the real kubectl, and the strict offline validator.

Both live beside the checkout and are not part of it; tests that need them skip where they are absent.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from distdl.jobs.package import make_package
from distdl.jobs.target import Package

FOLDER = Path(__file__).parents[2].parent / "shared" / "validate_k8s"
VALIDATOR = FOLDER / "validate_k8s.py"
NEEDS = ("yaml", "jsonschema", "referencing", "kubernetes_validate", "celpy")
IMAGE = f"registry.example.com/distdl@sha256:{'0' * 64}"
NAMESPACE = "distdl"
OWNER = "ada@example"

CONFIG = """\
# A small GPT, far from any data.
name: demo
model: {family: gpt, vocabulary: 256, context: 64, layers: 2, heads: 4, width: 96, dropout: 0.1}
data: {path: data/text}
train: {global_batch: 64, micro_batch: 1, steps: 600}
optimizer: {name: adamw, lr: 3e-3}
parallel: {zero: 2}
runtime: {kind: ray, workers: 2}
"""

_missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
needs_validator = pytest.mark.skipif(
    not VALIDATOR.is_file() or bool(_missing),
    reason=f"no validator beside the checkout ({VALIDATOR.name})"
    if not _missing
    else f"it needs {', '.join(_missing)}",
)
needs_cluster = pytest.mark.skipif(
    not (FOLDER / "fake_kube.py").is_file() or bool(_missing) or shutil.which("kubectl") is None,
    reason="no kubectl, or no API server to play a cluster beside the checkout",
)


def package(folder: Path, *overrides: str, text: str = CONFIG) -> Package:
    """A packed run of CONFIG with key=value arguments on top."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "demo.yaml"
    config.write_text(text, encoding="utf-8")
    overrides = (f"launch.kubernetes.image={IMAGE}", *overrides)
    return replace(make_package(str(config), overrides, directory=folder / "package"), owner=OWNER)


def findings(folder: Path, *options: str) -> dict[str, list[str]]:
    """What the validator says of each file of a folder, warnings included; one start for all, it takes seconds."""
    external = ("--external", "ServiceAccount/*", "--external", "PersistentVolumeClaim/*", "--external", "Secret/*")
    command = [sys.executable, str(VALIDATOR), "--format", "json", "--pss", "restricted", *external, *options]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=240)
    assert done.returncode in (0, 1), done.stderr
    report = json.loads(done.stdout)
    told: dict[str, list[str]] = {file.name: [] for file in folder.iterdir()}
    assert sum(report["objects"].values()) and not report["objects"]["skipped"], report["objects"]
    for found in report["findings"]:
        told[Path(found["source"]).name].append(f"[{found['check']}] {found['path']}: {found['message']}")
    return told


# -- a cluster ---------------------------------------------------------------------------------------------------------


class Kueue(threading.Thread):
    """Admits RayJobs that carry a queue's name, by Workloads, as Kueue does: one that is admitted and was suspended by
    somebody else goes on at once; one whose Workload is not active is held."""

    GROUP = "kueue.x-k8s.io/v1beta2"

    def __init__(self, store: Any, quota: bool = True) -> None:
        super().__init__(daemon=True)
        self.store, self.quota, self.stopping = store, quota, threading.Event()
        store.resources.setdefault(self.GROUP, {})["workloads"] = ("Workload", True, ["wl"])

    def run(self) -> None:
        while not self.stopping.wait(0.1):
            for job in self.store.select("ray.io/v1", "rayjobs", "", {}):
                try:
                    self._step(job)
                except Exception as error:  # the job was changed meanwhile; anything else is a fault of this class
                    assert hasattr(error, "code"), error

    def _step(self, job: dict[str, Any]) -> None:
        meta = job["metadata"]
        if "kueue.x-k8s.io/queue-name" not in meta.get("labels", {}):
            return
        query = {"labelSelector": f"kueue.x-k8s.io/job-uid={meta['uid']}"}
        found = self.store.select(self.GROUP, "workloads", meta["namespace"], query)
        if not found:
            self._create(meta)
            return
        admitted = self.quota and found[0]["spec"].get("active", True)
        if admitted == bool(job["spec"].get("suspend")):
            job["spec"]["suspend"] = not admitted
            self.store.write("ray.io/v1", "rayjobs", meta["namespace"], job)

    def _create(self, meta: dict[str, Any]) -> None:
        owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": meta["name"], "uid": meta["uid"]}
        said = "couldn't assign flavors to pod set head: insufficient unused quota for cpu"
        workload = {
            "metadata": {
                "name": f"rayjob-{meta['name']}-{meta['uid'][:5]}",
                "labels": {"kueue.x-k8s.io/job-uid": meta["uid"]},
                "ownerReferences": [owner],
            },
            "spec": {"active": True},
            "status": {"conditions": [{"type": "QuotaReserved", "status": str(self.quota), "message": said}]},
        }
        self.store.write(self.GROUP, "workloads", meta["namespace"], workload, create=True)


class Cluster:
    """The API server, and what a test wants to know of it."""

    def __init__(self, server: Any, kueue: Kueue | None) -> None:
        self.server, self.store, self.kueue = server, server.store, kueue
        self.applied: list[dict[str, Any]] = []
        """Bodies of the server-side applies that were not dry runs, in order."""
        patch = self.store.patch

        def recorded(gv: str, plural: str, namespace: str, name: str, kind: str, body: bytes, query: Any) -> Any:
            if kind == "application/apply-patch+yaml" and "dryRun" not in query:
                self.applied.append(yaml.safe_load(body))
            return patch(gv, plural, namespace, name, kind, body, query)

        self.store.patch = recorded

    def job(self, name: str = "demo") -> dict[str, Any]:
        return self.store.read("ray.io/v1", "rayjobs", NAMESPACE, name)

    def names(self, gv: str, plural: str) -> list[str]:
        return [o["metadata"]["name"] for o in self.store.select(gv, plural, NAMESPACE, {})]

    def say(self, line: str) -> None:
        """The driver prints a line."""
        self.server.operator.log(NAMESPACE, f"{self.job()['status']['rayClusterName']}-head", f"{line}\n")

    def end(self, *, well: bool = True) -> None:
        """Attempts that run end, at once."""
        self.server.operator.outcome = lambda job, attempt: "SUCCEEDED" if well else "FAILED"
        self.server.operator.job_seconds = 0

    def go_on(self) -> None:
        """Attempts that begin from now on do not end by themselves."""
        self.server.operator.job_seconds = 3600


@contextmanager
def cluster(monkeypatch: pytest.MonkeyPatch, *, kueue: bool = False, quota: bool = True) -> Iterator[Cluster]:
    """A cluster with the namespace `distdl` that kubectl of this process talks to. Its jobs run until `Cluster.end`."""
    monkeypatch.syspath_prepend(str(FOLDER))
    from fake_kube import FakeKube

    with FakeKube(admit="manual" if kueue else "auto", job_seconds=3600) as server:
        for name in ("KUBECONFIG", "KUBECACHEDIR"):
            monkeypatch.setenv(name, server.env()[name])
        server.store.write("v1", "namespaces", "", {"metadata": {"name": NAMESPACE}}, create=True)
        scheduler = Kueue(server.store, quota) if kueue else None
        if scheduler:
            scheduler.start()
        try:
            yield Cluster(server, scheduler)
        finally:
            if scheduler:
                scheduler.stopping.set()


def wait(until: Callable[[], Any], what: str, timeout_s: float = 20.0) -> None:
    """Waits for something to become true."""
    end = time.monotonic() + timeout_s
    while not until():
        assert time.monotonic() < end, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.1)


def without_kubectl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that has no kubectl."""
    monkeypatch.setenv("PATH", str(tmp_path))


def documents(text: str) -> Sequence[dict[str, Any]]:
    return list(yaml.safe_load_all(text))
