"""A run as Kubernetes objects: a ConfigMap that holds its config, and a RayJob with a Ray cluster of its own (KubeRay).

`render` is a pure function of the package, so that what `distdl k8s render` prints is what `submit` sends. The code is in
the image; secrets are named and never contained. One RayJob is one run: KubeRay's retries, suspension and Kueue all
refuse or ignore a job on a cluster that it shares. Each retry is a new cluster, which continues from the last checkpoint.
"""

from __future__ import annotations

import hashlib
import math
import re
import shlex
from dataclasses import dataclass

from distdl import __version__
from distdl.config.schema import Ray as RayConfig
from distdl.errors import InputError, Problem
from distdl.jobs.kubernetes.manifests import Object
from distdl.jobs.kubernetes.pods import (
    CONFIG_FOLDER,
    OBJECT_STORE_MIB,
    container_spec,
    labels,
    log_path,
    pod_spec,
    resource_amounts,
    runs_folder,
    submitter_template,
)
from distdl.jobs.kubernetes.rayjob_check import refuse
from distdl.jobs.target import Package

RAY_VERSION = "2.60.0"
"""Ray of the image (constraints.txt); KubeRay decides by it what it may ask of `ray start`."""
MANAGED_BY = "app.kubernetes.io/managed-by"
RUN, OWNER = "distdl.io/run", "distdl.io/owner"
"""Annotations: whose the job is. Its name is the run's only as far as Kubernetes takes it."""
KEEP_S = 60
"""Seconds that the pods of an ended job stay, GPUs included: for a follower of the logs to read the last lines."""
RAY_CPUS = 1.0
"""CPUs of a worker pod for Ray's own processes; Ray is not told of them, so that it places no worker there."""
BASE_MEMORY_GIB = 4.0
"""Memory of a worker beside its model state: Python, torch, Ray's share, batches on their way."""
CONFIG_LIMIT_BYTES = 900 * 2**10
"""A ConfigMap holds 1 MiB, its other fields included."""

# Ray keeps the driver's output in a file of the head pod. It is copied to the output of the pod's first process, so that
# `kubectl logs` and the cluster's log collector have it, too, without a right to run commands in pods or Ray's token, and
# to a file on the runs' volume ($0), which stays when the pods are gone. tee survives the SIGTERM that ends the driver,
# whose last words would be lost. The process id is for HEAD_PRE_STOP.
DRIVER = (
    'echo $$ > /tmp/driver.pid; mkdir -p "${0%/*}"; exec "$@" > >(trap "" TERM INT; exec tee -a /proc/1/fd/1 "$0") 2>&1'
)
# What ends a cluster (a stop, a deadline, a pre-emption) ends all pods at once. So the head has the driver end, which has
# the workers write a checkpoint, and every worker's pod waits for its workers: Ray would be gone under them otherwise.
HEAD_PRE_STOP = "pid=$(cat /tmp/driver.pid) && kill $pid && timeout {wait_s} tail --pid=$pid -f /dev/null || true"
WORKER_PRE_STOP = (
    "timeout {wait_s} bash -c "
    "'while grep -qsa \"[R]ayTrainWorker\" /proc/[0-9]*/cmdline; do sleep 1; done' || true"  # [R]: not grep itself
)


@dataclass(frozen=True)
class Shape:
    """How the workers of a run lie in pods."""

    pods: int
    workers: int
    """Workers of one pod."""
    cpus: float
    """CPUs of a pod that Ray gives to workers."""
    gpus: int
    """GPUs of a pod."""
    memory_mib: int
    """Memory of a pod."""
    shared_memory_mib: int
    """Its part that is /dev/shm."""


def render(package: Package) -> list[Object]:
    """The ConfigMap and the RayJob of a run. Raises InputError for what cannot be a RayJob."""
    refuse(package)
    config = _config_map(package)
    return [config, _ray_job(package, shape(package), config["metadata"]["name"])]


