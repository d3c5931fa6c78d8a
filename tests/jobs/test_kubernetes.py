"""Jobs on Kubernetes: the real kubectl against an API server that plays KubeRay and Kueue, and the command line on top."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distdl.config.launch import Launch
from distdl.errors import DistdlError, InputError
from distdl.jobs.kubernetes import kubernetes
from distdl.jobs.kubernetes.kubectl import Kubectl, NoSuchKind, NotFound
from distdl.jobs.kubernetes.kubernetes import PATCHES, KubernetesTarget
from distdl.jobs.kubernetes.manifests import to_yaml
from distdl.jobs.kubernetes.rayjob_driver import ENDS
from distdl.jobs.target import Job, Package, State
from tests.conftest import Result
from tests.jobs.kube import (
    CONFIG,
    IMAGE,
    NAMESPACE,
    OWNER,
    Cluster,
    cluster,
    documents,
    needs_cluster,
    package,
    wait,
    without_kubectl,
)

KUEUE = ("launch.kubernetes.scheduler=kueue", "launch.kubernetes.queue=research")
Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kubernetes, "POLL_S", 0.2)
    monkeypatch.setenv("DISTDL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DISTDL_OWNER", OWNER)


@pytest.fixture
def packed(tmp_path: Path) -> Package:
    return package(tmp_path / "packed")


@pytest.fixture
def target() -> KubernetesTarget:
    return KubernetesTarget(Launch())


def reaches(target: KubernetesTarget, state: State, timeout_s: float = 30) -> Job:
    wait(lambda: target.job("demo").state is state, state.value, timeout_s)
    return target.job("demo")


# -- without a cluster -------------------------------------------------------------------------------------------------


def ray_job(deployment: str | None, *, suspend: bool = False, queue: bool = False, **status: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/managed-by": "distdl", **({"kueue.x-k8s.io/queue-name": "q"} if queue else {})}
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {
        "metadata": {"name": "demo", "uid": "u", "labels": labels, "creationTimestamp": created},
        "spec": {"suspend": suspend},
        "status": {**({"jobDeploymentStatus": deployment} if deployment else {}), **status},
    }


OF_RAY = (
    "Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):\n"
    "2026-11-29 17:31:44 INFO job_manager.py:581 -- Runtime env is setting up.\ndistdl: no data\n    fix: it\n"
)
WAITS = {"spec": {"active": True}, "status": {"conditions": [
    {"type": "QuotaReserved", "status": "False", "message": "no quota"}]}}  # fmt: skip
HELD = {"spec": {"active": False}}
WORKERS = {"readyWorkerReplicas": 3, "desiredWorkerReplicas": 8}

STATES: list[tuple[dict[str, Any], dict[str, Any] | None, State, str, int]] = [
    # (RayJob, Workload, state, words of the message, attempt)
    (ray_job(None), None, State.QUEUED, "", 1),
    (ray_job("New"), None, State.QUEUED, "", 1),
    (ray_job("Initializing"), None, State.QUEUED, "waits for pods", 1),
    (ray_job("Initializing", rayClusterStatus=WORKERS), None, State.QUEUED, "3 of 8 worker pods", 1),
    (ray_job("Waiting"), None, State.QUEUED, "driver", 1),
    (ray_job("Running", jobStatus="RUNNING"), None, State.RUNNING, "", 1),
    (ray_job("Running", jobStatus="PENDING"), None, State.RUNNING, "", 1),
    (ray_job("Running", jobStatus="RUNNING", failed=2), None, State.RUNNING, "", 3),
    (ray_job("Complete", jobStatus="SUCCEEDED", succeeded=1), None, State.FINISHED, "", 1),
    (ray_job("Complete", jobStatus="SUCCEEDED", failed=1), None, State.FINISHED, "", 2),
    (ray_job("Complete", jobStatus="STOPPED"), None, State.FAILED, "/distdl/.distdl/jobs/demo/log.txt on the runs'", 1),
    (ray_job("Failed", failed=4, reason="AppFailed", message="it broke"), None, State.FAILED, "AppFailed: it broke", 4),
    (
        ray_job("Failed", failed=1, reason="AppFailed", message=OF_RAY),
        None,
        State.FAILED,
        "exit code 1: no data; fix: it",
        1,
    ),
    (ray_job("Failed", reason="DeadlineExceeded", message="168 h"), None, State.FAILED, "DeadlineExceeded", 1),
    (ray_job("ValidationFailed", message="name too long"), None, State.FAILED, "name too long", 1),
    (ray_job("Retrying", failed=1), None, State.RUNNING, "new cluster", 2),
    (ray_job("Initializing", failed=1), None, State.RUNNING, "again after 1 failed attempt", 2),
    (ray_job("New", failed=2), None, State.RUNNING, "again after 2 failed attempts", 3),
    (ray_job("Suspending", suspend=True), None, State.RUNNING, "being stopped", 1),
    (ray_job("Suspended", suspend=True), None, State.STOPPED, "suspended", 1),
    (ray_job("Suspended"), None, State.QUEUED, "", 1),  # it was let go on a moment ago
    (ray_job("Suspended", suspend=True, queue=True), WAITS, State.QUEUED, "no quota", 1),
    (ray_job("New", suspend=True, queue=True), WAITS, State.QUEUED, "no quota", 1),
    (ray_job("Suspended", suspend=True, queue=True), HELD, State.STOPPED, "not active", 1),
    (ray_job("New", suspend=True, queue=True), HELD, State.QUEUED, "", 1),  # its pods, if any, are not gone yet
    (ray_job("SomethingNew"), None, State.RUNNING, "SomethingNew", 1),
]


@pytest.mark.parametrize(
    "case", STATES, ids=[f"{c[0]['status'].get('jobDeploymentStatus')}-{i}" for i, c in enumerate(STATES)]
)
def test_every_state_of_a_rayjob(case: Any, target: KubernetesTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    found, workload, state, words, attempt = case
    monkeypatch.setattr(target, "_workload", lambda job: (workload, workload is not None))
    job = target._job(found)
    assert (job.state, job.attempt) == (state, attempt)
    assert words in job.message if words else not job.message or state is State.QUEUED


def test_every_state_that_kuberay_knows_is_mapped() -> None:
    """JobDeploymentStatus of KubeRay 1.6 and 1.7, rayjob_types.go."""
    known = {"Initializing", "Running", "Complete", "Failed", "ValidationFailed", "Suspending", "Suspended", "Retrying"}
    assert kubernetes.STATES.keys() == known | {"New", "Waiting"}


def test_a_queued_job_without_a_workload(target: KubernetesTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Kueue is installed, its Workload is about to be made; where it is not, the label means nothing."""
    monkeypatch.setattr(target, "_workload", lambda job: (None, True))
    assert target._job(ray_job("Suspended", suspend=True, queue=True)).state is State.QUEUED
    monkeypatch.setattr(target, "_workload", lambda job: (None, False))
    assert target._job(ray_job("Suspended", suspend=True, queue=True)).state is State.STOPPED


