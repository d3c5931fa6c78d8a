"""docs/deploy.md: its commands are run as far as they can be without a cluster, and it says which ones were not."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY, Result
from tests.kube_policy import objects, pods, rendered

PAGE = (REPOSITORY / "docs" / "deploy.md").read_text(encoding="utf-8")
MARK = "# not run"
LINES = [
    line.strip()
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
RUN = [line for line in LINES if not line.endswith(MARK)]
DISTDL = [line for line in RUN if line.startswith("distdl ")]
APPLIED = [line for line in RUN if line.startswith("kubectl apply -k ")]
SECRETS = [line for line in RUN if re.match(r"kubectl -n \S+ create secret generic ", line)]
MADE = [line for line in RUN if line not in {*DISTDL, *APPLIED, *SECRETS}]
"""The shell lines that write the files of the secrets."""


def test_the_page_says_what_was_not_run() -> None:
    """Whatever has no mark is run by a test below, and the page's own count is right."""
    unmarked = {line.split()[0] for line in RUN} - {"distdl", "kubectl"}
    assert unmarked == {"umask", "mkdir", "cd", "for", "printf", "openssl"}
    assert f"{len(LINES) - len(RUN)} commands of {len(LINES)} that end in `{MARK}`" in " ".join(PAGE.split())
    outside = ("docker ", "kind ", "helm ", "kubectl ", "export ")
    assert all(line.startswith(outside) for line in LINES if line.endswith(MARK)), "a mark is for what needs a cluster"


def test_every_distdl_command_is_understood() -> None:
    from distdl.cli.main import _parse

    for line in DISTDL:
        assert _parse(shlex.split(line)[1:]).command, line


@pytest.mark.parametrize("line", dict.fromkeys(x for x in DISTDL if "--on kubernetes" in x), ids=lambda x: x[14:60])
def test_every_launch_on_kubernetes_is_what_the_platform_expects(
    line: str, command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be sent names an account, a claim, a queue and Secrets that the overlays and this page make."""
    monkeypatch.setenv("DISTDL_HOME", str(tmp_path))
    monkeypatch.chdir(REPOSITORY)
    words = [word for word in shlex.split(line)[1:] if word not in ("-f", "--dry-run")]
    result = command(*words, "--dry-run")
    assert result.code == 0, result.stderr
    sent = [found for found in yaml.safe_load_all(result.stdout) if found]
    [job] = [item for item in sent if item["kind"] == "RayJob"]
    made = {re.split(r"\s+", line)[6] for line in SECRETS}
    known = {(item["kind"], item["metadata"]["name"]) for item in objects(REPOSITORY / "k8s")}
    for pod in pods(sent):
        assert ("ServiceAccount", pod.spec["serviceAccountName"]) in known
        for volume in pod.spec["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in known
        for container in pod.containers:
            assert {source["secretRef"]["name"] for source in container.get("envFrom", [])} <= made
    if queue := job["metadata"]["labels"].get("kueue.x-k8s.io/queue-name"):
        assert ("LocalQueue", queue) in known


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_every_folder_that_is_applied_renders() -> None:
    folders = {shlex.split(line)[3] for line in APPLIED}
    assert {"k8s/cluster", *(f"k8s/overlays/{name}" for name in ("laptop", "gpu", "gpu-infiniband-kueue"))} <= folders
    for folder in folders:
        assert rendered(REPOSITORY / folder), folder


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_the_secrets_that_it_makes_are_those_that_are_asked_for(tmp_path: Path) -> None:
    """The very lines in an empty home, and `kubectl create` without its last step."""
    variables = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-ec", "\n".join(MADE)], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    files = [path for path in (tmp_path / ".distdl").rglob("*") if path.is_file()]
    assert files and all(path.stat().st_mode & 0o077 == 0 for path in files), "readable for their owner alone"
    keys: dict[tuple[str, str], set[str]] = {}
    for line in SECRETS:
        dry = ["bash", "-ec", f"{line} --dry-run=client -o yaml"]
        shown = subprocess.run(dry, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60)
        assert shown.returncode == 0, shown.stderr
        secret = yaml.safe_load(shown.stdout)
        keys[secret["metadata"]["namespace"], secret["metadata"]["name"]] = set(secret["data"])
    for namespace, name, key in asked_for():
        assert key in keys[namespace, name] if key else keys[namespace, name], (namespace, name, key)


def asked_for() -> set[tuple[str, str, str]]:
    """(namespace, Secret, key) of everything that the largest overlays and the examples refer to; '' for all its keys."""
    found: set[tuple[str, str, str]] = set()
    for name in ("laptop", "gpu-infiniband-kueue"):
        for pod in pods([*rendered(REPOSITORY / "k8s" / "overlays" / name), *objects(REPOSITORY / "k8s" / "examples")]):
            for container in pod.containers:
                named: list[Any] = [
                    v["valueFrom"]["secretKeyRef"] for v in container.get("env", []) if "valueFrom" in v
                ]
                found |= {(pod.namespace, reference["name"], reference["key"]) for reference in named}
                found |= {(pod.namespace, s["secretRef"]["name"], "") for s in container.get("envFrom", [])}
    return found


def test_what_it_names_is_there() -> None:
    named = set(re.findall(r"\b((?:k8s|configs|docs|launch)/[\w./-]+)", PAGE))
    assert len(named) > 12
    for name in named:
        assert (REPOSITORY / name.rstrip(".")).exists(), name
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-")
        for title in re.findall(r"^## (.+)$", PAGE, re.M)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= anchors


def test_versions_are_those_of_the_manifests() -> None:
    """Image tags of the page are the overlays', and of this version."""
    overlays = [
        yaml.safe_load((REPOSITORY / f"k8s/overlays/{n}/kustomization.yaml").read_text()) for n in ("laptop", "gpu")
    ]
    images = {f"{i['newName']}:{i['newTag']}" for o in overlays for i in o["images"] if i["name"] == "distdl-mlflow"}
    assert "localhost/distdl-mlflow:0.1.0" in images and "localhost/distdl-mlflow:0.1.0" in PAGE
    from distdl import __version__

    assert set(re.findall(r"distdl(?:-mlflow)?:(\d+\.[\d.]*\d)", PAGE)) == {__version__}
