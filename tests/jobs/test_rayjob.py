"""What a run looks like as a RayJob: every combination is right, confined and stable, and the patches say where they fail.

`DISTDL_GOLDEN=write pytest tests/jobs/test_rayjob.py -k golden` writes the golden files anew; read the difference.
"""

from __future__ import annotations

import copy
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from distdl.errors import InputError
from distdl.jobs.kubernetes import rayjob
from distdl.jobs.kubernetes.manifests import merged, patched, read_patches, to_yaml
from distdl.jobs.kubernetes.rayjob import DRIVER, render, shape
from distdl.jobs.target import Package
from tests.jobs.kube import CONFIG, IMAGE, documents, findings, needs_validator, package

GOLDEN = Path(__file__).parent / "golden"
ONE_GPU = ("runtime.gpus_per_worker=1", "runtime.cpus_per_worker=8")
KUEUE = ("launch.kubernetes.scheduler=kueue", "launch.kubernetes.queue=research")

COMBINATIONS: dict[str, tuple[str, ...]] = {
    f"{device}-{workers}{'-kueue' if queue else ''}": (f"runtime.workers={workers}", *gpus, *queue)
    for device, gpus in (("cpu", ()), ("gpu", ONE_GPU))
    for workers in (1, 8, 64)
    for queue in ((), KUEUE)
} | {
    "gpu-64-in-8-pods": ("runtime.workers=64", "launch.workers_per_node=8", *ONE_GPU, *KUEUE),
    "kueue-priority": (*KUEUE, "launch.kubernetes.priority_class=high"),
    "volcano": (
        *ONE_GPU,
        *("launch.kubernetes.scheduler=volcano", "launch.kubernetes.queue=research"),
        "launch.kubernetes.priority_class=high",
    ),
    "yunikorn": (
        *("launch.kubernetes.scheduler=yunikorn", "launch.kubernetes.queue=root.research"),
        "launch.kubernetes.priority_class=high",
    ),
    "rdma": (
        *("runtime.workers=16", "launch.workers_per_node=8", *ONE_GPU),
        "launch.kubernetes.rdma_resource=rdma/hca_shared_devices_a",
        "launch.environment={NCCL_IB_HCA: mlx5, NCCL_SOCKET_IFNAME: eth0}",
        "launch.kubernetes.node_selector={nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}",
    ),
    "data-and-secret": ("launch.kubernetes.data_claim=imagenet", "launch.kubernetes.secret=distdl-tracking"),
    "submitter": ("launch.kubernetes.submission=K8sJobMode", *KUEUE),
    "folder": ("launch.folder=/mnt/shared", "launch.kubernetes.priority_class=high"),
    "memory": (
        *("launch.kubernetes.memory_gib_per_worker=2.5", "launch.kubernetes.shared_memory_gib=0.75"),
        *("launch.max_retries=0", "launch.deadline_hours=0.5", "launch.start_deadline_minutes=1"),
    ),
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    folder = tmp_path_factory.mktemp("packages")
    return {name: package(folder / name, *overrides) for name, overrides in COMBINATIONS.items()}


@pytest.fixture(scope="module")
def rendered(packages: dict[str, Package]) -> dict[str, list[dict[str, Any]]]:
    return {name: render(p) for name, p in packages.items()}


def job_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    return next(o for o in objects if o["kind"] == "RayJob")


def cluster_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    return job_of(objects)["spec"]["rayClusterSpec"]


def worker_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    return cluster_of(objects)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]


