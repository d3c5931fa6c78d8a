"""`distdl data`: what there is to prepare from, prepare a data set, look into it, check its bytes. What fetches and what
makes data sets of others is in `data_fetch.py` and `data_change.py`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distdl.cli import data_change, data_fetch, replay
from distdl.cli.common import (
    Verb,
    add_json_argument,
    add_progress_arguments,
    add_verbs,
    console,
    followed,
    key_values,
    print_json,
    tell_prepared,
    to_write,
)
from distdl.errors import InputError

if TYPE_CHECKING:
    from distdl.data.manifest import Manifest
    from distdl.data.workers import Workers


def add_parser(subparsers: Any) -> None:
    """Register `data` and its verbs on the main parser's subparsers."""
    parser = subparsers.add_parser("data", help="fetch, prepare, inspect, verify, split, merge and convert data sets")
    verbs = add_verbs(
        parser,
        Verb("sources", "list what data can be prepared from, or the options of one source", run_sources),
        Verb("prepare", "convert raw data into Arrow shards", run_prepare, add_help=False),
        Verb("inspect", "print columns, splits, distributions and classes; --html shows samples", run_inspect),
        Verb("verify", "hash everything again and list all damage", run_verify),
        Verb("fetch", "bring a classic data set from where it is published", data_fetch.run),
        *data_change.verbs(),
        Verb("at", "print which samples made a step of a run, on which worker", replay.run_at),
    )
    prepare = verbs["prepare"]
    prepare.add_argument(
        *("-h", "--help"), action=_Help, help="this help; behind a SOURCE, that source's options with what they mean"
    )
    prepare.add_argument("source", metavar="SOURCE", help="what it is prepared from: `distdl data sources` lists them")
    prepare.add_argument("target", metavar="TARGET", help="folder or URI to create")
    prepare.add_argument(
        "options", metavar="key=value", nargs="*", help="options of the source, such as path=raw/train.csv"
    )
    about = "processes that read a large table (default: 1; with --ray one a CPU); any number gives the same data set"
    prepare.add_argument("--workers", metavar="N", type=int, help=about)
    about = (
        "read it by workers of a Ray cluster, which see the same files: HOST:PORT, auto, or local for one of its own"
    )
    prepare.add_argument("--ray", metavar="ADDRESS", help=about)
    prepare.add_argument("--overwrite", action="store_true", help="replace a data set that is already there")
    verbs["sources"].add_argument("name", metavar="SOURCE", nargs="?", help="one of them")
    add_json_argument(verbs["sources"])
    add_progress_arguments(prepare)
    data_fetch.add_arguments(verbs["fetch"])
    data_change.add_arguments(verbs)
    replay.add_at_arguments(verbs["at"])
    for name in ("inspect", "verify"):
        verbs[name].add_argument("path", metavar="PATH", help="folder or URI of a data set")
        add_json_argument(verbs[name])
    verbs["inspect"].add_argument(
        "--html",
        metavar="FILE",
        type=to_write,
        help="write a page of it, too, with samples and drawings; it needs no network",
    )