def test_an_operator_that_does_nothing_is_asked_about(
    target: KubernetesTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "_workload", lambda job: (None, False))
    old = ray_job(None)
    old["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    assert "does its operator run" in target._job(old).message


ERRORS: list[tuple[str, type[DistdlError], str]] = [
    ('error: context "prod" does not exist', InputError, "the context prod is not in the kubeconfig"),
    ("The connection to the server localhost:8080 was refused", InputError, "not set up for a cluster"),
    ("The connection to the server 10.0.0.1:6443 was refused", DistdlError, "no cluster answers at the context prod"),
    ("Unable to connect to the server: dial tcp: lookup x: no such host", DistdlError, "no cluster answers"),
    ("error: You must be logged in to the server (Unauthorized)", DistdlError, "does not let you in"),
    ('Error from server (NotFound): namespaces "distdl" not found', InputError, "no namespace distdl"),
    ('error: no matches for kind "RayJob" in version "ray.io/v1"', InputError, "KubeRay is not installed"),
    ('error: the server doesn\'t have a resource type "rayjobs"', InputError, "KubeRay is not installed"),
    ('error: the server doesn\'t have a resource type "workloads"', NoSuchKind, "knows no such kind"),
    ('Error from server (Forbidden): pods is forbidden: User "u" cannot list', DistdlError, "you may not do that"),
    ('Error from server (BadRequest): strict decoding error: unknown field "x"', InputError, "refuses it: strict"),
    ('Error from server: admission webhook "v" denied the request: no', InputError, "denied the request"),
    ('Error from server (NotFound): pods "x" not found', NotFound, 'pods "x" not found'),
    ("error: something else", DistdlError, "kubectl failed: error: something else"),
]  # fmt: skip


@pytest.mark.parametrize("case", ERRORS, ids=[e[2][:30] for e in ERRORS])
def test_kubectls_failures_in_words(case: tuple[str, type[DistdlError], str]) -> None:
    stderr, kind, words = case
    error = Kubectl(NAMESPACE, "prod").error(f"E0101 12:00:00.0 memcache.go:265] noise\n{stderr}")
    assert type(error) is kind and words.replace("kubectl failed: error: ", "kubectl failed: ") in str(error)
    assert "memcache" not in str(error)


def test_no_kubectl(target: KubernetesTarget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_kubectl(monkeypatch, tmp_path)
    for call in (
        target.jobs,
        lambda: target.job("demo"),
        lambda: list(target.logs("demo")),
        lambda: target.stop("demo"),
    ):
        with pytest.raises(DistdlError, match="kubectl is not installed") as caught:
            call()
        assert caught.value.exit_code == 1


def test_rendering_asks_no_cluster(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_kubectl(monkeypatch, tmp_path)
    config, patch = tmp_path / "demo.yaml", tmp_path / "site.yaml"
    config.write_text(CONFIG)
    patch.write_text(
        "- {op: add, path: /metadata/labels/team, value: vision}\n---\nkind: RayJob\nspec: {backoffLimit: 9}\n"
    )
    shown = command("k8s", "render", config, "runtime.workers=4", "--patch", patch)
    assert (shown.code, shown.stderr) == (0, "")
    config_map, job = documents(shown.stdout)
    assert config_map["data"] == {"config.yaml": CONFIG}
    assert job["metadata"]["labels"]["team"] == "vision" and job["spec"]["backoffLimit"] == 9
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 4

    written = command("k8s", "render", config, "runtime.workers=4", "--patch", patch, "-o", tmp_path / "out")
    assert written.stdout.splitlines() == [str(tmp_path / "out" / name) for name in ("configmap.yaml", "rayjob.yaml")]
    assert "".join(Path(p).read_text() for p in written.stdout.splitlines()) == shown.stdout


def test_bad_input_ends_with_2(command: Command, tmp_path: Path) -> None:
    config = tmp_path / "demo.yaml"
    config.write_text(CONFIG)
    patch = tmp_path / "site.yaml"
    patch.write_text("- {op: remove, path: /spec/nothing}\n")
    for arguments, words in (
        (("launch.kubernetes.scheduler=kueue",), "no queue is named"),
        (("launch.kubernetes.imgae=x",), "did you mean"),
        (("--patch", patch), "the path /spec/nothing does not exist"),
        (("--patch", tmp_path / "absent.yaml"), "cannot be read"),
        (("-o", config), "cannot be written"),
    ):
        done = command("k8s", "render", config, *arguments)
        assert done.code == 2 and words in done.stderr and not done.stdout


STUB = """#!/bin/sh
cd "$STUB_FOLDER"
case "$*" in
  *" logs "*" -f"*)  # the next stream: its lines, what the cluster is like after them, and whether it ends or goes silent
    n=$(($(cat n) + 1)); echo $n > n; cat log.$n; cp job.$n job; cp pods.$n pods
    if [ -e silent.$n ]; then exec sleep 60; fi ;;
  *" logs "*) cat log.$(cat n) ;;
  *" get pods "*) cat pods ;;
  *" get rayjobs"*) cat job ;;
esac
"""


@pytest.mark.parametrize(
    ("silent", "moved"),
    [(False, False), (False, True), (True, True)],
    ids=["broken, same pod", "broken, new cluster", "silent, new cluster"],
)
def test_following_loses_no_line_and_repeats_none(
    silent: bool, moved: bool, target: KubernetesTarget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stand-in for kubectl. The first stream breaks off or falls silent; the second is silent when the job has ended,
    whose pod stays. In the same pod the stream begins again with its first line."""
    monkeypatch.setattr(kubernetes, "POLL_S", 0.05)
    for name, text in (("kubectl", STUB), ("n", "0"), ("log.1", "a\nb\n"), ("log.2", "c\n" if moved else "a\nb\nc\n")):
        (tmp_path / name).write_text(text)
    (tmp_path / "kubectl").chmod(0o755)
    (tmp_path / "silent.2").touch()
    if silent:
        (tmp_path / "silent.1").touch()
    second = "two" if moved else "one"
    for name, cluster_name, deployment in (
        ("", "one", "Running"),
        (".1", second, "Running"),
        (".2", second, "Complete"),
    ):
        job = ray_job(deployment, jobStatus="RUNNING", rayClusterName=cluster_name)
        labels = {"ray.io/cluster": cluster_name}
        pod = {"metadata": {"name": f"{cluster_name}-head", "uid": cluster_name, "labels": labels}}
        (tmp_path / f"job{name}").write_text(json.dumps(job))
        (tmp_path / f"pods{name}").write_text(json.dumps({"items": [pod]}))
    monkeypatch.setenv("STUB_FOLDER", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    begun = time.monotonic()
    assert list(target.logs("demo", follow=True)) == ["a", "b", "c"]
    assert time.monotonic() - begun < 50  # silent streams are left, not waited for


# -- against the API server --------------------------------------------------------------------------------------------


@needs_cluster
@pytest.mark.slow
def test_submit_sends_what_render_prints_and_the_job_finishes(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config, patch = tmp_path / "demo.yaml", tmp_path / "site.yaml"
    config.write_text(CONFIG)
    patch.write_text("kind: RayJob\nspec: {ttlSecondsAfterFinished: 5}\n")
    arguments = (config, f"launch.kubernetes.image={IMAGE}", "--patch", patch)
    with cluster(monkeypatch) as kube:
        printed = command("k8s", "render", *arguments)
        threading.Thread(target=_announce, args=(kube,), daemon=True).start()
        done = command("k8s", "submit", *arguments, "-f")
        assert done.code == 0, done.stderr
        assert kube.applied == documents(printed.stdout)
        assert "step at" in done.stdout and "tracking: http://mlflow/#/runs/7" in done.stdout
        assert done.stdout.splitlines()[-1].startswith("demo: finished")

        status = command("k8s", "status", "demo")
        assert status.code == 0 and status.stdout == "demo  finished  http://mlflow/#/runs/7\n"
        assert command("k8s", "status").stdout == status.stdout
        assert command("jobs", "status", "demo").stdout.startswith("demo: finished")
        assert command("k8s", "status", "other").code == 1  # lost
        gone = command("k8s", "logs", "demo")
        assert gone.code == 1 and "the pods of demo are gone" in gone.stderr and "runs/7" in gone.stderr
        assert command("k8s", "logs", "other").code == 2


def _announce(kube: Cluster) -> None:
    """The driver of the first cluster tells its MLflow run; once somebody has remembered it, the job ends."""
    wait(lambda: kube.names("v1", "pods"), "pods")
    kube.say("tracking: http://mlflow/#/runs/7")
    wait(lambda: "distdl.io/tracking" in kube.job()["metadata"]["annotations"], "the link to be remembered")
    kube.end()


@needs_cluster
@pytest.mark.slow
def test_a_failed_attempt_is_followed_into_the_next_cluster(
    packed: Package, target: KubernetesTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster(monkeypatch) as kube:
        assert not target.submit(packed).state.ended
        reaches(target, State.RUNNING)
        clusters, lines = [kube.job()["status"]["rayClusterName"]], list[str]()
        for line in target.logs("demo", follow=True):
            lines.append(line)
            if line == "say 0":
                kube.end(well=False)
                wait(lambda: kube.job()["status"].get("failed"), "the first attempt to fail")
                kube.go_on()
                threading.Thread(target=_second, args=(kube, clusters), daemon=True).start()
            elif len(lines) == 1:
                kube.say("say 0")
            elif line == "say 1":
                kube.end()
        told = [line for line in lines if line.startswith("say")]
        assert told == ["say 0", "say 1"] and len(set(clusters)) == 2  # nothing is lost, nothing comes twice
        job = target.job("demo")
        assert (job.state, job.attempt) == (State.FINISHED, 2) and job.started_s


def _second(kube: Cluster, clusters: list[str]) -> None:
    """The driver of the second cluster speaks."""
    wait(lambda: kube.job()["status"].get("jobStatus") == "RUNNING" and kube.names("v1", "pods"), "a new cluster")
    clusters.append(kube.job()["status"]["rayClusterName"])
    kube.say("say 1")


@needs_cluster
@pytest.mark.slow
def test_stop_and_resume_without_kueue(
    packed: Package, target: KubernetesTarget, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with cluster(monkeypatch) as kube:
        target.submit(packed)
        reaches(target, State.RUNNING)
        first = kube.job()
        with pytest.raises(InputError, match=r"demo is alive on Kubernetes \(namespace distdl\): running"):
            target.submit(packed)
        assert len(target.jobs()) == 1
        assert target.stop("demo").state is State.STOPPED
        assert kube.job()["spec"]["suspend"] is True and not kube.names("v1", "pods")
        again = command("k8s", "stop", "demo")  # once more is nothing more
        assert (again.code, again.stdout) == (0, "demo  stopped: suspended\n")

        changed = package(tmp_path / "changed", "launch.max_retries=5", text=CONFIG.replace("600", "700"))
        assert not target.submit(changed).state.ended
        reaches(target, State.RUNNING)
        now = kube.job()
        assert now["metadata"]["uid"] == first["metadata"]["uid"]  # the same RayJob goes on, brought up to date
        assert (now["spec"]["suspend"], now["spec"]["backoffLimit"]) == (False, 5)
        assert now["status"]["rayClusterName"] != first["status"]["rayClusterName"]
        assert kube.names("v1", "configmaps") == [changed_map(target, changed)]  # the old config is gone


@needs_cluster
@pytest.mark.slow
def test_no_job_takes_the_place_of_another_runs_or_of_somebody_elses(
    packed: Package, target: KubernetesTarget, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Names of a sweep, which differ behind the 40th character only; an ended job of the id that is not one's own."""
    sweep = [f"gpt-sweep-learning-rate-batch-size-layers-seed-{n:04d}" for n in (1, 2)]
    config = tmp_path / "demo.yaml"
    config.write_text(CONFIG)
    with cluster(monkeypatch) as kube:
        kube.end()
        for name in sweep:
            assert command("launch", config, "--on", "kubernetes", f"name={name}").code == 0
            wait(lambda: all(job.state is State.FINISHED for job in target.jobs()), "the end")
        assert sorted(job.run for job in target.jobs()) == sweep and len(kube.names("v1", "configmaps")) == 2
        for name in sweep:
            assert f"run      {name}" in command("jobs", "status", name).stdout

        target.submit(packed)
        reaches(target, State.FINISHED)
        before = kube.job()
        for other, words in (
            (replace(packed, owner="bob@there"), "is finished, and belongs to ada@example"),
            (replace(packed, config=packed.config.model_copy(update={"name": "demo_"})), "belongs to the run demo"),
        ):
            with pytest.raises(InputError, match=words) as caught:
                target.submit(other)
            assert "jobs stop" not in str(caught.value)
        assert kube.job()["metadata"]["uid"] == before["metadata"]["uid"]
        monkeypatch.setenv("DISTDL_OWNER", "bob@there")
        kube.go_on()
        target.submit(packed)
        for verb in ("k8s", "jobs"):
            refused = command(verb, "stop", "demo", *(("--on", "kubernetes") * (verb == "jobs")))
            assert refused.code == 2 and "was sent by ada@example" in refused.stderr
        assert not kube.job()["spec"].get("suspend")


def changed_map(target: KubernetesTarget, packed: Package) -> str:
    return str(target.manifests(packed)[0]["metadata"]["name"])


@needs_cluster
@pytest.mark.slow
def test_stop_and_resume_under_kueue(target: KubernetesTarget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    queued = package(tmp_path / "queued", *KUEUE)
    with cluster(monkeypatch, kueue=True) as kube:
        target.submit(queued)
        reaches(target, State.RUNNING)
        target._patch("rayjobs.ray.io", "demo", {"spec": {"suspend": True}})  # what does not work: Kueue undoes it
        wait(lambda: not kube.job()["spec"]["suspend"], "Kueue to let the job go on")
        reaches(target, State.RUNNING)

        assert target.stop("demo").state is State.STOPPED
        time.sleep(1)
        assert target.job("demo").state is State.STOPPED and kube.job()["spec"]["suspend"] is True
        assert not kube.names("v1", "pods")

        target.submit(queued)
        reaches(target, State.RUNNING)


@needs_cluster
@pytest.mark.slow
def test_a_job_that_waits_for_quota_is_queued_and_can_be_stopped(
    target: KubernetesTarget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    queued = package(tmp_path / "queued", *KUEUE)
    with cluster(monkeypatch, kueue=True, quota=False) as kube:
        target.submit(queued)
        wait(lambda: kube.job().get("status", {}).get("jobDeploymentStatus") == "Suspended", "the queue")
        job = target.job("demo")
        assert job.state is State.QUEUED and "insufficient unused quota" in job.message
        with pytest.raises(DistdlError, match="demo has no log yet: queued"):
            list(target.logs("demo"))
        assert target.stop("demo").state is State.STOPPED
        assert kube.kueue is not None
        kube.kueue.quota = True
        time.sleep(1)
        assert target.job("demo").state is State.STOPPED  # quota alone does not start what was stopped
        target.submit(queued)
        reaches(target, State.RUNNING)


@needs_cluster
@pytest.mark.slow
def test_a_job_that_failed_for_good_is_made_anew(
    tmp_path: Path, target: KubernetesTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = package(tmp_path / "p", "launch.max_retries=0")
    with cluster(monkeypatch) as kube:
        kube.end(well=False)
        target.submit(packed)
        failed = reaches(target, State.FAILED)
        assert (failed.attempt, failed.message) == (1, "AppFailed: Job entrypoint command failed")
        first = kube.job()["metadata"]["uid"]
        kube.end()
        target.submit(packed)
        reaches(target, State.FINISHED)
        assert kube.job()["metadata"]["uid"] != first and len(kube.names("v1", "configmaps")) == 1


@needs_cluster
@pytest.mark.slow
def test_a_driver_that_ended_its_job_has_failed_and_pods_that_do_not_start_are_told(
    packed: Package, target: KubernetesTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad input: KubeRay calls it Complete and tries no more. Its words are kept once somebody has seen them."""
    with cluster(monkeypatch) as kube:
        target.submit(packed)
        reaches(target, State.RUNNING)
        head = kube.store.read("v1", "pods", NAMESPACE, f"{kube.job()['status']['rayClusterName']}-head")
        why = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x"'}
        head["status"]["containerStatuses"] = [{"name": "ray-head", "state": {"waiting": why}}]
        kube.store.write("v1", "pods", NAMESPACE, head, status_only=True)
        found = {**kube.job(), "status": {**kube.job()["status"], "jobDeploymentStatus": "Initializing"}}
        assert 'ImagePullBackOff: Back-off pulling image "x" (1 of 3 pods wait)' in target._job(found).message

        for line in ("distdl: data/nothere holds no data set", "    fix: distdl data prepare", f"{ENDS} fails …"):
            kube.say(line)
        ended = {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED", "message": "Job was intentionally stopped."}
        kube.server.operator.status(kube.job(), **ended)
        told = "data/nothere holds no data set; fix: distdl data prepare"
        assert list(target.logs("demo", follow=True))[-1].startswith(ENDS)
        kube.server.operator.remove_cluster(kube.job())
        wait(lambda: not kube.names("v1", "pods"), "the pods to go")
        job = target.job("demo")
        assert (job.state, job.message, job.attempt) == (State.FAILED, told, 1)
        with pytest.raises(DistdlError, match=r"/distdl/.distdl/jobs/demo/log.txt on the runs' volume"):
            list(target.logs("demo"))
        found = {**kube.job(), "status": {"jobDeploymentStatus": "Failed", "message": OF_RAY}}
        monkeypatch.setattr(target, "_find", lambda id: found)
        assert list(target.logs("demo"))[-2:] == ["distdl: no data", "    fix: it"]


@needs_cluster
@pytest.mark.slow
def test_what_the_cluster_or_kuberay_refuses(
    packed: Package, target: KubernetesTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def patch(spec: dict[str, Any]) -> None:
        (packed.folder / PATCHES).write_text(to_yaml([{"kind": "RayJob", "spec": spec}]))

    with cluster(monkeypatch) as kube:
        patch({"backOffLimit": 5})
        with pytest.raises(InputError, match=r"the cluster refuses it.*unknown field"):
            target.submit(packed)
        assert not kube.names("v1", "configmaps") and not kube.names("ray.io/v1", "rayjobs")  # all or nothing

        patch({"submissionMode": "Http"})  # the CRD takes any word
        target.submit(packed)
        failed = reaches(target, State.FAILED)
        assert failed.message.startswith("ValidationFailed: 'Http'")
        (packed.folder / PATCHES).unlink()
        target.submit(packed)
        reaches(target, State.RUNNING)


@needs_cluster
@pytest.mark.slow
def test_what_is_missing_is_named_and_what_is_not_ours_is_left_alone(
    packed: Package, target: KubernetesTarget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with cluster(monkeypatch) as kube:
        labels = {"app.kubernetes.io/managed-by": "somebody"}
        job = {**target.manifests(packed)[1], "metadata": {"name": "demo", "labels": labels}}
        kube.store.write("ray.io/v1", "rayjobs", NAMESPACE, job, create=True)
        before = kube.job()
        for call in (lambda: target.submit(packed), lambda: target.job("demo"), lambda: target.stop("demo")):
            with pytest.raises(InputError, match="was not made by distdl"):
                call()
        assert kube.job()["spec"] == before["spec"] and not target.jobs() and not kube.applied

        elsewhere = KubernetesTarget(Launch.model_validate({"kubernetes": {"namespace": "nowhere"}}))
        with pytest.raises(InputError, match="no namespace nowhere"):
            elsewhere.submit(package(tmp_path / "nowhere", "launch.kubernetes.namespace=nowhere"))
        with pytest.raises(InputError, match="the context nobody is not in the kubeconfig"):
            KubernetesTarget(Launch(), "nobody").jobs()
        del kube.store.resources["ray.io/v1"]["rayjobs"]
        monkeypatch.setenv("KUBECACHEDIR", str(packed.folder / "cache"))  # kubectl remembers what kinds there are
        with pytest.raises(InputError, match="KubeRay is not installed"):
            target.submit(packed)
        kube.server.server.shutdown()
        kube.server.server.server_close()
        with pytest.raises(DistdlError, match="no cluster answers") as caught:
            target.jobs()
        assert caught.value.exit_code == 1
