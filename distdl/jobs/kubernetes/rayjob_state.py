"""What the objects of a job on Kubernetes say: a RayJob, its pods. Nothing here asks the cluster."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from distdl.errors import DistdlError
from distdl.jobs.cause import OF_RAY, cut, of_message
from distdl.jobs.kubernetes.manifests import Object
from distdl.jobs.kubernetes.pods import FOLDER, log_path
from distdl.jobs.target import Job, State

TRACKING_ANNOTATION, ERROR_ANNOTATION = "distdl.io/tracking", "distdl.io/error"
"""The link of the MLflow run, and why the driver ended its job, once somebody has seen it in the log: the log goes with the
pods."""
STATES = {
    "New": (State.QUEUED, ""),
    "Initializing": (State.QUEUED, ""),
    "Waiting": (State.QUEUED, "waits for a driver"),
    "Running": (State.RUNNING, ""),
    "Retrying": (State.RUNNING, "the last attempt failed; a new cluster is started"),
    "Suspending": (State.RUNNING, "its pods are being stopped"),
    "Suspended": (State.STOPPED, ""),
    "Complete": (State.FINISHED, ""),
    "Failed": (State.FAILED, "no reason given"),
    "ValidationFailed": (State.FAILED, "KubeRay refuses it"),
}
"""status.jobDeploymentStatus of a RayJob (KubeRay's rayjob_types.go) -> its state, and what to say if it says nothing."""


def status_of(job: Object) -> Object:
    return job.get("status") or {}


def labels_of(o: Object) -> dict[str, str]:
    return o["metadata"].get("labels") or {}


def annotations_of(o: Object) -> dict[str, str]:
    return o["metadata"].get("annotations") or {}


def link_of(job: Object) -> str:
    return annotations_of(job).get(TRACKING_ANNOTATION, "")


def ended_itself(job: Object) -> bool:
    """Whether rayjob_driver has ended the job: its input is bad."""
    return bool(
        status_of(job).get("jobDeploymentStatus") == "Complete" and status_of(job).get("jobStatus") == "STOPPED"
    )


def why_failed(job: Object) -> str:
    status = status_of(job)
    if ended_itself(job):
        told = annotations_of(job).get(ERROR_ANNOTATION)
        return told or f"its driver ended it, as it does for bad input; {_where_log(job)} has its words"
    return ": ".join(text for text in (status.get("reason"), of_message(status.get("message") or "")) if text)


def why_waiting(pod: Object) -> str:
    """Why a pod does not start, in Kubernetes' words; '' where it does, or is about to."""
    status = pod.get("status") or {}
    unplaced = [c for c in status.get("conditions") or [] if c["type"] == "PodScheduled" and c["status"] == "False"]
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    waiting = [c["state"]["waiting"] for c in containers if (c.get("state") or {}).get("waiting")]
    for told in (*unplaced, *waiting):
        if told.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return cut(": ".join(text for text in (told["reason"], told.get("message")) if text))
    return ""


def _where_log(job: Object) -> str:
    """Where the output of a driver stays when the pods are gone."""
    containers = job["spec"].get("rayClusterSpec", {}).get("headGroupSpec", {}).get("template", {}).get("spec", {})
    mounts = [m for c in containers.get("containers", []) for m in c.get("volumeMounts", []) if m["name"] == "runs"]
    folder = mounts[0]["mountPath"] if mounts else FOLDER
    return f"{log_path(folder, job['metadata']['name'])} on the runs' volume"


def created(o: Object) -> str:
    return str(o["metadata"].get("creationTimestamp", ""))


def is_suspended(job: Object) -> bool:
    return bool(status_of(job).get("jobDeploymentStatus") == "Suspended")


def grace_s(job: Object) -> float:
    """What its pods have to end."""
    head = job["spec"].get("rayClusterSpec", {}).get("headGroupSpec", {})
    return float(head.get("template", {}).get("spec", {}).get("terminationGracePeriodSeconds", 30))


def is_of_cluster(job: Object, pod: Object) -> bool:
    return bool(status_of(job).get("rayClusterName") == labels_of(pod).get("ray.io/cluster"))


def start_of(pod: Object) -> tuple[str, int]:
    """What changes when a log begins anew: the pod, or how often its container was started."""
    containers = pod.get("status", {}).get("containerStatuses") or []
    return pod["metadata"]["uid"], next((c.get("restartCount", 0) for c in containers if c["name"] == "ray-head"), 0)


def workers_text(status: Object) -> str:
    """How many of the workers' pods are there."""
    cluster = status.get("rayClusterStatus") or {}
    ready, wanted = cluster.get("readyWorkerReplicas") or 0, cluster.get("desiredWorkerReplicas")
    return f"{ready} of {wanted} worker pods are ready" if wanted else "waits for pods"


def told(job: Job) -> str:
    return f"{job.state.value} ({job.message})" if job.message else job.state.value


def kept_log(found: Object, job: Job) -> Iterator[str]:
    """The lines that KubeRay keeps of a job whose pods are gone. Raises DistdlError where it keeps none."""
    if job.state is State.QUEUED:
        raise DistdlError(f"{job.id} has no log yet: {told(job)}")
    message = status_of(found).get("message") or ""
    if log := OF_RAY.search(message):
        yield from message[log.end() :].splitlines()
        return
    kept = (
        f"    {_where_log(found)}, its run folder and its MLflow run{f' ({job.tracking})' * bool(job.tracking)} keep it"
    )
    raise DistdlError(f"the pods of {job.id} are gone, and their log with them: {told(job)}\n{kept}")


def seconds(time_text: str | None) -> float | None:
    """An RFC 3339 time as seconds since the epoch."""
    return datetime.fromisoformat(time_text.replace("Z", "+00:00")).timestamp() if time_text else None