class _Help(argparse._HelpAction):
    """The help of `prepare`, or of the source that was named before it."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *rest: Any) -> None:
        from distdl.data.catalogue import described, entry

        name = getattr(namespace, "source", None)
        if name is None:
            super().__call__(parser, namespace, *rest)
        try:
            text = described(entry(str(name)))
        except InputError as error:
            parser.error(str(error))
        print(f"usage: {parser.prog} {name} TARGET [key=value ...] [--overwrite]\n\n{text}")
        parser.exit()


def run_sources(args: argparse.Namespace) -> int:
    """Exit code 0; InputError where there is no source of that name."""
    from distdl.data.catalogue import ABOUT, described, entries, entry

    found = [entry(args.name)] if args.name else entries()
    if args.json:
        rows = [{**dataclasses.asdict(source), "summary": source.summary} for source in found]
        print_json(rows[0] if args.name else rows)
        return 0
    if args.name:
        print(described(found[0]))
        return 0
    for group, about in ABOUT.items():
        print(f"{group}: {about}")
        for source in found:
            if source.group == group:
                print(f"  {source.name:<16}{source.summary}")
        print()
    print("distdl data sources NAME, or distdl data prepare NAME --help, lists the options of one")
    return 0


def run_prepare(args: argparse.Namespace) -> int:
    """Exit code 0; bad input raises InputError."""
    from distdl.data.prepare import prepare_dataset

    with _workers(args) as workers:
        manifest = prepare_dataset(
            args.source,
            args.target,
            key_values(args.options),
            args.overwrite,
            follow=followed(args),
            workers=workers,
        )
    tell_prepared(manifest)
    parts = ", ".join(f"{name} {split.rows:,}" for name, split in manifest.splits.items())
    print(f"{args.target}: {parts} rows, fingerprint {manifest.fingerprint[:16]}")
    return 0


@contextmanager
def _workers(args: argparse.Namespace) -> Iterator[int | Workers]:
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers is {args.workers}", allowed="1 or more processes")
    if args.ray is None:
        yield args.workers or 1
        return
    from distdl.runtime.ray_workers import data_workers

    with data_workers(args.workers or 0, args.ray) as workers:
        yield workers


def run_inspect(args: argparse.Namespace) -> int:
    """Exit code 0; InputError where there is no data set, DataCorrupt where its first rows are damaged."""
    from distdl.cli.data_text import tables
    from distdl.data import bad_rows
    from distdl.data.manifest import read_manifest

    manifest = read_manifest(args.path)
    facts = _facts(args.path, manifest)
    if args.html:
        from distdl.cli.data_page import page

        Path(args.html).write_text(page(args.path, manifest, facts["split"]), encoding="utf-8")
    if args.json:
        print_json(facts)
        return 0
    from rich.table import Table

    out = console()
    title = f"{args.path} (from {facts['source']})"
    columns = Table("column", "dtype", "shape", "first row", f"values of {facts['split']}", title=title)
    for name, column in facts["columns"].items():
        columns.add_row(name, column["dtype"], str(tuple(column["shape"])), column["first_row"], column["values"])
    splits = Table("split", "rows", "shards", "bytes")
    for name, split in facts["splits"].items():
        splits.add_row(name, f"{split['rows']:,}", f"{split['shards']:,}", f"{split['bytes']:,}")
    out.print(columns, splits, *tables(manifest, facts["split"]))
    for line in bad_rows.told(manifest.info):
        out.print(line, soft_wrap=True, highlight=False, markup=False)
    if origin := manifest.info.get("origin"):
        of = ", ".join(f"{one['path']} ({one['fingerprint'][:16]})" for one in origin["of"])
        out.print(f"made by distdl data {origin['made_by']} of {of}", soft_wrap=True, highlight=False)
    if not manifest.statistics:
        out.print("an older version wrote it: distributions and classes are told once it is prepared again")
    if args.html:
        out.print(f"{args.html} shows samples", soft_wrap=True, highlight=False)
    out.print(f"fingerprint {facts['fingerprint']}", soft_wrap=True, highlight=False)
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Exit code 0 where every byte is as it was written, 1 where not; InputError where there is no data set."""
    from distdl.data.verify import verify_dataset

    problems = verify_dataset(args.path)
    if args.json:
        print_json({"path": args.path, "sound": not problems, "problems": problems})
        return 1 if problems else 0
    for problem in problems:
        print(problem)
    if problems:
        print(
            f"{args.path}: {len(problems)} problems\n"
            "    fix: copy the data set again, or prepare it again with --overwrite"
        )
        return 1
    print(f"{args.path}: all bytes are as they were written")
    return 0


def _facts(path: str, manifest: Manifest) -> dict[str, Any]:
    from distdl.data import statistics
    from distdl.data.read import Dataset

    first_split = "train" if "train" in manifest.splits else min(manifest.splits)
    first_row = Dataset(path, first_split).gather([0])
    values = manifest.values.get(first_split, {})
    return {
        "source": manifest.source,
        "options": dict(manifest.options),
        "fingerprint": manifest.fingerprint,
        "rows_per_batch": manifest.rows_per_batch,
        "split": first_split,
        "columns": {
            name: {
                "dtype": column.dtype,
                "shape": list(column.shape),
                "first_row": _summary(first_row[name][0]),
                "values": values[name].in_words() if name in values else "not recorded",
            }
            for name, column in manifest.columns.items()
        },
        "splits": {
            name: {"rows": split.rows, "shards": len(split.shards), "bytes": sum(s.bytes for s in split.shards)}
            for name, split in manifest.splits.items()
        },
        "info": dict(manifest.info),
        "preparation": dict(manifest.preparation),
        "statistics": statistics.to_record(manifest.statistics),
    }


def _summary(value: Any) -> str:
    """A value in a few words: itself where it is small, else its range."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes: {value[:16]!r}"
    if value.size <= 4:
        return str(value.tolist())
    return f"{value.min():g} to {value.max():g}, mean {value.mean():.4g}"