def shape(package: Package) -> Shape:
    """Pods and their resources. Raises InputError where the workers do not fill them."""
    runtime, launch = package.config.runtime, package.config.launch
    assert isinstance(runtime, RayConfig)
    kubernetes = launch.kubernetes
    workers = min(launch.workers_per_node, runtime.workers)
    cpus, gpus = workers * runtime.cpus_per_worker, workers * (runtime.gpus_per_worker or 0)
    problems = []
    if runtime.workers % workers:
        divisors = [n for n in range(1, workers) if runtime.workers % n == 0]
        what = f"{runtime.workers} workers do not fill pods of {workers}"
        problems.append(Problem(what, fix=f"launch.workers_per_node={divisors[-1]}"))
    if not gpus and cpus % 1:
        what = f"a pod of {workers} x {runtime.cpus_per_worker:g} CPUs: Ray counts whole CPUs, and would put more there"
        problems.append(Problem(what, fix=f"runtime.cpus_per_worker={math.ceil(runtime.cpus_per_worker)}"))
    state_gib = sum(package.plan.state_bytes_per_worker.values()) / 2**30
    memory_gib = kubernetes.memory_gib_per_worker or math.ceil(2 * state_gib + BASE_MEMORY_GIB)
    memory_mib = math.ceil(workers * memory_gib * 1024)
    asked_gib = kubernetes.shared_memory_gib
    shared_mib = memory_mib // 4 if asked_gib is None else math.ceil(asked_gib * 1024)
    if not OBJECT_STORE_MIB < shared_mib < memory_mib:
        what = f"/dev/shm of {shared_mib} MiB in a pod of {memory_mib} MiB, of which it is a part"
        allowed = f"more than the {OBJECT_STORE_MIB} MiB of Ray's object store, less than the pod"
        fix = "launch.kubernetes.shared_memory_gib or launch.kubernetes.memory_gib_per_worker"
        problems.append(Problem(what, allowed=allowed, fix=fix))
    if problems:
        raise InputError(*problems)
    return Shape(runtime.workers // workers, workers, cpus, gpus, memory_mib, shared_mib)


# -- objects -----------------------------------------------------------------------------------------------------------


def _metadata(package: Package, name: str) -> Object:
    config = package.config
    return {
        "name": name,
        "namespace": config.launch.kubernetes.namespace,
        "labels": {
            "app.kubernetes.io/name": "distdl",
            "app.kubernetes.io/version": re.sub(r"[^A-Za-z0-9._-]", "-", __version__),
            MANAGED_BY: "distdl",
            **labels(package, "training"),
        },
        "annotations": {RUN: config.name, OWNER: package.owner, "distdl.io/layout": package.plan.layout},
    }


def _config_map(package: Package) -> Object:
    """The user's YAML. Immutable, and named by its content: a changed config is another object, so a pod that starts late
    never reads another config than the first one did."""
    text = (package.folder / "config.yaml").read_text(encoding="utf-8")
    if len(text.encode()) > CONFIG_LIMIT_BYTES:
        what = f"config.yaml has {len(text.encode()) / 2**10:.0f} KiB"
        raise InputError(what, allowed=f"{CONFIG_LIMIT_BYTES / 2**10:.0f} KiB in a ConfigMap")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(package, f"{package.id}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"),
        "immutable": True,
        "data": {"config.yaml": text},
    }


def _ray_job(package: Package, shape: Shape, config_name: str) -> Object:
    config, launch = package.config, package.config.launch
    arguments = package.train_arguments(f"{CONFIG_FOLDER}/config.yaml", runs_folder(config))
    kept = log_path(runs_folder(config), package.id)
    former = "distdl.runtime.rayjob_driver"  # the name that images of the last release know, too
    driver = ["bash", "-c", DRIVER, kept, "python", "-m", former, *arguments]
    metadata = _metadata(package, package.id)
    metadata["labels"] |= _queue_labels(package)
    spec: Object = {
        "submissionMode": launch.kubernetes.submission,
        "entrypoint": shlex.join(["exec", *driver]),
        "backoffLimit": launch.max_retries,
        "preRunningDeadlineSeconds": math.ceil(launch.start_deadline_minutes * 60),
        "activeDeadlineSeconds": math.ceil(launch.deadline_hours * 3600),  # of an attempt; it is not tried again
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": KEEP_S,
        "rayClusterSpec": {
            "rayVersion": RAY_VERSION,
            "authOptions": {"mode": "token"},
            "headGroupSpec": _head(package, config_name),
            "workerGroupSpecs": [_workers(package, shape)],
        },
    }
    if launch.kubernetes.submission == "K8sJobMode":
        spec["submitterPodTemplate"] = submitter_template(
            package
        )  # KubeRay's own is refused under the restricted profile
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}


