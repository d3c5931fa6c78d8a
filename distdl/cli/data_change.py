"""`distdl data split`, `merge` and `convert`: data sets and tables that are made of others."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from distdl.cli.common import Verb, add_json_argument, add_progress_arguments, followed, key_values, print_json

if TYPE_CHECKING:
    from distdl.data.manifest import Manifest


def verbs() -> tuple[Verb, ...]:
    """What stands behind `distdl data`."""
    return (
        Verb("split", "share the rows of a data set or a table out over train, test and validation", run_split, False),
        Verb("merge", "make one data set of several that are of one kind", run_merge),
        Verb("convert", "write a data set or a table as CSV, JSON lines, Parquet or Arrow", run_convert, False),
    )


def add_arguments(parsers: dict[str, argparse.ArgumentParser]) -> None:
    """The arguments of the three."""
    for name, source in (
        ("split", "a data set, or a file of a table"),
        ("convert", "a data set, or a file of a table"),
    ):
        parsers[name].add_argument("source", metavar="SOURCE", help=source)
    parsers["merge"].add_argument("sources", metavar="SOURCE", nargs="+", help="data sets of the same columns")
    parsers["split"].add_argument("target", metavar="TARGET", help="data set to create; of a table, a folder of files")
    parsers["merge"].add_argument("target", metavar="TARGET", help="data set to create")
    parsers["convert"].add_argument(
        "target", metavar="TARGET", help="file to write (.csv, .jsonl, .parquet, .arrow), or with format= a folder"
    )
    for name in ("split", "convert"):
        parsers[name].add_argument(
            "options",
            metavar="key=value",
            nargs="*",
            help="its options, such as test_fraction=0.2; --help has them all",
        )
        parsers[name].add_argument(*("-h", "--help"), action=_Help, help="this help, with all options")
    for name in ("split", "merge", "convert"):
        parsers[name].add_argument("--overwrite", action="store_true", help="replace a target that is already there")
        add_json_argument(parsers[name])
        add_progress_arguments(parsers[name])


class _Help(argparse._HelpAction):
    """The help of a verb, and its options with what they mean."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from distdl.data.bad_rows import NAMES  # of sources
        from distdl.data.catalogue import options_in_words, options_of

        parser.print_help()
        for module, what in OPTIONS[parser.prog.split()[-1]].items():
            print(f"\noptions of {what}, as key=value:")
            options = tuple(option for option in options_of(module) if option.name not in NAMES)
            print("\n".join(options_in_words(options)))
        parser.exit()


OPTIONS = {
    "split": {
        "distdl.data.change.split": "a data set",
        "distdl.data.change.split_table": "a table (those of how a CSV file is read are those of the source csv)",
    },
    "convert": {"distdl.data.change.convert": "it (those of how a CSV file is read are those of the source csv)"},
}


def run_split(args: argparse.Namespace) -> int:
    """Exit code 0; InputError for rows that cannot be shared out as asked."""
    from distdl.data.change.origin import is_dataset

    given, follow = key_values(args.options), followed(args)
    if is_dataset(args.source):
        from distdl.data.change.split import split_dataset

        _tell_dataset(args, split_dataset(args.source, args.target, given, args.overwrite, follow=follow))
        return 0
    from distdl.data.change.split_table import split_table

    rows, record, notes = split_table(args.source, args.target, given, args.overwrite, follow=follow)
    _tell_files(args, rows, notes, {"split": record})
    return 0


def run_merge(args: argparse.Namespace) -> int:
    """Exit code 0; InputError for data sets that do not belong together."""
    from distdl.data.change.merge import merge_datasets

    _tell_dataset(args, merge_datasets(args.sources, args.target, args.overwrite, follow=followed(args)))
    return 0


def run_convert(args: argparse.Namespace) -> int:
    """Exit code 0; InputError for what the format has no place for."""
    from distdl.data.change.convert import convert

    rows, notes = convert(args.source, args.target, key_values(args.options), args.overwrite, follow=followed(args))
    _tell_files(args, rows, notes, {})
    return 0


def _tell_dataset(args: argparse.Namespace, manifest: Manifest) -> None:
    rows = {name: split.rows for name, split in manifest.splits.items()}
    notes = manifest.info.get("notes", [])
    if args.json:
        print_json({"target": args.target, "rows": rows, "fingerprint": manifest.fingerprint, "notes": notes})
        return
    _print_notes(notes)
    parts = ", ".join(f"{name} {count:,}" for name, count in rows.items())
    print(f"{args.target}: {parts} rows, fingerprint {manifest.fingerprint[:16]}")


def _tell_files(args: argparse.Namespace, rows: dict[str, int], notes: list[str], more: dict[str, object]) -> None:
    if args.json:
        print_json({"target": args.target, "rows": rows, "notes": notes, **more})
        return
    _print_notes(notes)
    print(f"{args.target}: " + ", ".join(f"{name} {count:,} rows" for name, count in rows.items()))


def _print_notes(notes: list[str]) -> None:
    for note in notes:
        print(f"note: {note}")
