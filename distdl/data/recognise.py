"""Which source reads a file or folder: by what the sources say of themselves (advice.py). Nothing here names one."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from distdl.data.advice import Advice, Wish, by_ending
from distdl.data.preparation import READING
from distdl.data.prepare import parse_options, source_module, source_names
from distdl.errors import InputError


def recognise(path: str) -> str:
    """The name of the source that fits a file or folder best. InputError: there is no such file, or none fits."""
    if not Path(path).exists():
        raise InputError(f"there is no file or folder {path}", fix="check the path")
    fits = {name: _fit(source_module(name), Path(path)) for name in source_names()}
    best = max(fits.values())
    found = [name for name, fit in fits.items() if fit == best]
    if best <= 0:
        raise InputError(
            f"what {path} is cannot be told from its name or its first bytes",
            allowed=", ".join(sorted({e for name in fits for e in getattr(source_module(name), "ENDINGS", ())})),
            fix="name the source yourself: distdl data sources lists them, distdl data prepare SOURCE TARGET writes it",
        )
    if len(found) > 1:
        raise InputError(
            f"{path} could be read by several sources: {', '.join(found)}",
            fix=f"--source {found[0]}, or another of them",
        )
    return found[0]


def _fit(source: Any, path: Path) -> float:
    if hasattr(source, "recognise"):
        return float(source.recognise(path))
    return by_ending(path, getattr(source, "ENDINGS", ()))


def advise(source_name: str, path: str, wish: Wish, given: Mapping[str, str] | None = None) -> Advice:
    """The options to prepare a file with, as its source advises. `given`: options that were said, of which those that tell
    how the file is written are heeded. InputError: it cannot be told, or the source takes none of what was wished for."""
    source = source_module(source_name)
    told = {key: text for key, text in (given or {}).items() if key in READING}
    known = {option.name for option in fields(source.Options)}
    if told and {"path", *told} <= known:
        parsed = parse_options(source_name, {"path": path, **told})
        wish = replace(wish, reading={key: getattr(parsed, key) for key in told})
    if hasattr(source, "advise"):
        advice: Advice = source.advise(path, wish)
        return advice
    if "path" not in known:
        raise InputError(f"the source {source_name} reads no file", fix=f"distdl data prepare {source_name} --help")
    for key in wish.options().keys() - known:
        raise InputError(f"the source {source_name} has no option '{key}': what it holds says what is learned")
    several = typing.get_origin(typing.get_type_hints(source.Options)["path"]) is tuple
    return Advice({"path": [path] if several else path, **wish.options()})
