"""Jobs on Kubernetes: one KubeRay RayJob each, by way of kubectl and the rights of whoever runs it.

The state of a job is read from the RayJob and never from a stream of logs. Each retry and each suspension is a new
cluster: what was known of the old one is read again.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO, Any

from distdl.config.launch import Launch
from distdl.errors import DistdlError, InputError
from distdl.jobs.cause import cause
from distdl.jobs.kubernetes.kubectl import Kubectl, NoSuchKind, NotFound, no_kubectl
from distdl.jobs.kubernetes.manifests import Object, patched, read_patches, to_yaml
from distdl.jobs.kubernetes.pods import JOB_LABEL
from distdl.jobs.kubernetes.rayjob import MANAGED_BY, OWNER, RUN, render
from distdl.jobs.kubernetes.rayjob_driver import ENDS
from distdl.jobs.kubernetes.rayjob_state import (
    ERROR_ANNOTATION,
    STATES,
    TRACKING_ANNOTATION,
    annotations_of,
    created,
    ended_itself,
    grace_s,
    is_of_cluster,
    is_suspended,
    kept_log,
    labels_of,
    link_of,
    seconds,
    start_of,
    status_of,
    why_failed,
    why_waiting,
    workers_text,
)
from distdl.jobs.target import Job, Package, State, refuse_other, tracking_link

RAYJOB, WORKLOAD = "rayjobs.ray.io", "workloads.kueue.x-k8s.io"
QUEUE_LABEL, WORKLOAD_LABEL = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/job-uid"
PATCHES = "kubernetes-patch.yaml"
"""A file of the package whose patches are put on the objects, so that `distdl jobs resume` sends the same."""
MANAGER = "--field-manager=distdl"
POLL_S = 1.0
STOP_TIMEOUT_S = 60.0
"""Beyond what its pods have to end, for a job to be gone."""
WORKLOAD_TIMEOUT_S = 10.0
"""Kueue makes the Workload of a new job within a second."""
UNSEEN_S = 60.0
"""Age at which a job that KubeRay has not touched makes one ask whether KubeRay runs."""


class KubernetesTarget:
    """The namespace `launch.kubernetes.namespace` of a cluster. `context`: of the kubeconfig; None: its current one."""

    def __init__(self, launch: Launch, context: str | None = None) -> None:
        self.namespace = launch.kubernetes.namespace
        self._kubectl = Kubectl(self.namespace, context)

    # -- the words of a target -----------------------------------------------------------------------------------------

    def manifests(self, package: Package) -> list[Object]:
        """The objects of a package, its patches put on."""
        objects, file = render(package), package.folder / PATCHES
        return patched(objects, read_patches(file), "--patch") if file.is_file() else objects

    def dry_run(self, package: Package) -> str:
        """Exactly what `submit` would send: the YAML that kubectl applies. No cluster is asked."""
        return to_yaml(self.manifests(package))

    def submit(self, package: Package) -> Job:
        """Starts the job. A suspended one of this id is brought up to date and goes on; one that has ended makes room for
        a new one, which continues the run. Raises InputError while it is alive, and for what the cluster refuses."""
        old, objects = self._find(package.id), self.manifests(package)
        if old is not None:
            refuse_other(self._job(old), package, f"on Kubernetes (namespace {self.namespace})")
        # Our fields are ours again where Kueue wrote into the pods of a job that it had admitted: --force-conflicts.
        apply = ["apply", "--server-side", "--force-conflicts", MANAGER, "--validate=strict", "-f", "-"]
        self._kubectl(*apply, "--dry-run=server", stdin=to_yaml(objects))  # all or nothing, and nothing old is lost
        if old is not None and not is_suspended(old):  # foreground: nothing of the old one is left to meet the new one
            self._kubectl("delete", RAYJOB, package.id, "--cascade=foreground", timeout_s=grace_s(old) + STOP_TIMEOUT_S)
            old = None
        self._kubectl(*apply, stdin=to_yaml(objects))
        if old is not None:
            self._resume(old)
        self._forget_configs(package.id, [o["metadata"]["name"] for o in objects])
        return self._job(self._required(package.id))

    def jobs(self) -> list[Job]:
        """The RayJobs of distdl in the namespace, newest first."""
        found = self._list(RAYJOB, f"{MANAGED_BY}=distdl")
        return [self._job(o) for o in sorted(found, key=created, reverse=True)]

    def job(self, id: str) -> Job:
        """A RayJob as a job, with its MLflow run. Raises InputError for one that is not distdl's."""
        found = self._find(id)
        if found is None:
            return Job(id, State.LOST, f"the namespace {self.namespace} has no RayJob {id}")
        wanted = {TRACKING_ANNOTATION, *([ERROR_ANNOTATION] if ended_itself(found) else [])}
        if not wanted <= annotations_of(found).keys():
            self._look_into_log(found)
        return self._job(found)

    def stop(self, id: str) -> Job:
        """Suspends the job: its pods go, the RayJob stays. Waits for that as long as its pods may take."""
        found = self._required(id)
        if self._job(found).state.ended:
            return self._job(found)
        workload = self._awaited_workload(found)
        if workload is None:
            self._patch(RAYJOB, id, {"spec": {"suspend": True}})
        else:  # Kueue would let an admitted job that was only suspended go on at once
            self._patch(WORKLOAD, workload["metadata"]["name"], {"spec": {"active": False}})
        end = time.monotonic() + grace_s(found) + STOP_TIMEOUT_S
        while not (job := self._job(self._required(id))).state.ended and time.monotonic() < end:
            time.sleep(POLL_S)
        return job

    def logs(self, id: str, follow: bool = False) -> Iterator[str]:
        """Output of the head pod's first process, which rayjob.DRIVER copies the driver's to.

        With `follow`, the head of each new cluster after that of the last one, and nothing of a job whose pods are gone.
        Raises InputError for an unknown job; without `follow`, DistdlError where no pod has a log, or none any more.
        """
        found, seen = self._required(id), dict[tuple[str, int], int]()
        while True:
            job, pod = self._job(found), self._head(found)
            if pod is not None:
                stream = self._follow(id, pod) if follow and not job.state.ended else self._log(pod)
                start = start_of(pod)
                for number, line in enumerate(stream, 1):
                    if number > seen.get(start, 0):  # a stream that broke begins again with its first line
                        seen[start] = number
                        self._remember(found, TRACKING_ANNOTATION, tracking_link([line]))
                        yield line
            if not follow and pod is None:
                yield from kept_log(found, job)
            if ended_itself(found):
                self._look_into_log(found)
            if not follow or job.state.ended:
                return
            time.sleep(POLL_S)
            if (again := self._find(id)) is None:
                return
            found = again

    # -- reading -------------------------------------------------------------------------------------------------------

    def _find(self, id: str) -> Object | None:
        """The RayJob of an id. Raises InputError for one that somebody else made."""
        text = self._kubectl("get", RAYJOB, id, "--ignore-not-found", "-o", "json")
        found: Object | None = json.loads(text) if text.strip() else None
        if found is not None and labels_of(found).get(MANAGED_BY) != "distdl":
            what = f"the RayJob {id} in the namespace {self.namespace} was not made by distdl"
            raise InputError(what, fix="give the run another name (name=OTHER), or use another namespace")
        return found

    def _required(self, id: str) -> Object:
        found = self._find(id)
        if found is None:
            fix = f"`distdl k8s status --namespace {self.namespace}` lists what is there"
            raise InputError(f"the namespace {self.namespace} has no RayJob {id}", fix=fix)
        return found

    def _list(self, kind: str, selector: str) -> list[Object]:
        return list(json.loads(self._kubectl("get", kind, "-l", selector, "-o", "json"))["items"])

    def _workload(self, job: Object) -> tuple[Object | None, bool]:
        """Kueue's Workload of a RayJob, and whether the cluster has Kueue at all."""
        try:
            found = self._list(WORKLOAD, f"{WORKLOAD_LABEL}={job['metadata']['uid']}")
        except NoSuchKind:
            return None, False
        return (found[0] if found else None), True

    def _awaited_workload(self, job: Object) -> Object | None:
        """The same, once Kueue had the time to make it for a job that it queues."""
        end = time.monotonic() + WORKLOAD_TIMEOUT_S
        while True:
            workload, kueue = self._workload(job)
            if workload is not None or not kueue or QUEUE_LABEL not in labels_of(job) or time.monotonic() > end:
                return workload
            time.sleep(POLL_S)

    def _head(self, job: Object) -> Object | None:
        """The head pod of the cluster that the job has now."""
        cluster = status_of(job).get("rayClusterName")
        pods = self._list("pods", f"ray.io/cluster={cluster},ray.io/node-type=head") if cluster else []
        return max(pods, key=created, default=None)

    def _job(self, found: Object) -> Job:
        """What a RayJob, and Kueue's Workload of one that waits, say of the job."""
        status, meta = status_of(found), found["metadata"]
        deployment, failed = status.get("jobDeploymentStatus") or "New", int(status.get("failed") or 0)
        state, message = STATES.get(deployment, (State.RUNNING, f"KubeRay calls it {deployment}"))
        if deployment == "Complete":
            # STOPPED: rayjob_driver does that to end a job for good; `stop` suspends
            state = State.FAILED if status.get("jobStatus") in ("FAILED", "STOPPED") else State.FINISHED
        elif deployment in ("New", "Initializing") and failed:
            state, message = State.RUNNING, f"starting again after {failed} failed attempt{'s' * (failed > 1)}"
        elif deployment in ("New", "Suspended"):
            state, message = self._held(found, deployment)
        elif deployment == "Initializing":
            message = "; ".join(text for text in (workers_text(status), self._stuck(status)) if text)
        if state is State.FAILED:
            message = why_failed(found) or message
        started = seconds(status.get("startTime")) if state is not State.QUEUED else None
        attempt = max(1, failed + (state is not State.FAILED))
        kept = annotations_of(found)
        return Job(
            meta["name"], state, message, attempt, started, link_of(found), kept.get(RUN, ""), kept.get(OWNER, "")
        )

    def _stuck(self, status: Object) -> str:
        """Why pods of the cluster do not start, which KubeRay does not tell: an image, a Secret, no node that fits."""
        pods: list[Object] = []
        if cluster := status.get("rayClusterName"):
            with contextlib.suppress(DistdlError):  # without the right to see pods, what KubeRay says is all there is
                pods = self._list("pods", f"ray.io/cluster={cluster}")
        told = [why for pod in pods if (why := why_waiting(pod))]
        return f"{told[0]} ({len(told)} of {len(pods)} pods wait)" if told else ""

    def _held(self, found: Object, deployment: str) -> tuple[State, str]:
        """State of a job that has no cluster: stopped, waiting in a queue, or new."""
        workload, kueue = self._workload(found)
        queue = labels_of(found).get(QUEUE_LABEL)
        if workload is not None:
            if not workload["spec"].get("active", True) and deployment == "Suspended":
                return State.STOPPED, "its Workload is not active"
            conditions = workload.get("status", {}).get("conditions") or []
            said = [c.get("message", "") for c in conditions if c["type"] == "QuotaReserved" and c["status"] != "True"]
            return State.QUEUED, said[0] if said else f"waits in the queue {queue}"
        if kueue and queue:  # its Workload is not made yet
            return State.QUEUED, f"waits in the queue {queue}"
        if found["spec"].get("suspend"):
            return State.STOPPED, "suspended"
        unseen = deployment == "New" and time.time() - (seconds(created(found)) or 0) > UNSEEN_S
        return State.QUEUED, "KubeRay does nothing with it: does its operator run, and watch the namespace?" * unseen

    # -- changing ------------------------------------------------------------------------------------------------------

    def _resume(self, job: Object) -> None:
        """Lets a suspended job go on, by the way it was stopped."""
        workload, _ = self._workload(job)
        if workload is None:
            self._patch(RAYJOB, job["metadata"]["name"], {"spec": {"suspend": False}})
        else:
            self._patch(WORKLOAD, workload["metadata"]["name"], {"spec": {"active": True}})

    def _patch(self, kind: str, name: str, patch: Mapping[str, Any]) -> None:
        self._kubectl("patch", kind, name, "--type=merge", MANAGER, "-p", json.dumps(patch))

    def _look_into_log(self, found: Object) -> None:
        """Keeps with the RayJob what its log tells for as long as it is there."""
        if (pod := self._head(found)) is None:
            return
        lines = self._log(pod)
        self._remember(found, TRACKING_ANNOTATION, tracking_link(lines))
        if ended_itself(found):
            words = [n for n, line in enumerate(lines) if line.startswith(ENDS)]
            self._remember(found, ERROR_ANNOTATION, cause("\n".join(lines[: words[-1]] if words else lines)))

    def _remember(self, found: Object, annotation: str, text: str) -> None:
        """Annotates the RayJob, for when the log is gone; without the right to, it does not."""
        if text and text != annotations_of(found).get(annotation):
            annotations = {annotation: text}
            found["metadata"].setdefault("annotations", {}).update(annotations)
            with contextlib.suppress(DistdlError):
                self._patch(RAYJOB, found["metadata"]["name"], {"metadata": {"annotations": annotations}})

    def _forget_configs(self, id: str, keep: Sequence[str]) -> None:
        """Removes the ConfigMaps of earlier configs of the job."""
        old = [o["metadata"]["name"] for o in self._list("configmaps", f"{JOB_LABEL}={id},{MANAGED_BY}=distdl")]
        if gone := [name for name in old if name not in keep]:
            self._kubectl("delete", "configmaps", *gone, "--ignore-not-found")

    # -- logs ----------------------------------------------------------------------------------------------------------

    def _log(self, pod: Object) -> list[str]:
        """What a pod has said so far; nothing where it has not started, or is gone."""
        try:
            return self._kubectl("logs", pod["metadata"]["name"], "-c", "ray-head").splitlines()
        except NotFound:
            return []
        except InputError as error:
            if "waiting to start" in str(error):
                return []
            raise

    def _follow(self, id: str, pod: Object) -> Iterator[str]:
        """Lines of a pod until it goes, the job ends or has another cluster. The pod of an ended job stays a while, and its
        stream with it: so the RayJob is asked whenever the stream is silent."""
        command = self._kubectl.command("logs", pod["metadata"]["name"], "-c", "ray-head", "-f", timeout_s=0)
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        try:
            process = subprocess.Popen(command, **pipes, text=True, encoding="utf-8", errors="replace")
        except FileNotFoundError:
            raise no_kubectl() from None
        with process:
            assert process.stdout is not None and process.stderr is not None
            lines: SimpleQueue[str | None] = SimpleQueue()
            Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
            try:
                while True:
                    try:
                        line = lines.get(timeout=POLL_S)
                    except Empty:
                        now = self._find(id)
                        if now is None or self._job(now).state.ended or not is_of_cluster(now, pod):
                            return
                        continue
                    if line is None:
                        break
                    yield line
                error = process.stderr.read()
                if process.wait() and "forbidden" in error.lower():  # anything else: it is starting, or gone
                    raise self._kubectl.error(error)
            finally:
                process.kill()


def _pump(stream: IO[str], lines: SimpleQueue[str | None]) -> None:
    for line in stream:
        lines.put(line.rstrip("\n"))
    lines.put(None)
