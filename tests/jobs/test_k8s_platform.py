"""k8s/: every kustomization renders, passes a strict validator, and keeps the promises of a cluster secure by default.

The promises are asked of the files as they are written, and, where kubectl is, of everything that is rendered from them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from distdl.runtime.prometheus import GAUGES, LABELS
from tests.conftest import REPOSITORY
from tests.kube_policy import CLUSTERS, Network, Object, Peer, Pod, cluster_of, objects, pods, rendered

K8S = REPOSITORY / "k8s"
OVERLAYS = ("laptop", "gpu", "gpu-infiniband-kueue")
KUSTOMIZATIONS = sorted(
    path.parent.relative_to(K8S)
    for path in K8S.rglob("kustomization.yaml")
    if yaml.safe_load(path.read_text(encoding="utf-8"))["kind"] == "Kustomization"
)
VALIDATOR = REPOSITORY.parent / "shared" / "validate_k8s" / "validate_k8s.py"
NAMESPACES = ("distdl", "distdl-rdma")
DIGEST = "sha256:" + "5" * 64

kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")


def validate(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The strict validator on files and folders; skips where it cannot run."""
    if not VALIDATOR.is_file():
        pytest.skip("the validator is not beside this checkout")
    pytest.importorskip("kubernetes_validate")
    command = [sys.executable, VALIDATOR, "--strict", "--external", "Secret/*", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)


JOBS = {  # what `distdl k8s render` makes of a config, with these overrides
    "cpu": ["runtime.workers=2"],
    "gpus": ["runtime.workers=16", "runtime.gpus_per_worker=1", "launch.workers_per_node=8"],
    "kueue": ["runtime.workers=8", "launch.kubernetes.scheduler=kueue", "launch.kubernetes.queue=distdl"],
    "rdma": [
        *("runtime.workers=8", "runtime.gpus_per_worker=1", "launch.kubernetes.namespace=distdl-rdma"),
        "launch.kubernetes.rdma_resource=rdma/rdma_shared_device_a",
    ],
    "submitter": ["runtime.workers=2", "launch.kubernetes.submission=K8sJobMode"],
}


def render_job(*words: str) -> str:
    """What `distdl k8s render WORDS` prints, in this process."""
    from distdl.cli.main import main

    printed, earlier = io.StringIO(), Path.cwd()
    os.chdir(REPOSITORY)
    try:
        with contextlib.redirect_stdout(printed), mock.patch.dict(os.environ, DISTDL_OWNER="ada@example"):
            assert main(["k8s", "render", *words]) == 0, words
    finally:
        os.chdir(earlier)
    return printed.getvalue()


@pytest.fixture(scope="module", params=["files", "jobs", *OVERLAYS])
def found(request: pytest.FixtureRequest) -> list[Object]:
    """The objects as they are written; with jobs as they are sent; those of each overlay, examples beside them."""
    if request.param == "files":
        return objects(K8S)
    if request.param == "jobs":
        secret = "launch.kubernetes.secret=distdl-credentials"
        sent = [render_job("configs/families/gpt.yaml", secret, *words) for words in JOBS.values()]
        return objects(K8S) + [item for text in sent for item in yaml.safe_load_all(text) if item]
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    return rendered(K8S / "overlays" / request.param) + objects(K8S / "examples")


def every_pod(found: list[Object]) -> list[Pod]:
    listed = list(pods(found))
    assert {pod.where.split()[0] for pod in listed} >= {
        "Deployment/mlflow",
        "StatefulSet/postgres",
        "Job/mlflow-migrate",
    }
    assert [pod for pod in listed if "ray.io/node-type" in pod.labels]
    return listed


# -- rendering and schemas ---------------------------------------------------------------------------------------------


@kubectl
@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=str)
def test_every_kustomization_renders(folder: Path) -> None:
    assert all(item.get("kind") and item["metadata"]["name"] for item in rendered(K8S / folder))


