"""The index.json of a folder of shards, which may come from a stranger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distdl.errors import InputError


def read_index(folder: Path, what: str) -> dict[str, Any]:
    """The decoded index. InputError: there is none, or it is no object."""
    path = folder / "index.json"
    if not path.is_file():
        splits = sorted(inner.parent.name for inner in folder.glob("*/index.json"))
        fix = f"name one of the folders in it: path={folder / splits[0]}, and test_path= for another" if splits else ""
        raise InputError(f"{folder} is not {what}: it has no index.json", fix=fix or "check the path")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", where=str(path), fix="copy it again") from error
    if not isinstance(index, dict):
        raise InputError("the index is no object", where=str(path))
    return index


def item(record: Any, key: str, kind: type, where: str) -> Any:
    """A value of a record. InputError: it is missing, or of another type."""
    value = record.get(key) if isinstance(record, dict) else None
    if type(value) is not kind:
        raise InputError(f"'{key}' is {value!r:.60}, not a {kind.__name__}", where=where, fix="copy the index again")
    return value


def plain_name(name: str, where: str) -> str:
    """The name of a file in the folder itself. InputError: it leads out of it."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise InputError(f"{name!r} is not the plain name of a file in the folder", where=where)
    return name


def lists(path: Path, key: str) -> bool:
    """Whether a file is an index with a list of this name."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(index, dict) and isinstance(index.get(key), list)