def pods_of(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The spec of every pod that a RayJob describes."""
    cluster = job["spec"]["rayClusterSpec"]
    templates = [cluster["headGroupSpec"]["template"], *(g["template"] for g in cluster["workerGroupSpecs"])]
    if "submitterPodTemplate" in job["spec"]:
        templates.append(job["spec"]["submitterPodTemplate"])
    yield from (template["spec"] for template in templates)


# -- policy ------------------------------------------------------------------------------------------------------------


def policy(objects: list[dict[str, Any]]) -> Iterator[str]:
    """What is not secure by default: one line for each breach."""
    job = job_of(objects)
    if job["spec"]["rayClusterSpec"].get("authOptions") != {"mode": "token"}:
        yield "Ray takes requests without a token"
    if "Secret" in {o["kind"] for o in objects}:
        yield "a Secret is sent"
    for pod in pods_of(job):
        yield from pod_policy(pod)


def pod_policy(pod: dict[str, Any]) -> Iterator[str]:
    context = pod.get("securityContext", {})
    if pod.get("automountServiceAccountToken") is not False:
        yield "a token of the API is mounted"
    if not context.get("runAsNonRoot") or not context.get("runAsUser"):
        yield "it may run as root"
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "no seccomp profile"
    if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield "it shares a namespace with the node"
    allowed = {"emptyDir", "configMap", "persistentVolumeClaim"}
    if any(set(volume) - {"name"} - allowed for volume in pod["volumes"]):
        yield "a volume of the node or a secret is mounted"
    if any(not volume["emptyDir"].get("sizeLimit") for volume in pod["volumes"] if "emptyDir" in volume):
        yield "a scratch volume without a limit"
    writable = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"] if not mount.get("readOnly")}
    variables = {variable["name"]: variable.get("value") for variable in pod["containers"][0].get("env", ())}
    if "/tmp" not in writable or variables.get("HOME") not in writable:
        yield "nothing to write under a read-only root"
    for container in [*pod["containers"], *pod.get("initContainers", ())]:
        yield from container_policy(container)


def container_policy(container: dict[str, Any]) -> Iterator[str]:
    context, resources = container.get("securityContext", {}), container.get("resources", {})
    if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
        yield "it may gain privileges"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield "it keeps capabilities"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "its root file system can be written"
    for kind in ("requests", "limits"):
        if not {"cpu", "memory"} <= resources.get(kind, {}).keys():
            yield f"no {kind}"
    if resources.get("requests") != resources.get("limits"):
        yield "requests are not limits"
    if "@sha256:" not in container["image"]:
        yield "the image is not pinned"
    for variable in container.get("env", ()):
        if re.search("TOKEN|PASSWORD|SECRET|KEY", variable["name"]):
            yield f"a secret in {variable['name']}"
    if any(set(source) - {"prefix"} != {"secretRef"} for source in container.get("envFrom", ())):
        yield "variables from elsewhere"


@pytest.mark.slow
def test_every_combination_keeps_the_policy(rendered: dict[str, list[dict[str, Any]]]) -> None:
    assert len(rendered) >= 12
    assert {name: list(policy(objects)) for name, objects in rendered.items()} == {name: [] for name in rendered}


def _first(objects: list[dict[str, Any]], *, role: str = "worker") -> tuple[dict[str, Any], dict[str, Any]]:
    cluster = cluster_of(objects)
    group = cluster["headGroupSpec"] if role == "head" else cluster["workerGroupSpecs"][0]
    pod = group["template"]["spec"]
    return pod, pod["containers"][0]


def _set(where: str, key: str, value: Any, role: str = "worker") -> Callable[[list[dict[str, Any]]], None]:
    def change(objects: list[dict[str, Any]]) -> None:
        pod, container = _first(objects, role=role)
        at = pod if where == "pod" else container
        for part in key.split(".")[:-1]:
            at = at[part]
        if value is None:
            del at[key.split(".")[-1]]
        else:
            at[key.split(".")[-1]] = value

    return change


BREACHES = {
    "a token of the API is mounted": _set("pod", "automountServiceAccountToken", True),
    "it may run as root": _set("pod", "securityContext.runAsNonRoot", False, "head"),
    "no seccomp profile": _set("pod", "securityContext.seccompProfile", None),
    "it shares a namespace with the node": _set("pod", "hostNetwork", True),
    "a volume of the node or a secret is mounted": _set("pod", "volumes", [{"name": "x", "hostPath": {"path": "/"}}]),
    "a scratch volume without a limit": _set("pod", "volumes", [{"name": "tmp", "emptyDir": {}}]),
    "nothing to write under a read-only root": _set("container", "volumeMounts", [], "head"),
    "it may gain privileges": _set("container", "securityContext.privileged", True),
    "it keeps capabilities": _set("container", "securityContext.capabilities", {"drop": []}),
    "its root file system can be written": _set("container", "securityContext.readOnlyRootFilesystem", None),
    "no limits": _set("container", "resources.limits", None),
    "requests are not limits": _set("container", "resources.requests", {"cpu": "1", "memory": "1Gi"}),
    "the image is not pinned": _set("container", "image", "distdl:1.0"),
    "a secret in MLFLOW_TRACKING_PASSWORD": _set(
        "container", "env", [{"name": "HOME", "value": "/tmp/home"}, {"name": "MLFLOW_TRACKING_PASSWORD"}]
    ),
    "Ray takes requests without a token": lambda objects: cluster_of(objects).pop("authOptions"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_the_policy_sees_each_breach(breach: str, rendered: dict[str, list[dict[str, Any]]]) -> None:
    objects = copy.deepcopy(rendered["gpu-8"])
    BREACHES[breach](objects)
    assert breach in list(policy(objects))


# -- structure ---------------------------------------------------------------------------------------------------------


def test_nothing_stays_running_for_ever_and_the_head_may_die(rendered: dict[str, list[dict[str, Any]]]) -> None:
    for objects in rendered.values():
        spec = job_of(objects)["spec"]
        assert spec["shutdownAfterJobFinishes"] is True
        assert spec["activeDeadlineSeconds"] > 0 and spec["preRunningDeadlineSeconds"] > 0
        assert spec["backoffLimit"] >= 0 and spec["ttlSecondsAfterFinished"] >= 0
        assert not {"clusterSelector", "suspend", "deletionStrategy"} & spec.keys()
        cluster = spec["rayClusterSpec"]
        assert not {"enableInTreeAutoscaling", "gcsFaultToleranceOptions"} & cluster.keys()
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        for group in cluster["workerGroupSpecs"]:
            assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
        for pod in list(pods_of(job_of(objects)))[:2]:
            assert pod["terminationGracePeriodSeconds"] > 30
    spec = job_of(rendered["memory"])["spec"]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"], spec["preRunningDeadlineSeconds"]) == (0, 1800, 60)
    assert job_of(rendered["cpu-1"])["spec"]["backoffLimit"] == 3


@pytest.mark.parametrize("name", COMBINATIONS)
def test_ray_sees_exactly_the_workers_places(name: str, packages: dict[str, Package]) -> None:
    """All pods together hold all workers, and none has room for one more, which Ray would put there."""
    p = packages[name]
    runtime, group = p.config.runtime, cluster_of(render(p))["workerGroupSpecs"][0]
    params = {key: int(value) for key, value in group["rayStartParams"].items()}
    workers = p.config.runtime.workers // group["replicas"]
    assert group["replicas"] * workers == runtime.workers
    gpus = getattr(runtime, "gpus_per_worker", None) or 0
    assert params["num-cpus"] == workers * runtime.cpus_per_worker  # type: ignore[union-attr]
    assert params.get("num-gpus", 0) == workers * gpus
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == (str(workers * gpus) if gpus else None)
    assert int(limits["cpu"]) > params["num-cpus"]
    assert ("tolerations" in group["template"]["spec"]) == bool(gpus)


def test_memory_follows_the_plan_or_the_config(packages: dict[str, Package]) -> None:
    p = packages["gpu-64-in-8-pods"]
    state_gib = sum(p.plan.state_bytes_per_worker.values()) / 2**30
    assert shape(p).memory_mib == 8 * 1024 * -(-(2 * state_gib + 4) // 1)
    assert shape(p).shared_memory_mib == shape(p).memory_mib // 4
    given = shape(packages["memory"])
    assert (given.memory_mib, given.shared_memory_mib) == (2560, 768)
    volumes = cluster_of(render(packages["memory"]))["workerGroupSpecs"][0]["template"]["spec"]["volumes"]
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "768Mi"}} in volumes


def test_labels_of_each_scheduler(rendered: dict[str, list[dict[str, Any]]]) -> None:
    def labels(name: str) -> dict[str, str]:
        return job_of(rendered[name])["metadata"]["labels"]

    def priorities(name: str) -> set[str | None]:
        return {pod.get("priorityClassName") for pod in list(pods_of(job_of(rendered[name])))[:2]}

    own = {"kueue.x-k8s.io/queue-name": "research", "kueue.x-k8s.io/priority-class": "high"}
    assert own.items() <= labels("kueue-priority").items() and priorities("kueue-priority") == {None}
    own = {"volcano.sh/queue-name": "research", "ray.io/priority-class-name": "high"}
    assert own.items() <= labels("volcano").items() and priorities("volcano") == {None}
    own = {"yunikorn.apache.org/queue": "root.research", "ray.io/gang-scheduling-enabled": "true"}
    assert own.items() <= labels("yunikorn").items() and priorities("yunikorn") == {"high"}
    assert not any("queue" in key for key in labels("folder")) and priorities("folder") == {"high"}
    for name in rendered:
        assert labels(name)["app.kubernetes.io/managed-by"] == "distdl" and labels(name)["distdl.io/job"] == "demo"


def test_secrets_by_name_and_volumes_where_they_belong(rendered: dict[str, list[dict[str, Any]]]) -> None:
    for pod in pods_of(job_of(rendered["data-and-secret"])):
        (container,) = pod["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "distdl-tracking"}}]
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert mounts["/data"]["readOnly"] is True and "readOnly" not in mounts["/distdl"]
        claims = {v["name"]: v["persistentVolumeClaim"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
        assert claims == {"runs": {"claimName": "distdl-runs"}, "data": {"claimName": "imagenet", "readOnly": True}}
    entrypoint = shlex.split(job_of(rendered["folder"])["spec"]["entrypoint"])
    assert entrypoint[entrypoint.index("-C") + 1] == "/mnt/shared"
    assert "/mnt/shared" in {mount["mountPath"] for mount in worker_of(rendered["folder"])["volumeMounts"]}


def test_rdma_and_nccl_only_as_asked(rendered: dict[str, list[dict[str, Any]]]) -> None:
    def environment(name: str) -> dict[str, str]:
        return {variable["name"]: variable["value"] for variable in worker_of(rendered[name])["env"]}

    assert worker_of(rendered["rdma"])["resources"]["limits"]["rdma/hca_shared_devices_a"] == "1"
    assert environment("rdma").items() >= {"NCCL_IB_HCA": "mlx5", "NCCL_SOCKET_IFNAME": "eth0"}.items()
    assert {name for name in environment("gpu-8") if "NCCL" in name} == {
        "NCCL_DEBUG",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    }
    assert not [name for name in environment("cpu-8") if "NCCL" in name]
    assert not [key for key in worker_of(rendered["gpu-8"])["resources"]["limits"] if key.startswith("rdma")]


def test_the_config_travels_as_an_immutable_config_map_named_by_its_content(tmp_path: Path) -> None:
    first, second = package(tmp_path / "a"), package(tmp_path / "b", text=CONFIG.replace("600", "700"))
    maps = [render(p)[0] for p in (first, second)]
    assert [m["data"] for m in maps] == [{"config.yaml": CONFIG}, {"config.yaml": CONFIG.replace("600", "700")}]
    assert all(m["immutable"] is True for m in maps)
    assert maps[0]["metadata"]["name"] != maps[1]["metadata"]["name"]
    head = cluster_of(render(first))["headGroupSpec"]["template"]["spec"]
    assert {"name": "config", "configMap": {"name": maps[0]["metadata"]["name"]}} in head["volumes"]


def test_the_entrypoint_is_train_with_every_override(tmp_path: Path) -> None:
    p = package(tmp_path, "train.steps=3", "launch.environment={A: it's $HOME}")
    words = shlex.split(job_of(render(p))["spec"]["entrypoint"])
    assert words[:3] == ["exec", "bash", "-c"] and words[4] == "/distdl/.distdl/jobs/demo/log.txt"
    assert words[5:] == [
        "python",
        "-m",
        "distdl.runtime.rayjob_driver",
        *p.train_arguments("/etc/distdl/config.yaml", "/distdl"),
    ]
    assert "launch.environment={A: it's $HOME}" in words and "--take-over" in words


def test_kubernetes_puts_nothing_in_the_place_of_a_variables_text(tmp_path: Path) -> None:
    p = package(tmp_path, "launch.environment={A: 'x $(HOME) y', NCCL_DEBUG: INFO}", *ONE_GPU)
    assert {"name": "A", "value": "x $$(HOME) y"} in worker_of(render(p))["env"]
    assert [v["value"] for v in worker_of(render(p))["env"] if v["name"] == "NCCL_DEBUG"] == ["INFO"]


def test_the_version_of_ray_is_the_one_of_the_image() -> None:
    pins = (Path(__file__).parents[2] / "constraints.txt").read_text(encoding="utf-8")
    assert f"\nray=={rayjob.RAY_VERSION}\n" in pins


def test_the_drivers_output_goes_to_both_logs_and_its_last_words_survive_sigterm(tmp_path: Path) -> None:
    """The shell line of the entrypoint, run as Ray runs it, with a file in the place of the pod's own output."""
    pod_log, job_log = tmp_path / "pod.log", tmp_path / "job.log"
    pod_log.touch()
    line = DRIVER.replace("/proc/1/fd/1", str(pod_log)).replace("/tmp/driver.pid", str(tmp_path / "pid"))
    code = (
        "import signal, sys, time\n"
        "def end(*_):\n    time.sleep(0.2); print('last words', flush=True); sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, end)\nprint('begins', sys.argv[1], flush=True)\ntime.sleep(30)\n"
    )
    kept = tmp_path / "jobs" / "x" / "log.txt"
    words = ["exec", "bash", "-c", line, str(kept), sys.executable, "-c", code, "it's $HOME"]
    with job_log.open("w") as file:
        driver = subprocess.Popen(shlex.join(words), shell=True, stdout=file, start_new_session=True)
    end = time.monotonic() + 20
    while "begins" not in job_log.read_text() and time.monotonic() < end:
        time.sleep(0.05)
    assert (tmp_path / "pid").read_text().strip() == str(driver.pid)
    os.killpg(driver.pid, signal.SIGTERM)  # as Ray ends a job: the whole group
    assert driver.wait(20) == 7
    end = time.monotonic() + 5
    while "last words" not in job_log.read_text() and time.monotonic() < end:
        time.sleep(0.05)
    assert job_log.read_text() == pod_log.read_text() == kept.read_text() == "begins it's $HOME\nlast words\n"


def test_a_pod_whose_own_output_cannot_be_opened_trains_all_the_same(tmp_path: Path) -> None:
    line = DRIVER.replace("/proc/1/fd/1", str(tmp_path / "absent" / "log")).replace(
        "/tmp/driver.pid", str(tmp_path / "pid")
    )
    words = ["exec", "bash", "-c", line, "/dev/null/log", "sh", "-c", "echo trained; exit 3"]
    done = subprocess.run(shlex.join(words), shell=True, capture_output=True, text=True, timeout=20)
    assert (done.returncode, "trained\n" in done.stdout) == (3, True)


REFUSALS = {
    "do not fill pods of 8": ("runtime.workers=12", "launch.workers_per_node=8", "train.global_batch=96"),
    "Ray counts whole CPUs": ("runtime.cpus_per_worker=0.5",),
    "/dev/shm of": ("launch.kubernetes.shared_memory_gib=64",),
    "no queue is named": ("launch.kubernetes.scheduler=kueue",),
    "cannot be mounted at launch.folder=/tmp/x: /tmp is taken": ("launch.folder=/tmp/x",),
    "cannot be mounted at launch.folder=shared": ("launch.folder=shared",),
    "'A-B' is no name of a variable": ("launch.environment={A-B: x}",),
    "no scheduler has queues": ("launch.kubernetes.queue=research",),
    "topology is read by Kueue, and the scheduler is none": ("launch.kubernetes.topology=kubernetes.io/hostname",),
    "topology is read by Kueue, and the scheduler is volcano": (
        *("launch.kubernetes.scheduler=volcano", "launch.kubernetes.queue=q"),
        "launch.kubernetes.topology=kubernetes.io/hostname",
    ),
    "a head pod of 0.5 GiB": ("launch.kubernetes.head_memory_gib=0.5",),
    "image = 'has space:x'": ("launch.kubernetes.image='has space:x'",),
    "secret = 'My_Secret'": ("launch.kubernetes.secret=My_Secret",),
    "service_account = 'A b'": ("launch.kubernetes.service_account='A b'",),
    "runs_claim = 'X Y'": ("launch.kubernetes.runs_claim='X Y'",),
    "'a b': 'c' is no label": ("launch.kubernetes.node_selector={a b: c}",),
    "gpu_resource = 'nvidia.com/'": ("launch.kubernetes.gpu_resource=nvidia.com/",),
    "runs = /elsewhere/runs is not below launch.folder=/distdl": ("runs=/elsewhere/runs",),
}


@pytest.mark.parametrize("words", REFUSALS)
def test_what_cannot_be_a_rayjob_is_refused_in_words(words: str, tmp_path: Path) -> None:
    p = package(tmp_path, *REFUSALS[words])
    with pytest.raises(InputError) as caught:
        render(p)
    assert words in str(caught.value)


def test_fresh_and_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    p = package(tmp_path, "launch.files=[notes.txt]")
    with pytest.raises(InputError) as caught:
        render(Package(p.id, p.config, p.plan, p.folder, p.overrides, fresh=True))
    assert "--fresh would begin once more" in str(caught.value) and "the code comes with the image" in str(caught.value)
    with pytest.raises(InputError, match="cannot be the name"):
        render(Package("x" * 48, p.config, p.plan, p.folder))


# -- text and golden files ---------------------------------------------------------------------------------------------


def test_the_text_is_stable_and_says_the_same_to_every_reader(rendered: dict[str, list[dict[str, Any]]]) -> None:
    for objects in rendered.values():
        text = to_yaml(objects)
        assert documents(text) == objects and to_yaml(copy.deepcopy(objects)) == text
    odd = [
        "y",
        "n",
        "on",
        "no",
        "1e3",
        "0x10",
        "1_000",
        "012",
        "3",
        ".5",
        "2026-01-01",
        "null",
        "~",
        "",
        "a: b",
        "#",
        "é",
    ]
    text = to_yaml([{"values": odd}])
    assert documents(text) == [{"values": odd}]
    for word in ("y", "n", "1e3", "0x10", "012", "1_000"):  # Go's reader of YAML takes them for something else
        assert f'"{word}"' in text


@pytest.mark.parametrize("name", ["cpu-1", "gpu-8-kueue", "rdma"])
def test_golden(name: str, packages: dict[str, Package], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rayjob, "__version__", "0.0.0")
    file, text = GOLDEN / f"{name}.yaml", to_yaml(render(packages[name]))
    if os.environ.get("DISTDL_GOLDEN") == "write":
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), "see the top of this file for how it is written anew"