@kubectl
@pytest.mark.slow
def test_everything_passes_the_validator() -> None:
    for version in ("1.34", "1.37"):
        done = validate("--k8s-version", version, *(K8S / "overlays" / name for name in OVERLAYS), K8S / "cluster")
        assert done.returncode == 0 and "0 errors, 0 warnings" in done.stderr, done.stdout + done.stderr
    outside = [f"--external={kind}/*" for kind in ("Namespace", "ServiceAccount", "PersistentVolumeClaim")]
    done = validate("--pss", "restricted", *outside, K8S / "examples")
    assert done.returncode == 0 and "0 errors, 0 warnings" in done.stderr, done.stdout + done.stderr


MUTANTS: dict[str, tuple[str, str, str, str]] = {  # what is wrong -> file, text, its replacement, what must be said
    "wrong indentation": ("base/tracking/mlflow.yaml", "  replicas: 1\n", "replicas: 1\n", "mlflow.yaml"),
    "unknown field": (
        "base/tracking/mlflow.yaml",
        "        readinessProbe:",
        "        readynessProbe:",
        "readynessProbe",
    ),
    "unknown field of a custom resource": (
        "cluster/kueue/queues.yaml",
        "nominalQuota: 0",
        "nominalQuotas: 0",
        "nominalQuota",
    ),
    "a wrong type": ("base/tracking/postgres.yaml", "replicas: 1", "replicas: one", "replicas"),
    "privileged container": (
        "base/tracking/postgres.yaml",
        "allowPrivilegeEscalation: false",
        "privileged: true",
        "privileged",
    ),
    "capabilities kept": (
        "base/tracking/migrate.yaml",
        "capabilities: {drop: [ALL]}",
        "capabilities: {}",
        "capabilities",
    ),
    "root": ("base/tracking/migrate.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot"),
    "a selector that selects nothing": (
        "base/tracking/network.yaml",
        "name: postgres}}\n  policy",
        "name: pg}}\n  policy",
        "selects no pod",
    ),
    "a claim that is not there": (
        "base/tracking/mlflow.yaml",
        "configMap: {name: mlflow}",
        "configMap: {name: flow}",
        "flow",
    ),
}


@kubectl
@pytest.mark.slow
@pytest.mark.parametrize("wrong", MUTANTS)
def test_what_is_wrong_is_found(wrong: str, tmp_path: Path) -> None:
    """By kustomize itself or by the validator: a check that passes everything would be worth nothing."""
    file, text, instead, said = MUTANTS[wrong]
    copy = mutated(tmp_path, file, text, instead)
    done = validate(copy / "overlays" / "gpu-infiniband-kueue")
    assert done.returncode == 1 and said in done.stdout, f"{done.stdout}{done.stderr}"


def mutated(tmp_path: Path, file: str, text: str, instead: str) -> Path:
    copy = tmp_path / "k8s"
    shutil.copytree(K8S, copy)
    before = (copy / file).read_text(encoding="utf-8")
    assert text in before, f"{file} no longer has {text!r}"
    (copy / file).write_text(before.replace(text, instead, 1), encoding="utf-8")
    return copy


BROKEN_PROMISES: dict[str, tuple[str, str, str, Callable[[list[Object]], None]]] = {}
"""What the validator lets pass and the tests below must not: filled beside each of them."""


def broken_by(file: str, text: str, instead: str) -> Callable[[Any], Any]:
    """Names a change of a file after which this test must fail."""

    def note(test: Callable[[list[Object]], None]) -> Callable[[list[Object]], None]:
        BROKEN_PROMISES[f"{test.__name__}: {instead.strip()[:40]}"] = (file, text, instead, test)
        return test

    return note


# -- secure by default -------------------------------------------------------------------------------------------------


