"""`distdl data fetch`: classic data sets from where they are published."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distdl.cli.common import (
    add_json_argument,
    add_progress_arguments,
    aside,
    console,
    followed,
    print_json,
    tell_prepared,
)
from distdl.errors import InputError

if TYPE_CHECKING:
    from distdl.data.fetch.classics import Classic

RAW = Path("data/raw")
"""Where the configs look for what is fetched."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `fetch`."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="the data set, such as mnist: --list tells of all")
    parser.add_argument("folder", metavar="DIR", nargs="?", help="folder to create (data/raw/NAME)")
    parser.add_argument("--list", action="store_true", help="what there is, its size and its licence")
    parser.add_argument(
        "--prepare",
        metavar="TARGET",
        nargs="?",
        const="",
        help="prepare it, too, as the data set TARGET (data/NAME)",
    )
    parser.add_argument(
        "--mirror", metavar="PLACE", default="", help="a folder or URL that has its files, to be asked first"
    )
    add_json_argument(parser)
    add_progress_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Exit code 0; InputError for an unknown name or a folder that is something else; DistdlError: it cannot be had."""
    from distdl.data.fetch.classics import classics, find

    if args.list or not args.name:
        if args.folder or args.prepare is not None or (args.list and args.name):
            raise InputError("--list stands alone", fix="distdl data fetch --list")
        if not args.list:
            raise InputError("there is no NAME", fix="distdl data fetch --list tells what there is")
        _list(classics(), args.json)
        return 0
    classic = find(args.name)
    folder = Path(args.folder or RAW / classic.name)
    target = str(args.prepare or Path("data") / classic.name)
    if args.prepare is not None:
        from distdl.data.write import check_target

        check_target(target, False)  # before a long download
    _fetch(args, classic, folder)
    _tell(classic, folder, target, args)
    return 0


def _fetch(args: argparse.Namespace, classic: Classic, folder: Path) -> None:
    from distdl.data.fetch.folder import fetch

    with aside(args.json):
        new = fetch(classic, folder, mirror=args.mirror, follow=followed(args))
    if not args.json:
        how = "is there" if new else "was there already, as it was published"
        print(f"{folder}: {classic.name} {how}: {classic.about}")
        print(f"licence: {classic.licence}; from {classic.page}")
        if classic.note:
            print(f"note: {classic.note}")


def _tell(classic: Classic, folder: Path, target: str, args: argparse.Namespace) -> None:
    """Prepares it, or says how."""
    options = classic.options_in(str(folder))
    words = ["distdl", "data", "prepare", classic.source, target, *(f"{key}={value}" for key, value in options.items())]
    if args.json:
        facts = {**_facts(classic), "folder": str(folder), "prepare": words}
    if args.prepare is not None:
        from distdl.data.prepare import prepare_dataset

        manifest = prepare_dataset(classic.source, target, options, follow=followed(args))
        if args.json:
            print_json({**facts, "data": target, "fingerprint": manifest.fingerprint})
            return
        tell_prepared(manifest)
        parts = ", ".join(f"{name} {split.rows:,}" for name, split in manifest.splits.items())
        print(f"{target}: {parts} rows, fingerprint {manifest.fingerprint[:16]}")
        return
    if args.json:
        print_json(facts)
        return
    print(f"next: {shlex.join(words)}\n      (--prepare does that, too)")


def _facts(classic: Classic) -> dict[str, Any]:
    return {
        "name": classic.name,
        "about": classic.about,
        "licence": classic.licence,
        "page": classic.page,
        "bytes": classic.bytes or None,
        "checksums": {"of": sorted({file.kind for file in classic.files}), "published_by": classic.said_by},
        "source": classic.source,
    }


def _list(known: tuple[Classic, ...], json: bool) -> None:
    if json:
        print_json([_facts(classic) for classic in known])
        return
    from rich.table import Table

    table = Table("name", "what it is", "MB", "licence", "checksums", "source")
    for classic in known:
        size = f"{classic.bytes / 1e6:,.1f}" if classic.bytes else "?"
        kinds = ", ".join(sorted({file.kind for file in classic.files}))
        table.add_row(classic.name, classic.about, size, classic.licence, f"{kinds}: {classic.said_by}", classic.source)
    console().print(table)
    print("distdl data fetch NAME brings one to data/raw/NAME and says what prepares it")