def _queue_labels(package: Package) -> dict[str, str]:
    """What tells the scheduler to admit all pods or none."""
    kubernetes = package.config.launch.kubernetes
    queue, priority = kubernetes.queue or "", kubernetes.priority_class
    if kubernetes.scheduler == "kueue":
        return {
            "kueue.x-k8s.io/queue-name": queue,
            **({"kueue.x-k8s.io/priority-class": priority} if priority else {}),
        }
    if kubernetes.scheduler == "volcano":
        return {"volcano.sh/queue-name": queue, **({"ray.io/priority-class-name": priority} if priority else {})}
    if kubernetes.scheduler == "yunikorn":
        return {
            "ray.io/gang-scheduling-enabled": "true",
            "yunikorn.apache.org/app-id": package.id,
            "yunikorn.apache.org/queue": queue,
        }
    return {}


def _head(package: Package, config_name: str) -> Object:
    kubernetes = package.config.launch.kubernetes
    memory_mib = math.ceil(kubernetes.head_memory_gib * 1024)
    container = container_spec(package, "ray-head", resource_amounts(kubernetes.head_cpus, memory_mib))
    container["ports"] = [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": 8265},
        {"name": "metrics", "containerPort": 8080},
        {"name": "dash-metrics", "containerPort": 44227},
    ]
    container["lifecycle"] = _pre_stop(package, HEAD_PRE_STOP)
    container["volumeMounts"].append({"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True})
    pod = pod_spec(package, container, shared_memory_mib=2 * OBJECT_STORE_MIB)
    pod["volumes"].append({"name": "config", "configMap": {"name": config_name}})
    return {
        "rayStartParams": {  # no CPUs: no worker is placed beside the driver, which must always answer KubeRay
            "num-cpus": "0",
            "dashboard-host": "0.0.0.0",
            "object-store-memory": str(OBJECT_STORE_MIB * 2**20),
        },
        "template": {"metadata": {"labels": labels(package, "head"), "annotations": {}}, "spec": pod},
    }


def _workers(package: Package, shape: Shape) -> Object:
    kubernetes = package.config.launch.kubernetes
    devices = {
        **({kubernetes.gpu_resource: shape.gpus} if shape.gpus else {}),
        **({kubernetes.rdma_resource: 1} if kubernetes.rdma_resource else {}),
    }
    resources = resource_amounts(shape.cpus + RAY_CPUS, shape.memory_mib, devices)
    container = container_spec(package, "ray-worker", resources)
    container["ports"] = [{"name": "metrics", "containerPort": 8080}]
    container["lifecycle"] = _pre_stop(package, WORKER_PRE_STOP)
    pod = pod_spec(package, container, shape.shared_memory_mib)
    # A Kueue flavor with a topology takes only pods that ask for one, and a flavor without takes none of those.
    near = {"kueue.x-k8s.io/podset-preferred-topology": kubernetes.topology} if kubernetes.topology else {}
    if kubernetes.node_selector:
        pod["nodeSelector"] = dict(kubernetes.node_selector)
    if shape.gpus:
        pod["tolerations"] = [{"key": kubernetes.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}]
    return {
        "groupName": "workers",
        "replicas": shape.pods,  # all of them from first to last: training does not resize itself
        "minReplicas": shape.pods,
        "maxReplicas": shape.pods,
        "rayStartParams": {
            "num-cpus": str(math.ceil(shape.cpus)),
            **({"num-gpus": str(shape.gpus)} if shape.gpus else {}),
            "object-store-memory": str(OBJECT_STORE_MIB * 2**20),
        },
        "template": {"metadata": {"labels": labels(package, "worker"), "annotations": near}, "spec": pod},
    }


def _pre_stop(package: Package, command: str) -> Object:
    waiting = command.format(wait_s=math.ceil(package.config.runtime.grace_s) + 30)
    return {"preStop": {"exec": {"command": ["bash", "-c", waiting]}}}