# -- patches -----------------------------------------------------------------------------------------------------------


def test_merge_patch_as_in_rfc_7386() -> None:
    target = {"a": {"b": 1, "c": [1, 2]}, "d": "e"}
    assert merged(target, {"a": {"b": None, "c": [3], "x": {"y": None}}}) == {"a": {"c": [3], "x": {}}, "d": "e"}
    assert merged(target, [1]) == [1] and merged("x", {"a": None}) == {}
    assert target == {"a": {"b": 1, "c": [1, 2]}, "d": "e"}


OPERATIONS = [
    ({"op": "add", "path": "/a/x~1y~0", "value": 1}, {"a": {"b": [1, 2], "x/y~": 1}}),
    ({"op": "add", "path": "/a/b/0", "value": 9}, {"a": {"b": [9, 1, 2]}}),
    ({"op": "add", "path": "/a/b/-", "value": 9}, {"a": {"b": [1, 2, 9]}}),
    ({"op": "replace", "path": "/a/b/1", "value": 9}, {"a": {"b": [1, 9]}}),
    ({"op": "remove", "path": "/a/b/0"}, {"a": {"b": [2]}}),
    ({"op": "move", "from": "/a/b", "path": "/c"}, {"a": {}, "c": [1, 2]}),
    ({"op": "copy", "from": "/a/b", "path": "/c"}, {"a": {"b": [1, 2]}, "c": [1, 2]}),
    ({"op": "test", "path": "/a/b/0", "value": 1}, {"a": {"b": [1, 2]}}),
]