@broken_by("examples/raycluster.yaml", "authOptions: {mode: token}", "authOptions: {mode: disabled}")
@broken_by("examples/rayservice.yaml", "authOptions: {mode: token}", "authOptions: {mode: disabled} ")
def test_ray_wants_a_token_that_only_its_pods_see(found: list[Object]) -> None:
    clusters = [cluster_of(item) for item in found if item["kind"] in CLUSTERS]
    assert clusters
    for cluster in clusters:
        assert cluster["authOptions"] == {"mode": "token"}
    for pod in every_pod(found):
        for container in pod.containers:
            written = {variable["name"] for variable in container.get("env", []) if "value" in variable}
            assert not written & {"RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"}, pod.where
        for volume in pod.spec.get("volumes", []):
            if "secret" in volume:  # the default, 0644, lets every process of the pod read it
                assert volume["secret"].get("defaultMode", 0o644) & 0o007 == 0, (pod.where, volume)


@broken_by("base/tracking/mlflow.yaml", "runAsNonRoot: true", "runAsNonRoot: false")
@broken_by("base/tracking/migrate.yaml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false")
@broken_by("components/object-store/seaweedfs.yaml", "capabilities: {drop: [ALL]}", "capabilities: {drop: [NET_RAW]}")
@broken_by(
    "base/tracking/postgres.yaml", "seccompProfile: {type: RuntimeDefault}", "seccompProfile: {type: Unconfined}"
)
def test_no_root_no_writable_root_no_capabilities(found: list[Object]) -> None:
    for pod in every_pod(found):
        around = pod.spec["securityContext"]
        assert around["runAsNonRoot"] is True and around["runAsUser"] > 0, pod.where
        assert around["seccompProfile"] == {"type": "RuntimeDefault"}, pod.where
        assert not pod.spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}, pod.where
        assert not [volume for volume in pod.spec.get("volumes", []) if "hostPath" in volume], pod.where
        for container in pod.containers:
            inside, where = container["securityContext"], f"{pod.where} {container['name']}"
            assert inside["readOnlyRootFilesystem"] is True, where
            assert inside["allowPrivilegeEscalation"] is False and not inside.get("privileged"), where
            assert inside["capabilities"]["drop"] == ["ALL"], where
            added = inside["capabilities"].get("add", [])
            assert not added or (added == ["IPC_LOCK"] and pod.namespace == "distdl-rdma"), where
            assert any(mount["mountPath"] == "/tmp" for mount in container["volumeMounts"]), where


@broken_by(
    "base/jobs/service-account.yaml", "automountServiceAccountToken: false", "automountServiceAccountToken: true"
)
@broken_by("base/tracking/postgres.yaml", "      automountServiceAccountToken: false\n", "")
def test_no_token_of_the_cluster_in_any_pod(found: list[Object]) -> None:
    for item in found:
        assert item["kind"] not in ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"), item["metadata"]
        if item["kind"] == "ServiceAccount":
            assert item["automountServiceAccountToken"] is False, item["metadata"]
    accounts = {item["metadata"]["name"] for item in found if item["kind"] == "ServiceAccount"}
    for pod in every_pod(found):
        assert pod.spec["automountServiceAccountToken"] is False, pod.where
        assert pod.spec.get("serviceAccountName", "default") in accounts, pod.where
        assert not [v for v in pod.spec.get("volumes", []) if "projected" in v], pod.where


@broken_by("base/tracking/mlflow.yaml", '          limits: {cpu: "2", memory: 4Gi}\n', "")
@broken_by("base/tracking/migrate.yaml", "requests: {cpu: 100m, memory: 1Gi}", "requests: {cpu: 100m, memory: 512Mi}")
def test_requests_and_limits(found: list[Object]) -> None:
    """Memory is asked for as it is limited: a node that runs out of it would end these pods first."""
    for pod in every_pod(found):
        for container in pod.containers:
            where, resources = f"{pod.where} {container['name']}", container["resources"]
            assert {"cpu", "memory"} <= resources["limits"].keys() & resources["requests"].keys(), where
            assert resources["limits"]["memory"] == resources["requests"]["memory"], where
        for volume in pod.spec.get("volumes", []):
            if "emptyDir" in volume:
                assert "sizeLimit" in volume["emptyDir"], (pod.where, volume)


