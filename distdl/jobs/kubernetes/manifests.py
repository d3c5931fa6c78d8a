"""Kubernetes objects as text, and patches of them: the part of `distdl k8s` that knows nothing of Ray.

A patch file holds YAML documents of three kinds:

    kind: RayJob                     # JSON merge patch (RFC 7386) of the object of this kind [and metadata.name]:
    spec: {backoffLimit: 5}          # mappings merge, null removes, anything else (lists too) is replaced

    - {op: add, path: /spec/…, value: …}          # JSON patch (RFC 6902) of the RayJob

    target: {kind: ConfigMap}        # JSON patch of another object
    patch: [{op: …, path: …}]
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from distdl.errors import InputError, did_you_mean

Object = dict[str, Any]
OPERATIONS = {"add": "value", "replace": "value", "test": "value", "remove": "", "move": "from", "copy": "from"}
"""Operation of RFC 6902 -> the member it needs beside `path`."""


# -- text --------------------------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Text in blocks, lists indented, and every string quoted that some YAML reader takes for something else."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Go's reader takes y, n and 1e3 for a truth value and a number; PyYAML, which knows no such, leaves them bare.
    odd = re.match(r"[-+.]?[0-9]", text) or text in ("y", "Y", "n", "N")
    style = "|" if "\n" in text else '"' if odd else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def to_yaml(objects: Iterable[Object]) -> str:
    """The objects as YAML documents, in their own order. The same objects give the same text."""
    return "".join(
        "---\n" + yaml.dump(o, Dumper=_Dumper, sort_keys=False, width=2**20, allow_unicode=True) for o in objects
    )


# -- patches -----------------------------------------------------------------------------------------------------------


def read_patches(path: Path) -> list[Any]:
    """The documents of a patch file. Raises InputError for a file that holds none."""
    try:
        documents = [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"the patch cannot be read: {error}", where=str(path)) from None
    if not documents:
        raise InputError("the patch is empty", where=str(path), fix="`distdl k8s --help` says what it may hold")
    return documents


def patched(objects: Sequence[Object], patches: Sequence[Any], where: str = "") -> list[Object]:
    """The objects with the patches put on them, one after another. Raises InputError for a patch that fits nothing.

    `where`: the file that the patches come from.
    """
    result = [copy.deepcopy(o) for o in objects]
    for number, patch in enumerate(patches, 1):
        place = f"{where}, patch {number}" if where else f"patch {number}"
        target, operations = _target(patch, place)
        at = _find(result, target, place)
        before = result[at]
        if operations is None:
            after = merged(before, patch)
        else:
            after = before
            for operation in operations:
                after = _operate(after, operation, place)
        if any(_identity(before)[key] != _identity(after)[key] for key in _identity(before)):
            fix = "leave apiVersion, kind, metadata.name and metadata.namespace as they are"
            raise InputError("a patch cannot make another object of one", where=place, fix=fix)
        result[at] = after
    return result


def merged(target: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7386) put on a value."""
    if not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def _identity(o: Any) -> Object:
    o = o if isinstance(o, Mapping) else {}
    meta = o.get("metadata")
    meta = meta if isinstance(meta, Mapping) else {}
    return {
        "apiVersion": o.get("apiVersion"),
        "kind": o.get("kind"),
        "name": meta.get("name"),
        "namespace": meta.get("namespace"),
    }


def _target(patch: Any, place: str) -> tuple[Object, list[Any] | None]:
    """What a patch is for, and its operations; None: a merge patch."""
    if isinstance(patch, list):
        return {"kind": "RayJob"}, patch
    if isinstance(patch, dict) and set(patch) == {"target", "patch"}:
        if isinstance(patch["target"], dict) and isinstance(patch["patch"], list):
            return patch["target"], patch["patch"]
    elif isinstance(patch, dict) and patch.get("kind"):
        return {key: value for key, value in _identity(patch).items() if value is not None}, None
    allowed = "an object with `kind` (merge patch), a list of operations, or {target: {kind: …}, patch: [operations]}"
    raise InputError("this is no patch", where=place, allowed=allowed)


