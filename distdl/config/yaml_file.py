"""Reads a YAML file into plain values with the line of every key, and puts `key=value` arguments on top."""

from __future__ import annotations

import contextlib
import glob
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from distdl.config.search import KINDS
from distdl.config.yaml_nodes import BoundedLoader
from distdl.errors import InputError, Problem, nearest

KeyPath = tuple[str, ...]


def flatten(values: Mapping[str, Any], above: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every leaf of nested mappings as (key path, value), in order."""
    for key, value in values.items():
        path = (*above, str(key))
        if isinstance(value, Mapping) and value:
            yield from flatten(value, path)
        else:
            yield path, value


class _Loader(BoundedLoader):
    """YAML 1.2's plain scalars: `1e-3` is a number, `no` and `on` are words, dates stay text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", "~nN"),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf)$|^\.nan$", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^$"), [""])
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(str(node.value)))  # 010 is ten
MERGE = "tag:yaml.org,2002:merge"
_Loader.add_implicit_resolver(MERGE, re.compile("^<<$"), ["<"])
for _tag in ("binary", "timestamp", "set", "omap", "pairs"):  # a config holds what JSON can hold
    del _Loader.yaml_constructors[f"tag:yaml.org,2002:{_tag}"]


def read_yaml(path: str) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """The values of a YAML file and the `file:line` of every key. Raises InputError."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = _meant(file)
        fix = f"did you mean {near}?" if near else "give a YAML file's path, such as configs/families/mlp.yaml"
        raise InputError(f"there is no config file {path}", fix=fix) from None
    except IsADirectoryError:
        inside = file / "config.yaml"
        fix = f"give the file in it: {inside}" if inside.is_file() else "give the path of a YAML file"
        raise InputError(f"{path} is a folder, not a config file", fix=fix) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the config file {path} cannot be read: {error}") from None
    origins: dict[KeyPath, str] = {}
    problems: list[Problem] = []
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        values = _construct(loader, node, (), path, origins, problems) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"this is not valid YAML: {error.problem or error.context}", where=f"{path}{line}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # `!!int word`, or an alias of itself
        raise InputError(f"this is not valid YAML: {error}", where=path) from None
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        problems.append(Problem("a config is a mapping of sections", f"{path}:1", "name:, model:, data:, train:, …"))
    if problems:
        raise InputError(*problems)
    return values, origins


def _meant(file: Path) -> Path | None:
    """The config that a path which is none stood for: one of this name in a folder below, or of a like name beside it."""
    below = [path for pattern in ("*/", "*/*/") for path in file.parent.glob(pattern + glob.escape(file.name))]
    if len(below) == 1:
        return below[0]
    beside = {path.stem: path for path in file.parent.glob("*.y*ml")}  # by the stem: endings are alike without meaning
    near = nearest(file.stem, beside)
    return beside[near] if near else None


def _construct(
    loader: _Loader, node: yaml.Node, at: KeyPath, file: str, origins: dict[KeyPath, str], problems: list[Problem]
) -> Any:
    """Plain values of a node; notes the line of every key and refuses keys that are given twice."""
    where = f"{file}:{node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node, deep=True)
    out: dict[str, Any] = {}
    own = [(key, value, True) for key, value in node.value if not _is_merge(key)]
    merged = [(key, value, False) for merge, source in node.value if _is_merge(merge) for key, value in _pairs(source)]
    for key_node, value_node, is_own in own + merged:
        key = str(loader.construct_object(key_node))
        path = (*at, key)
        where = f"{file}:{key_node.start_mark.line + 1}"
        if key in out and not is_own:  # what a mapping says itself goes before what it takes over
            continue
        if key in out:
            problems.append(Problem(f"{'.'.join(path)} is given twice", where, fix=f"first given at {origins[path]}"))
        origins[path] = where
        out[key] = _construct(loader, value_node, path, file, origins, problems)
    return out


def _is_merge(key: yaml.Node) -> bool:
    """Whether a key is the plain `<<`, which takes over the keys of an anchored mapping, or of a list of them."""
    return key.tag == MERGE


def _pairs(source: yaml.Node) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """What `<<: SOURCE` takes over, what counts most first: of two mappings that say the same key, the earlier one."""
    if isinstance(source, yaml.SequenceNode):
        for item in source.value:
            yield from _pairs(item)
    elif isinstance(source, yaml.MappingNode):
        yield from ((key, value) for key, value in source.value if not _is_merge(key))
        for key, value in source.value:
            if _is_merge(key):
                yield from _pairs(value)
    else:
        raise yaml.constructor.ConstructorError(
            None, None, "<<: takes over the keys of a mapping, or of a list of mappings", source.start_mark
        )


def apply_override(values: dict[str, Any], origins: dict[KeyPath, str], text: str) -> Problem | None:
    """Puts one `key=value` argument on top of `values`, in place. Returns what is wrong with it, if anything."""
    where = f"argument '{text}'"
    key, equals, raw = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_-]+)*", key):
        return Problem("an override is written key=value", where, fix="for example train.epochs=3")
    try:
        value = yaml.load(raw, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError):
        return Problem("the value is not valid YAML", where, fix="quote it: 'key=\"value\"'")
    path = _path(key)
    section = values
    for depth, part in enumerate(path[:-1], 1):
        if not isinstance(section.get(part), dict):
            section[part], origins[path[:depth]] = {}, where
        section = section[part]
    for old in [p for p in origins if p[: len(path)] == path]:
        del origins[old]
    section[path[-1]] = value
    origins[path] = where
    if isinstance(value, dict):
        origins.update({(*path, *below[:n]): where for below, _ in flatten(value) for n in range(1, len(below) + 1)})
    return None


def _path(key: str) -> KeyPath:
    """The sections that a dotted key leads through. The keys of `search.space` are dotted ones themselves."""
    path = tuple(key.split("."))
    if path[:2] != ("search", "space") or len(path) < 3:
        return path
    end = len(path) - (path[-1] in KINDS and len(path) > 3)
    return (*path[:2], ".".join(path[2:end]), *path[end:])


def as_overrides(values: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """`key=value` arguments of a mapping of dotted keys, nested ones or both; a list of such arguments is left as it is.
    Raises InputError for a value that no YAML file could hold."""
    if isinstance(values, Mapping):  # a section that is named and left empty changes none of its keys
        told = {key: value for key, value in plain(values).items() if value != {}}
        return [f"{'.'.join(path)}={_as_text(value)}" for path, value in flatten(told)]
    texts = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [None]
    if all(isinstance(text, str) for text in texts):
        return texts  # type: ignore[return-value]
    raise InputError(f"overrides are a mapping or a list of key=value texts, not {values!r}", fix='{"train.epochs": 3}')


def _as_text(value: Any) -> str:
    """YAML of a value: a text without quotes where it is read as the same text without them."""
    if isinstance(value, str):
        with contextlib.suppress(yaml.YAMLError, ValueError, RecursionError):
            if yaml.load(value, Loader=_Loader) == value:  # noqa: S506 - _Loader is a SafeLoader
                return value
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if value != value else ".inf" if value > 0 else "-.inf"
    return json.dumps(value, ensure_ascii=False)


def plain(value: Any, at: KeyPath = ()) -> Any:
    """A copy of what a Python caller gives, of the kinds that a YAML file holds. Raises InputError for any other."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner, (*at, str(key))) for key, inner in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy's or torch's: a number, or an array of them
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(inner, at) for inner in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    what = f"{'.'.join(at)} is a {type(value).__name__}"
    raise InputError(what, allowed="None, True, False, numbers, texts, paths, lists and mappings of them")