@broken_by("base/tracking/mlflow.yaml", "[--app-name, basic-auth, --serve-artifacts]", "[--serve-artifacts]")
@broken_by("base/tracking/mlflow.yaml", 'ENABLE_JOB_EXECUTION, value: "false"', 'ENABLE_JOB_EXECUTION, value: "true"')
@broken_by(
    "base/tracking/mlflow.yaml", "valueFrom: {secretKeyRef: {name: mlflow, key: admin-password}}", "value: admin"
)
def test_mlflow_asks_who_it_is_and_runs_no_jobs(found: list[Object]) -> None:
    [main] = next(pod for pod in every_pod(found) if pod.where == "Deployment/mlflow").spec["containers"]
    assert main["command"] == ["mlflow", "server"] and main["args"] == ["--app-name", "basic-auth", "--serve-artifacts"]
    variables = {variable["name"]: variable for variable in main["env"]}
    assert variables["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"]["value"] == "false"
    assert variables["MLFLOW_SERVER_ALLOWED_HOSTS"]["value"].split(",").count("*") == 0
    for name in ("PGPASSWORD", "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"):
        assert "secretKeyRef" in variables[name]["valueFrom"], name
    accounts = (K8S / "base" / "tracking" / "basic_auth.ini").read_text(encoding="utf-8")
    assert "mlflow_auth" in accounts and "password" not in re.sub(r"(?m)^;.*$", "", accounts)
    job = next(pod for pod in every_pod(found) if pod.where == "Job/mlflow-migrate").spec["containers"][0]
    migrated = {variable["name"]: variable.get("value") for variable in job["env"]}
    assert migrated["MLFLOW_BACKEND_STORE_URI"] == variables["MLFLOW_BACKEND_STORE_URI"]["value"]
    assert f"database_uri = {migrated['MLFLOW_AUTH_STORE_URI']}\n" in accounts


@broken_by(
    "base/tracking/postgres.yaml", "valueFrom: {secretKeyRef: {name: mlflow, key: postgres-password}}", "value: hunter2"
)
def test_secrets_are_named_never_contained(found: list[Object]) -> None:
    secret = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
    assert not [item["metadata"] for item in found if item["kind"] == "Secret"]
    for pod in every_pod(found):
        for container in pod.containers:
            for variable in container.get("env", []):
                assert "value" not in variable or not secret.search(variable["name"]), (pod.where, variable["name"])
    for item in found:
        text = json.dumps(item)
        assert not re.search(r"://[^/\s\"]+:[^/\s\"@]+@|AKIA[0-9A-Z]{16}|-----BEGIN", text), item["metadata"]