@pytest.mark.parametrize(
    ("operation", "wanted"), OPERATIONS, ids=[str(o["op"]) + str(o["path"]) for o, _ in OPERATIONS]
)
def test_json_patch_as_in_rfc_6902(operation: dict[str, Any], wanted: dict[str, Any]) -> None:
    base = {"kind": "RayJob", "metadata": {"name": "x"}}
    before = [{**base, "a": {"b": [1, 2]}}]
    assert patched(before, [[operation]]) == [{**base, **wanted}]
    assert before == [{**base, "a": {"b": [1, 2]}}]


def test_patches_are_put_on_the_object_that_they_name(rendered: dict[str, list[dict[str, Any]]]) -> None:
    annotation = "kueue.x-k8s.io~1podset-preferred-topology"
    patches = [
        {"kind": "RayJob", "spec": {"backoffLimit": 7, "preRunningDeadlineSeconds": None}},
        [
            {
                "op": "add",
                "path": f"/spec/rayClusterSpec/workerGroupSpecs/0/template/metadata/annotations/{annotation}",
                "value": "kubernetes.io/hostname",
            }
        ],
        {"target": {"kind": "ConfigMap"}, "patch": [{"op": "add", "path": "/metadata/labels/team", "value": "x"}]},
    ]
    config, job = patched(rendered["gpu-8-kueue"], patches)
    assert job["spec"]["backoffLimit"] == 7 and "preRunningDeadlineSeconds" not in job["spec"]
    annotations = cluster_of([job])["workerGroupSpecs"][0]["template"]["metadata"]["annotations"]
    assert annotations == {"kueue.x-k8s.io/podset-preferred-topology": "kubernetes.io/hostname"}
    assert config["metadata"]["labels"]["team"] == "x"


