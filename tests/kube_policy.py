"""What the tests ask of Kubernetes objects: the pods in them, and who may reach whom by their NetworkPolicies."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Object = dict[str, Any]
CLUSTERS = {"RayCluster": "", "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
"""Kind -> where the Ray cluster of its spec stands; '': it is one."""


def cluster_of(item: Object) -> Object:
    """The spec of the Ray cluster of an object that has one."""
    found: Object = item["spec"].get(CLUSTERS[item["kind"]], item["spec"])
    return found


class Pod(NamedTuple):
    """A pod template, in whatever object it lies."""

    where: str
    """Kind/name of the object, and the group of a Ray cluster."""
    namespace: str
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def rendered(folder: Path) -> list[Object]:
    """The objects of a kustomization."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    return list(yaml.safe_load_all(done.stdout))


def objects(folder: Path) -> list[Object]:
    """The objects in the files below a folder as they are written, without kustomizations and their patches."""
    patches = {
        path.parent / patch["path"]
        for path in folder.rglob("kustomization.yaml")
        for patch in yaml.safe_load(path.read_text(encoding="utf-8")).get("patches", [])
        if "path" in patch
    }
    files = [
        path for path in sorted(folder.rglob("*.yaml")) if path.name != "kustomization.yaml" and path not in patches
    ]
    return [found for path in files for found in yaml.safe_load_all(path.read_text(encoding="utf-8")) if found]


def pods(found: Iterable[Object]) -> Iterator[Pod]:
    """Every pod template of the objects, those in Ray's custom resources included."""
    for item in found:
        kind, name, spec = item["kind"], item["metadata"]["name"], item.get("spec", {})
        namespace = item["metadata"].get("namespace", "distdl")
        groups: list[tuple[str, Any, dict[str, str]]] = []
        if kind in ("Deployment", "StatefulSet", "Job", "DaemonSet"):
            groups = [("", spec["template"], {})]
        elif kind in CLUSTERS:
            cluster = cluster_of(item)
            ray = {"ray.io/is-ray-node": "yes", "ray.io/cluster": name}  # KubeRay's own labels
            groups = [(" head", cluster["headGroupSpec"]["template"], ray | {"ray.io/node-type": "head"})]
            for group in cluster.get("workerGroupSpecs", []):
                groups.append((f" {group['groupName']}", group["template"], ray | {"ray.io/node-type": "worker"}))
            if spec.get("submitterPodTemplate"):
                groups.append((" submitter", spec["submitterPodTemplate"], {"ray.io/originated-from-crd": "RayJob"}))
        for group, template, more in groups:
            labels = template.get("metadata", {}).get("labels", {}) | more
            yield Pod(f"{kind}/{name}{group}", namespace, labels, template["spec"])


class Peer(NamedTuple):
    """Someone on the network: a pod's labels and namespace, or an address outside when it has no namespace."""

    name: str
    namespace: str
    labels: dict[str, str]


class Network:
    """The NetworkPolicies of a set of objects, asked as a network plugin would."""

    def __init__(self, found: Iterable[Object], namespaces: dict[str, dict[str, str]]) -> None:
        self.policies = [item for item in found if item["kind"] == "NetworkPolicy"]
        self.namespaces = namespaces
        """Labels of every namespace."""

    def allows(self, source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
        """Both ends must agree; an end that no policy selects agrees to everything."""
        out = self._end(source, target, port, protocol, "Egress", "egress", "to")
        return out and self._end(target, source, port, protocol, "Ingress", "ingress", "from")

    def _end(self, at: Peer, other: Peer, port: int, protocol: str, kind: str, rules: str, peers: str) -> bool:
        policies = [
            item["spec"]
            for item in self.policies
            if item["metadata"].get("namespace", "distdl") == at.namespace
            and kind in item["spec"]["policyTypes"]
            and selects(item["spec"]["podSelector"], at.labels)
        ]
        if not policies:
            return True
        return any(
            self._ports(rule, port, protocol)
            and (not rule.get(peers) or any(self._peer(p, at, other) for p in rule[peers]))
            for spec in policies
            for rule in spec.get(rules, [])
        )

    @staticmethod
    def _ports(rule: dict[str, Any], port: int, protocol: str) -> bool:
        listed = rule.get("ports")
        return not listed or any(p["port"] == port and p.get("protocol", "TCP") == protocol for p in listed)

    def _peer(self, peer: dict[str, Any], at: Peer, other: Peer) -> bool:
        if "ipBlock" in peer:
            return not other.namespace and other.name == "internet"
        if not other.namespace:
            return False
        if "namespaceSelector" in peer:
            inside = selects(peer["namespaceSelector"], self.namespaces[other.namespace])
        else:
            inside = other.namespace == at.namespace
        return inside and selects(peer.get("podSelector", {}), other.labels)


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector matches."""
    tests = {
        "In": lambda key, values: labels.get(key) in values,
        "NotIn": lambda key, values: labels.get(key) not in values,
        "Exists": lambda key, _: key in labels,
        "DoesNotExist": lambda key, _: key not in labels,
    }
    return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items()) and all(
        tests[e["operator"]](e["key"], e.get("values", [])) for e in selector.get("matchExpressions", [])
    )