def test_namespaces_enforce_the_pod_security_profile(found: list[Object]) -> None:
    levels = {
        item["metadata"]["name"]: item["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
        for item in found
        if item["kind"] == "Namespace"
    }
    assert levels.pop("distdl") == "restricted"
    assert levels in ({}, {"distdl-rdma": "privileged"}), "IPC_LOCK alone needs more, and only there"


# -- who may reach whom ------------------------------------------------------------------------------------------------

RAY = {"ray.io/is-ray-node": "yes"}
PARTS = {
    "head": RAY | {"ray.io/node-type": "head"},
    "worker": RAY | {"ray.io/node-type": "worker"},
    "submitter": {"ray.io/originated-from-crd": "RayJob"},
    "mlflow": {"app.kubernetes.io/name": "mlflow"},
    "migrate": {"app.kubernetes.io/name": "mlflow-migrate"},
    "postgres": {"app.kubernetes.io/name": "postgres"},
    "object-store": {"app.kubernetes.io/name": "object-store"},
    "stranger": {"app.kubernetes.io/name": "stranger"},
}
PORTS = (53, 443, 5000, 5432, 6379, 8080, 8265, 8333, 10001, 29500, 44217, 44227)
METRICS = {8080, 44217, 44227}
WHOLE = set(PORTS)
BASE = {  # source, target -> the ports that are open; all else is closed
    **{(a, b): WHOLE for a in ("head", "worker") for b in ("head", "worker")},
    ("submitter", "head"): {8265},
    ("operator", "head"): {8265},
    ("prometheus", "head"): METRICS,
    ("prometheus", "worker"): METRICS,
    ("head", "mlflow"): {5000},
    ("worker", "mlflow"): {5000},
    ("mlflow", "postgres"): {5432},
    ("migrate", "postgres"): {5432},
    **{(part, "dns"): {53} for part in PARTS},
}
INSIDE = {(part, "object-store"): {8333} for part in ("head", "worker", "mlflow")}
OUTSIDE = {(part, "internet"): {443} for part in ("head", "worker", "mlflow")}
SECOND = {  # the same between the pods of distdl-rdma, which has no MLflow of its own
    **{(f"rdma {a}", f"rdma {b}"): WHOLE for a in ("head", "worker") for b in ("head", "worker")},
    ("rdma submitter", "rdma head"): {8265},
    ("operator", "rdma head"): {8265},
    **{("prometheus", f"rdma {part}"): METRICS for part in ("head", "worker")},
    **{(f"rdma {part}", "mlflow"): {5000} for part in ("head", "worker")},
    **{(f"rdma {part}", "internet"): {443} for part in ("head", "worker")},
    **{(f"rdma {part}", "dns"): {53} for part in ("head", "worker", "submitter", "stranger")},
}
OPEN = {"laptop": BASE | INSIDE, "gpu": BASE | OUTSIDE, "gpu-infiniband-kueue": BASE | OUTSIDE | SECOND}


def peers(overlay: str) -> Iterator[Peer]:
    for part, labels in PARTS.items():
        yield Peer(part, "distdl", labels)
    if overlay == "gpu-infiniband-kueue":
        for part in ("head", "worker", "submitter", "stranger"):
            yield Peer(f"rdma {part}", "distdl-rdma", PARTS[part])
    yield Peer("operator", "kuberay-system", {"app.kubernetes.io/name": "kuberay-operator"})
    yield Peer("prometheus", "monitoring", {"app.kubernetes.io/name": "prometheus"})
    yield Peer("grafana", "monitoring", {"app.kubernetes.io/name": "grafana"})
    yield Peer("dns", "kube-system", {"k8s-app": "kube-dns"})
    yield Peer("foreign head", "default", PARTS["head"])
    yield Peer("internet", "", {})


@kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_network_is_open_exactly_where_it_must_be(overlay: str) -> None:
    """Every pair of parts and every port, against the table above."""
    found = rendered(K8S / "overlays" / overlay)
    assert open_ports(found, overlay) == OPEN[overlay]


def open_ports(found: list[Object], overlay: str) -> dict[tuple[str, str], set[int]]:
    part_of = {"app.kubernetes.io/part-of": "distdl"}
    labels = {name: {"kubernetes.io/metadata.name": name} for name in ("kuberay-system", "monitoring", "kube-system")}
    labels |= {"default": {}, "distdl": part_of, "distdl-rdma": part_of}
    network, everyone = Network(found, labels), list(peers(overlay))
    table = {}
    for source in everyone:
        for target in everyone:
            if source == target and source.name not in ("head", "worker", "rdma head", "rdma worker"):
                continue  # no second one of its kind; two heads are two jobs
            if not {source.namespace, target.namespace} & set(NAMESPACES):
                continue
            ports = {p for p in PORTS if network.allows(source, target, p, "UDP" if p == 53 else "TCP")}
            if ports:
                table[source.name, target.name] = ports
    return table


@kubectl
def test_without_the_default_denial_the_table_differs(tmp_path: Path) -> None:
    copy = mutated(tmp_path, "base/jobs/network.yaml", "policyTypes: [Ingress, Egress]", "policyTypes: [Egress]")
    assert open_ports(rendered(copy / "overlays" / "gpu"), "gpu") != OPEN["gpu"]


def test_the_metadata_service_and_private_networks_stay_closed() -> None:
    blocks = [
        peer["ipBlock"]
        for item in objects(K8S)
        if item["kind"] == "NetworkPolicy"
        for rule in item["spec"].get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert blocks and all({"169.254.0.0/16", "10.0.0.0/8"} <= set(block["except"]) for block in blocks)


# -- images ------------------------------------------------------------------------------------------------------------


@kubectl
@pytest.mark.parametrize("overlay", ("laptop", "gpu"))
def test_every_image_has_a_version_and_takes_a_digest(overlay: str, tmp_path: Path) -> None:
    tagged = {c["image"] for pod in pods(rendered(K8S / "overlays" / overlay)) for c in pod.containers}
    for image in tagged:
        assert re.fullmatch(r"[\w.-]+(/[\w.-]+)+:\d[\w.-]*", image) and not image.endswith(":latest"), image
    copy = tmp_path / "k8s"
    shutil.copytree(K8S, copy)
    file = copy / "overlays" / overlay / "kustomization.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    for image in values["images"]:
        image["digest"] = DIGEST
        del image["newTag"]
    file.write_text(yaml.safe_dump(values))
    pinned = {c["image"] for pod in pods(rendered(file.parent)) for c in pod.containers}
    assert len(pinned) == len(tagged) and all(image.endswith(f"@{DIGEST}") for image in pinned)


def test_the_dockerfile() -> None:
    """A plain user in every image, versions from the constraints, the base by parameter, nothing but the sources inside."""
    text = (K8S / "Dockerfile").read_text(encoding="utf-8")
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", text, re.MULTILINE | re.DOTALL))
    assert {"cpu", "cuda", "mlflow"} <= stages.keys()
    for name in ("cpu", "cuda", "mlflow"):
        assert "USER 1000:1000\n" in stages[name] and "pip install" not in stages[name], name
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BASE}", "base", "build"}
    assert re.search(r"^ARG BASE=\S+:[\d.]+-\S+$", text, re.MULTILINE)
    assert all("--constraint constraints.txt" in line for line in re.findall(r"pip install.*", text))
    names = dict(re.findall(r"^([\w.-]+)==(.+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE))
    server = re.search(r"pip install --constraint constraints.txt (mlflow .*)", text)
    assert server and set(server[1].split()) <= names.keys()
    ignored = (K8S / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[1] == "*" and not {"!runs", "!data", "!.git"} & set(ignored)
    copied = {word for line in re.findall(r"^COPY (?!--)(.*)$", text, re.MULTILINE) for word in line.split()[:-1]}
    assert all((REPOSITORY / word).exists() and f"!{word}" in ignored for word in copied)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not program:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([program, K8S / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_the_example_is_what_distdl_sends() -> None:
    """Written anew by the command in its head, with `> k8s/examples/rayjob.yaml` below that head."""
    head, body = (K8S / "examples" / "rayjob.yaml").read_text(encoding="utf-8").split("\n---\n", 1)
    words = head.replace("\\\n#", "").split("distdl k8s render", 1)[1].split()
    assert render_job(*words).split("---\n", 1)[1] == body


def test_the_service_is_what_ray_serve_and_distdl_take() -> None:
    """Its application is a text to Kubernetes: Ray's own schema reads it, and distdl its arguments."""
    from ray.serve.schema import ServeDeploySchema

    from distdl.serve import on_cluster
    from distdl.serve.replicas import NAME

    service = next(item for item in objects(K8S / "examples") if item["kind"] == "RayService")
    (application,) = ServeDeploySchema(**yaml.safe_load(service["spec"]["serveConfigV2"])).applications
    module, _, builder = application.import_path.partition(":")
    assert module == on_cluster.__name__ and callable(getattr(on_cluster, builder))
    options = on_cluster.Options.of(application.args)
    (deployment,) = application.deployments
    assert deployment.name == NAME and application.route_prefix == "/"
    head, worker = (pod for pod in pods([service]))
    mounts = {mount["mountPath"] for pod in (head, worker) for mount in pod.containers[0]["volumeMounts"]}
    assert any(Path(options.run).is_relative_to(path) for path in mounts - {"/tmp"})
    group = cluster_of(service)["workerGroupSpecs"][0]
    assert deployment.num_replicas == group["replicas"] * deployment.max_replicas_per_node, "no pod without a replica"
    ports = {port["name"]: port["containerPort"] for port in worker.containers[0]["ports"]}
    assert ports["serve"] == 8000 == worker.containers[0]["readinessProbe"]["httpGet"]["port"]


@kubectl
def test_the_service_is_asked_by_those_who_may_and_by_nobody_else() -> None:
    found = rendered(K8S / "overlays" / "laptop") + objects(K8S / "examples")
    labels = {"distdl": {}, "shop": {"distdl.io/asks": "true"}, "default": {}}
    network = Network(found, labels)
    served = {pod.where.rsplit(" ", 1)[1]: pod for pod in pods(found) if pod.where.startswith("RayService/")}
    replica, head = (Peer(name, "distdl", served[name].labels) for name in ("replicas", "head"))
    shop, other = Peer("shop", "shop", {}), Peer("other", "default", {})
    assert network.allows(shop, replica, 8000) and not network.allows(other, replica, 8000)
    assert not any(network.allows(shop, replica, port) for port in (6379, 8080, 8265, 10001))
    assert not network.allows(shop, head, 8000) and not network.allows(shop, head, 8265)
    assert network.allows(head, replica, 12345) and network.allows(replica, head, 6379)


def test_gpu_jobs_of_a_queue_with_a_topology_ask_for_it() -> None:
    """Kueue gives a flavor with a topology only to pods that name a level of it: others would wait for ever."""
    queues = objects(K8S / "cluster" / "kueue")
    flavors = [i for i in queues if i["kind"] == "ResourceFlavor" and i.get("spec", {}).get("nodeLabels")]
    levels = {level["nodeLabel"] for i in queues if i["kind"] == "Topology" for level in i["spec"]["levels"]}
    assert flavors and all(flavor["spec"].get("topologyName") for flavor in flavors)
    head = (K8S / "examples" / "rayjob.yaml").read_text(encoding="utf-8").split("\n---\n", 1)[0].replace("\\\n#", "")
    texts = [*(REPOSITORY / "docs" / "deploy.md").read_text(encoding="utf-8").splitlines(), head]
    sent = [text for text in texts if "launch.kubernetes.scheduler=kueue" in text and "gpus_per_worker" in text]
    assert len(sent) == 2
    for text in sent:
        assert re.search(r"launch\.kubernetes\.topology=(\S+)", text)[1] in levels, text  # type: ignore[index]
    job = render_job(*head.split("distdl k8s render", 1)[1].split())
    assert job.count("podset-preferred-topology: kubernetes.io/hostname") == 1, "the workers, not the head"


def test_versions_agree_with_the_constraints() -> None:
    versions = dict(re.findall(r"^([\w.-]+)==(.+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE))
    clusters = [item for item in objects(K8S / "examples") if item["kind"] in CLUSTERS]
    assert {item["kind"] for item in clusters} == set(CLUSTERS)
    assert {cluster_of(item)["rayVersion"] for item in clusters} == {versions["ray"]}


# -- the promises would notice -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BROKEN_PROMISES)
def test_a_broken_promise_is_noticed(name: str, tmp_path: Path) -> None:
    file, text, instead, test = BROKEN_PROMISES[name]
    with pytest.raises((AssertionError, KeyError)):
        test(objects(mutated(tmp_path, file, text, instead)))


# -- monitoring --------------------------------------------------------------------------------------------------------

MONITORING = K8S / "components" / "monitoring"
FOREIGN = {  # what others export, and who
    "kube_deployment_status_replicas_available": "kube-state-metrics",
    "kubelet_volume_stats_available_bytes": "the kubelet",
    "kubelet_volume_stats_capacity_bytes": "the kubelet",
    "kuberay_job_deployment_status": "KubeRay's operator",
    "ray_node_gpus_utilization": "Ray",
    "ray_node_mem_total": "Ray",
    "ray_node_mem_used": "Ray",
}
RULES = yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))["spec"]
DASHBOARD = json.loads((MONITORING / "distdl.json").read_text(encoding="utf-8"))
EXPRESSIONS = [rule["expr"] for group in RULES["groups"] for rule in group["rules"]] + [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]
]


def test_every_metric_that_is_asked_for_is_one_that_is_exported() -> None:
    asked = set(re.findall(r"\b((?:ray|kube|kuberay|kubelet|distdl)_\w+)\b(?!\s*[=~)]?\")", " ".join(EXPRESSIONS)))
    asked -= {"ray_io_cluster"}  # a label, of the PodMonitor
    assert asked <= {f"ray_{name}" for name in GAUGES} | FOREIGN.keys(), asked
    assert asked >= FOREIGN.keys(), "named in this list and asked for nowhere"
    unseen = {name for name in GAUGES if f"ray_{name}" not in asked}
    assert not unseen, "exported, and on no panel and in no rule"


def test_labels_are_those_of_the_gauges() -> None:
    grouped = {
        label for text in EXPRESSIONS for group in re.findall(r"by \(([^)]*)\)", text) for label in group.split(", ")
    }
    assert grouped <= {*LABELS, "namespace", "name", "ray_io_cluster"}
    told = re.findall(r"\$labels\.(\w+)", json.dumps(RULES))
    assert set(told) <= {*LABELS, "namespace", "name", "persistentvolumeclaim"}


def test_every_alert_says_what_it_is_and_how_bad() -> None:
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    assert all(r["labels"]["severity"] in ("critical", "warning") and r["annotations"]["summary"] for r in rules)


def test_the_dashboard_has_a_place_for_every_panel() -> None:
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in DASHBOARD["panels"]]
    assert len(set(places)) == len(places) and len({p["id"] for p in DASHBOARD["panels"]}) == len(places)


STUCK = {  # alert -> series in Prometheus' test notation, a value a minute, for which it fires at minute 90, not at 10
    "DistdlNoStep": {"ray_distdl_last_step_timestamp_seconds": "0x90", "ray_distdl_ended": "0x90"},
    "DistdlNotANumber": {"ray_distdl_loss_finite": "1x60 0x30"},
    "DistdlLossSpike": {"ray_distdl_loss": "1x70 9x20"},
    "DistdlRestartsOften": {"ray_distdl_restarts": "0x40 1x10 2x10 3x30"},
    "DistdlSlow": {"ray_distdl_samples_per_second": "100x60 10x30"},
}


def test_the_rules_fire_when_they_should(tmp_path: Path) -> None:
    """By Prometheus' own promtool, rules and dashboard expressions parsed, alerts played with made series."""
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    shown = [{"record": f"panel:{n}", "expr": e.replace("$run", ".*")} for n, e in enumerate(EXPRESSIONS)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": shown}]}))
    labels = 'namespace="distdl", run="a", family="gpt", layout="ddp"'
    rules = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
    cases = []
    for alert, series in STUCK.items():
        given = [{"series": f"{name}{{{labels}}}", "values": values} for name, values in series.items()]
        texts = {k: v.replace("{{ $labels.run }}", "a") for k, v in rules[alert]["annotations"].items()}
        fires = {"exp_labels": {**rules[alert]["labels"], "namespace": "distdl", "run": "a"}, "exp_annotations": texts}
        checks = [{"eval_time": "90m", "alertname": alert, "exp_alerts": [fires]}]
        checks += [{"eval_time": "10m", "alertname": alert, "exp_alerts": []}]
        cases.append({"interval": "1m", "input_series": given, "alert_rule_test": checks})
    ended = [
        {"series": f"{name}{{{labels}}}", "values": f"{n}x90"}
        for name, n in (("ray_distdl_last_step_timestamp_seconds", 0), ("ray_distdl_ended", 1))
    ]
    quiet = [{"eval_time": "90m", "alertname": "DistdlNoStep", "exp_alerts": []}]
    cases.append({"interval": "1m", "input_series": ended, "alert_rule_test": quiet})
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": cases}))
    for command in (["check", "rules", "rules.yaml", "panels.yaml"], ["test", "rules", "tests.yaml"]):
        done = subprocess.run([promtool, *command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