BAD_PATCHES: dict[str, Any] = {
    "the path /spec/rayClusterSpecs/rayVersion does not exist: /spec has no 'rayClusterSpecs'": [
        {"op": "replace", "path": "/spec/rayClusterSpecs/rayVersion", "value": "x"}
    ],
    "did you mean 'rayClusterSpec'?": [{"op": "remove", "path": "/spec/rayClusterSpecs"}],
    "'1' is no index of a list of 1": [{"op": "remove", "path": "/spec/rayClusterSpec/workerGroupSpecs/1"}],
    "/spec/backoffLimit is 3, not a mapping or a list": [{"op": "add", "path": "/spec/backoffLimit/x", "value": 1}],
    "/spec/backoffLimit is 3 and not 4": [{"op": "test", "path": "/spec/backoffLimit", "value": 4}],
    "does not begin with /": [{"op": "remove", "path": "spec"}],
    "is no operation of a JSON patch": [{"op": "set", "path": "/spec", "value": 1}],
    "has no 'value'": [{"op": "add", "path": "/spec/x"}],
    "a patch of kind Deployment fits nothing": {"kind": "Deployment", "spec": {}},
    "a patch of kind RayJob, name other fits nothing": {"kind": "RayJob", "metadata": {"name": "other"}},
    "cannot make another object": [{"op": "replace", "path": "/metadata/name", "value": "x"}],
    "this is no patch": {"spec": {"backoffLimit": 1}},
}