def _find(objects: Sequence[Object], target: Object, place: str) -> int:
    """The index of the one object that a patch is for."""
    fits = [i for i, o in enumerate(objects) if all(_identity(o).get(key) == value for key, value in target.items())]
    if len(fits) != 1:
        wanted = ", ".join(f"{key} {value}" for key, value in target.items())
        have = ", ".join(f"{o['kind']} {o['metadata']['name']}" for o in objects)
        found = "fits nothing" if not fits else f"fits {len(fits)} objects"
        raise InputError(f"a patch of {wanted} {found}", where=place, allowed=have)
    return fits[0]


def _operate(root: Any, operation: Any, place: str) -> Any:
    """One operation of a JSON patch; gives the new value."""
    name = operation.get("op") if isinstance(operation, dict) else None
    if name not in OPERATIONS or not isinstance(operation.get("path"), str):
        fix = did_you_mean(str(name), OPERATIONS) if name not in OPERATIONS else "give the path"
        raise InputError(f"{operation!r} is no operation of a JSON patch", where=place, fix=fix)
    needs, path = OPERATIONS[name], operation["path"]
    if needs and needs not in operation:
        raise InputError(f"{name} {path} has no {needs!r}", where=place)
    if name == "test":
        if _read(root, path, place) != operation["value"]:
            what = f"{path} is {_read(root, path, place)!r} and not {operation['value']!r}"
            raise InputError(what, where=f"{place}, test")
        return root
    value = copy.deepcopy(_read(root, operation["from"], place) if needs == "from" else operation.get("value"))
    if name == "move":
        root = _change(root, operation["from"], "remove", None, place)
    return _change(root, path, "add" if needs == "from" else name, value, place)


def _tokens(path: str, place: str) -> list[str]:
    if path and not path.startswith("/"):
        raise InputError(f"the path {path!r} does not begin with /", where=place, fix=f"/{path}")
    return [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]


def _read(root: Any, path: str, place: str) -> Any:
    at = root
    for depth, token in enumerate(_tokens(path, place)):
        at = at[_key(at, token, path, depth, place)]
    return at


def _change(root: Any, path: str, name: str, value: Any, place: str) -> Any:
    """A copy of `root` with one value added, replaced or removed."""
    tokens = _tokens(path, place)
    if not tokens:
        return value
    root = copy.deepcopy(root)
    parent = root
    for depth, token in enumerate(tokens[:-1]):
        parent = parent[_key(parent, token, path, depth, place)]
    last = tokens[-1]
    if name != "add":
        key = _key(parent, last, path, len(tokens) - 1, place)
        if name == "remove":
            del parent[key]
        else:
            parent[key] = value
    elif isinstance(parent, list):
        at = len(parent) if last == "-" else _index(parent, last, len(parent), path, place)
        parent.insert(at, value)
    elif isinstance(parent, dict):
        parent[last] = value
    else:
        _key(parent, last, path, len(tokens) - 1, place)
    return root


def _key(at: Any, token: str, path: str, depth: int, place: str) -> Any:
    """The key or index of `token` in a value. Raises InputError where it has none."""
    above = "/" + "/".join(path.split("/")[1 : depth + 1])
    if isinstance(at, list):
        return _index(at, token, len(at) - 1, path, place)
    if isinstance(at, dict) and token in at:
        return token
    fix = did_you_mean(token, at) if isinstance(at, dict) and at else ""
    what = f"the path {path} does not exist: " + (
        f"{above} has no {token!r}" if isinstance(at, dict) else f"{above} is {at!r}, not a mapping or a list"
    )
    raise InputError(what, where=place, fix=fix)


def _index(at: list[Any], token: str, last: int, path: str, place: str) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]*", token) or int(token) > last:
        what = f"the path {path} does not exist: {token!r} is no index of a list of {len(at)}"
        raise InputError(what, where=place, fix="indices begin with 0; `-` adds behind the last")
    return int(token)
