"""The pods of a run's Ray cluster: what the head, the workers and a submitter have in common. Each is confined as the Pod
Security profile `restricted` asks, on a root file system that nobody can write."""

from __future__ import annotations

import math
from typing import Any

from distdl.config.schema import Config
from distdl.config.schema import Ray as RayConfig
from distdl.jobs.kubernetes.manifests import Object
from distdl.jobs.target import Package, start_variables

JOB_LABEL = "distdl.io/job"
FOLDER = "/distdl"
"""Where the claim of the runs is mounted unless `launch.folder` says otherwise."""
DATA_FOLDER = "/data"
CONFIG_FOLDER = "/etc/distdl"
OBJECT_STORE_MIB = 256
"""Ray's object store, which lies in /dev/shm. Data reaches workers without it; Ray would take 30% of the pod."""
USER_ID = 1000
"""The user of the image, and of Ray's own images."""

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
"""What the Pod Security profile `restricted` asks of a container, and a root file system that nobody can write."""


def runs_folder(config: Config) -> str:
    """Where the claim of the runs is mounted."""
    return config.launch.folder or FOLDER


def log_path(folder: str, id: str) -> str:
    """Where the output of a job's driver stays: on the claim of the runs, which is mounted at `folder`."""
    return f"{folder}/.distdl/jobs/{id}/log.txt"


def labels(package: Package, component: str) -> dict[str, str]:
    """Of the job and of every pod; `component` says which."""
    # app.kubernetes.io/name of a pod stays KubeRay's own: the selector of the head's Service has it.
    return {
        "app.kubernetes.io/instance": package.id,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/part-of": "distdl",
        JOB_LABEL: package.id,
        "distdl.io/family": package.config.family,
    }


def pod_spec(package: Package, container: Object, shared_memory_mib: int) -> Object:
    """The pod of one Ray node: what the head and the workers have in common."""
    kubernetes = package.config.launch.kubernetes
    claims = {"runs": (kubernetes.runs_claim, runs_folder(package.config), False)}
    if kubernetes.data_claim:
        claims["data"] = (kubernetes.data_claim, DATA_FOLDER, True)
    volumes: list[Object] = [
        *_scratch(),
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _mib(shared_memory_mib)}},
    ]
    container["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    for name, (claim, path, read_only) in claims.items():
        only = {"readOnly": True} if read_only else {}
        volumes.append({"name": name, "persistentVolumeClaim": {"claimName": claim, **only}})
        container["volumeMounts"].append({"name": name, "mountPath": path, **only})
    # Kueue has priorities of its own (a label), and Volcano takes the pods' from the job's label.
    own = kubernetes.scheduler in ("none", "yunikorn") and kubernetes.priority_class
    return {
        "serviceAccountName": kubernetes.service_account,
        **_confined(),
        # Between SIGTERM and SIGKILL: the run has grace_s for its checkpoint, the driver some more for its MLflow run.
        "terminationGracePeriodSeconds": math.ceil(package.config.runtime.grace_s) + 60,
        **({"priorityClassName": kubernetes.priority_class} if own else {}),
        "containers": [container],
        "volumes": volumes,
    }


def container_spec(package: Package, name: str, resources: Object) -> Object:
    kubernetes = package.config.launch.kubernetes
    return {
        "name": name,
        "image": kubernetes.image,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": RESTRICTED,
        "env": _environment(package),
        **({"envFrom": [{"secretRef": {"name": kubernetes.secret}}]} if kubernetes.secret else {}),
        "resources": resources,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "home", "mountPath": "/tmp/home"}],
    }


def submitter_template(package: Package) -> Object:
    """The pod that hands the driver to Ray in K8sJobMode, and follows its output."""
    container = container_spec(package, "ray-job-submitter", resource_amounts(0.5, 512))
    container.pop("envFrom", None)
    container["env"] = [variable for variable in container["env"] if variable["name"] == "HOME"]
    pod = {**_confined(), "restartPolicy": "Never", "containers": [container], "volumes": _scratch()}
    return {"metadata": {"labels": labels(package, "submitter")}, "spec": pod}


def _confined() -> Object:
    """No root, no token of the API, no variables for each Service of the namespace."""
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",  # or each start changes the owner of every file of the claim
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _scratch() -> list[Object]:
    """What can be written under a read-only root: Ray's session and logs in /tmp, caches in HOME."""
    return [
        {"name": "tmp", "emptyDir": {"sizeLimit": "20Gi"}},
        {"name": "home", "emptyDir": {"sizeLimit": "10Gi"}},
    ]


def _environment(package: Package) -> list[Object]:
    runtime, launch = package.config.runtime, package.config.launch
    assert isinstance(runtime, RayConfig)
    variables = {"HOME": "/tmp/home", "PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    if runtime.gpus_per_worker:
        variables |= {"NCCL_DEBUG": "WARN", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
    variables |= {**start_variables(launch), **launch.environment}
    # Kubernetes would put other variables in the place of $(NAME).
    return [{"name": name, "value": value.replace("$(", "$$(")} for name, value in variables.items()]


def resource_amounts(cpus: float, memory_mib: int, devices: dict[str, Any] | None = None) -> Object:
    """Requests equal to limits: a pod that may be evicted for memory it was promised takes the whole job with it."""
    amounts = {"cpu": _cpus(cpus), "memory": _mib(memory_mib), **{k: str(v) for k, v in (devices or {}).items()}}
    return {"requests": amounts, "limits": dict(amounts)}


def _cpus(cpus: float) -> str:
    millis = math.ceil(cpus * 1000)
    return f"{millis}m" if millis % 1000 else str(millis // 1000)


def _mib(mib: int) -> str:
    return f"{mib}Mi" if mib % 1024 else f"{mib // 1024}Gi"