@pytest.mark.parametrize("words", BAD_PATCHES)
def test_a_patch_that_fits_nothing_says_where(words: str, rendered: dict[str, list[dict[str, Any]]]) -> None:
    with pytest.raises(InputError) as caught:
        patched(rendered["cpu-8"], [BAD_PATCHES[words]], "site.yaml")
    assert words in str(caught.value) and "site.yaml, patch 1" in str(caught.value)


def test_a_patch_file_that_cannot_be_read(tmp_path: Path) -> None:
    for text, words in (("", "is empty"), ("a: [", "cannot be read")):
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(InputError, match=words):
            read_patches(tmp_path / "p.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        read_patches(tmp_path / "absent.yaml")


# -- the validator -----------------------------------------------------------------------------------------------------


@needs_validator
@pytest.mark.slow
@pytest.mark.parametrize("kuberay", ["1.6.2", "1.7.0"])
def test_every_combination_passes_the_validator_without_a_warning(
    kuberay: str, rendered: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Schemas, the rules of KubeRay and Kueue, and the Pod Security profile `restricted`."""
    for name, objects in rendered.items():
        (tmp_path / f"{name}.yaml").write_text(to_yaml(objects), encoding="utf-8")
    assert findings(tmp_path, "--kuberay", kuberay) == {f"{name}.yaml": [] for name in rendered}


def _indented(text: str) -> str:
    """`limits` one level too far out: still YAML, but another field."""
    lines = text.splitlines()
    first = max(i for i, line in enumerate(lines) if line.strip() == "limits:")
    depth = len(lines[first]) - len(lines[first].lstrip())
    for i in range(first, len(lines)):
        if i > first and len(lines[i]) - len(lines[i].lstrip()) <= depth:
            break
        lines[i] = lines[i][2:]
    return "\n".join(lines)


MUTANTS: dict[str, tuple[str, Callable[[str], str]]] = {
    "indentation": ("unknown field 'limits'", _indented),
    "unknown-field": ("unknown field", lambda text: text.replace("backoffLimit:", "backOffLimit:")),
    "wrong-type": ("integer", lambda text: text.replace("backoffLimit: 3", "backoffLimit: three")),
    "missing-limit": ("memory limit", lambda text: re.sub(r"( +)limits:\n(\1  .*\n)+", "", text)),
    "privileged": (
        "privileged",
        lambda text: re.sub(r"( +)allowPrivilegeEscalation: false", r"\1privileged: true", text, count=1),
    ),
    "mode": ("is not one of", lambda text: text.replace("HTTPMode", "Http")),
}


@needs_validator
@pytest.mark.slow
def test_the_validator_refuses_each_mutant(rendered: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    good = to_yaml(rendered["gpu-8-kueue"])
    for name, (_, mutate) in MUTANTS.items():
        assert mutate(good) != good, name
        (tmp_path / f"{name}.yaml").write_text(mutate(good), encoding="utf-8")
    told = findings(tmp_path)
    for name, (words, _) in MUTANTS.items():
        assert any(words in line for line in told[f"{name}.yaml"]), (name, told[f"{name}.yaml"])


def test_the_image_is_pinned_by_parameter(rendered: dict[str, list[dict[str, Any]]]) -> None:
    for objects in rendered.values():
        assert {c["image"] for pod in pods_of(job_of(objects)) for c in pod["containers"]} == {IMAGE}


def test_the_patch_that_the_docstring_shows(rendered: dict[str, list[dict[str, Any]]]) -> None:
    from distdl.jobs.kubernetes import manifests

    lines = [line[4:] for line in (manifests.__doc__ or "").splitlines() if line.startswith("    ")]
    first = yaml.safe_load("\n".join(lines[:2]))
    assert first == {"kind": "RayJob", "spec": {"backoffLimit": 5}}
    assert job_of(patched(rendered["cpu-1"], [first]))["spec"]["backoffLimit"] == 5
