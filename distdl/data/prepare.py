"""Raw data -> data sets. One file per source, whose name is the file's, in one of three folders:

    formats/     what people's own files are written in: CSV, Parquet, folders of pictures, ...
    corpora/     collections with a form of their own: treebanks, parallel sentences, recorded speech, ...
    generators/  data that a formula or a library makes

A source module has a frozen dataclass `Options` (a sentence under each field) and `prepare(options) -> Prepared`
(`distdl/data/raw.py`). To add a source, add a file: nothing else names it. What `distdl init` would ask of it is in
`advice.py`. Files that begin with _ are shared helpers.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from distdl.data import bad_rows
from distdl.data.manifest import Manifest
from distdl.data.progress import Follow, Progress
from distdl.data.workers import Local, Workers, using
from distdl.errors import InputError, Problem, did_you_mean, sigterm_raises

OF_TABLES = ("csv", "jsonl", "parquet", "arrow", "huggingface")
OF_TOKENS = ("text", "chat")
FOLDERS = ("formats", "corpora", "generators")


def source_modules() -> dict[str, str]:
    """Name of a source -> the dotted name of its module."""
    here = Path(__file__).parent
    found = [(folder, m.name) for folder in FOLDERS for m in pkgutil.iter_modules([str(here / folder)])]
    return {name: f"distdl.data.{folder}.{name}" for folder, name in found if not name.startswith("_")}


def source_names() -> list[str]:
    """The sources there are, sorted."""
    return sorted(source_modules())


def source_module(name: str) -> Any:
    """The module of a source. InputError: there is none of that name."""
    known = source_modules()
    if name not in known:
        raise InputError(f"there is no source '{name}'", fix=did_you_mean(name, sorted(known)))
    return importlib.import_module(known[name])


def parse_options(name: str, given: Mapping[str, Any]) -> Any:
    """The `Options` of a source from values or from their text (`size=28x28`). InputError lists every bad one."""
    return parsed_options(source_module(name).Options, f"the source {name}", given)


def parsed_options(kind: type[Any], who: str, given: Mapping[str, Any]) -> Any:
    """A dataclass of options, of whatever takes some, from values or from their text. InputError lists every bad one."""
    hints, known = typing.get_type_hints(kind), {f.name: f for f in fields(kind)}
    values, problems = {}, []
    for key, value in given.items():
        if key not in known:
            no_option = Problem(f"{who} has no option '{key}'", fix=did_you_mean(key, known))
            problems.append(bad_rows.unknown_here(who, key) if key in bad_rows.NAMES else no_option)
            continue
        try:
            values[key] = _convert(value, hints[key])
        except (ValueError, TypeError):
            problems.append(Problem(f"option {key}={value!r} of {who}", allowed=_describe(hints[key])))
    missing = [f.name for f in known.values() if f.default is MISSING and f.name not in given]
    problems += [Problem(f"{who} needs the option {key}=...") for key in missing]
    if problems:
        raise InputError(*problems)
    return kind(**values)


def prepare_dataset(
    source_name: str,
    target: str | os.PathLike[str],
    options: Mapping[str, Any],
    overwrite: bool = False,
    *,
    follow: Follow | None = None,
    workers: int | Workers = 1,
) -> Manifest:
    """Convert a raw source into a data set at `target` (a new folder or a URI) and return its manifest.

    `options`: of that source, as values or as text. `follow` shows how far it is. `workers`: processes that read a large
    table, or what stands for them (workers.py); the data set is the same for any number. SIGTERM ends it as an
    interrupt does: nothing is left behind. InputError: an unknown source or option, raw data that does not fit, a target
    that exists (unless `overwrite`). DistdlError: the disk failed, or somebody ended a worker; nothing is left behind.
    """
    parsed = parse_options(source_name, options)
    from distdl.data.store import shown
    from distdl.data.write import check_target

    check_target(os.fspath(target), overwrite)  # before hours of reading
    where = shown(os.fspath(target))
    progress = Progress(f"{source_name} to {where}", asdict(parsed))
    given = Local(workers) if isinstance(workers, int) and workers > 1 else workers
    with sigterm_cleans_up(where), follow(progress) if follow else nullcontext(), using(given):
        manifest = _written(source_name, target, parsed, overwrite, progress)
    if isinstance(given, Local) and not given.used:
        print(
            f"{source_name}: one process has read it, of {given.count}: {_why_alone(source_name, parsed)}",
            file=sys.stderr,
        )
    return manifest


def _why_alone(source_name: str, parsed: Any) -> str:
    """Why several workers had nothing to do."""
    if getattr(parsed, "bad_rows", "") == "set_aside" and source_name in OF_TABLES:
        return "with bad_rows=set_aside a table is read from its beginning, where its lines are counted"
    if source_name in OF_TOKENS:
        return "the library tokenizers has threads of its own"
    several = "tables, pictures, recordings and samples with pictures are read by several"
    return f"{several}, where they are large and not packed as a whole"


def _written(
    source_name: str, target: str | os.PathLike[str], parsed: Any, overwrite: bool, progress: Progress
) -> Manifest:
    from distdl.data.going_on import going_on, key_of_preparation
    from distdl.data.splits import check_heeded
    from distdl.data.store import shown
    from distdl.data.values import in_range
    from distdl.data.write import DatasetWriter

    try:
        prepared = source_module(source_name).prepare(parsed)
        check_heeded(source_name, parsed, prepared.info)
        bad_rows.check_heeded(source_name, parsed, prepared.bad)
        progress.total = prepared.rows
        about = {"info": prepared.info, "preparation": prepared.preparation}
        told = public(asdict(parsed))
        writer = DatasetWriter(target, prepared.columns, source_name, told, about=about, overwrite=overwrite)
        writer.key = key_of_preparation(prepared, source_name, asdict(parsed), writer.rows_per_batch)
        with writer:
            for split, rows in in_range(going_on(prepared, writer)):
                writer.write(split, rows)
                progress.rows += len(next(iter(rows.values())))
            if prepared.bad and prepared.bad.wanted:
                prepared.bad.check(prepared.bad.good or progress.rows)
                prepared.info["bad_rows"], writer.bad_rows = prepared.bad.record(), prepared.bad.lines()
    except InputError as error:
        raise bad_rows.with_others(error, source_module(source_name).prepare, parsed) from error
    except OSError as error:
        raise InputError(f"the source {source_name} cannot be read: {shown(error)}") from error
    assert writer.manifest is not None
    return writer.manifest


@contextmanager
def sigterm_cleans_up(target: str) -> Iterator[None]:
    """After SIGTERM what was written goes, and the exit code is the signal's, 143."""
    try:
        with sigterm_raises(_Ended, over_others=False):
            yield
    except _Ended:
        print(f"distdl: ended by SIGTERM; nothing was written to {target}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM) from None


class _Ended(BaseException):
    """SIGTERM came. No source may take it for a failure of its own."""


def public(options: dict[str, Any]) -> dict[str, Any]:
    """Options for the manifest: a URI without what may be a secret of it."""
    from distdl.data.store import shown

    return {
        key: shown(value)
        if isinstance(value, str)
        else tuple(shown(item) if isinstance(item, str) else item for item in value)
        if isinstance(value, tuple)
        else value
        for key, value in options.items()
    }


def _convert(value: Any, kind: Any) -> Any:
    """Text or a plain value -> the type of an option. ValueError where that is not possible."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None or value == "":
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        if isinstance(value, str):
            parts = value.replace("x", ",") if arguments[0] is int else value
            value = parts.split(",") if value or arguments[-1] is not Ellipsis else ()
        if isinstance(value, os.PathLike):
            value = (value,)
        converted = tuple(_convert(item, arguments[0]) for item in value)
        if arguments[-1] is not Ellipsis and len(converted) != len(arguments):
            raise ValueError(value)
        return converted
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(value)
        return value
    if kind is bool:
        if str(value).lower() not in ("true", "false", "yes", "no", "1", "0"):
            raise ValueError(value)
        return str(value).lower() in ("true", "yes", "1")
    if kind is str and not isinstance(value, str | os.PathLike):
        raise ValueError(value)
    return os.fspath(value) if kind is str else kind(value)


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(map(str, typing.get_args(kind)))
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind) or str(kind).replace(
        "typing.", ""
    )
