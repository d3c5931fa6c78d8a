"""`distdl families`: what there is to train, and what its config says."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
from typing import Any

from distdl.cli.common import add_json_argument, add_trust_argument, print_json
from distdl.config.family import FACTS, FamilySchema, family_names, family_schema, summary_of
from distdl.errors import InputError


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("families", help="the architecture families, or the config fields of one")
    parser.add_argument("name", metavar="NAME", nargs="?", help="a family, or the file or module of one of your own")
    add_json_argument(parser)
    add_trust_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.name is None:
        rows = _rows()
        if args.json:
            print_json(rows)
        else:
            _print_rows(rows)
        return 0
    schema = family_schema(args.name)
    if args.json:
        print_json({"name": schema.name, "summary": schema.summary, "fields": _fields(schema)})
    else:
        _describe(schema)
    return 0


def _rows() -> list[dict[str, Any]]:
    """What there is to know of each family. `facts.json` tells it: building them all takes seconds of importing torch."""
    known = json.loads(FACTS.read_text(encoding="utf-8")) if FACTS.is_file() else {}  # a job's package holds code alone
    rows = []
    for name in family_names():
        facts: dict[str, Any] | None = known.get(name)
        if facts is None or any(importlib.util.find_spec(package) is None for package in facts["needs"]):
            from distdl.families import facts_of

            try:
                facts = facts_of(name)
            except InputError as error:  # a package that it needs is not installed
                facts = {"problem": f"{error.problems[0].what}; {error.problems[0].fix}"}
        rows.append({"name": name, "summary": summary_of(name), **facts})
    return rows


def _print_rows(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        print(f"{row['name']:<13} {row['summary']}")
        if "problem" in row:
            print(f"{'':<13} {row['problem']}")
            continue
        players = _players(tuple(row["players"]))
        print(f"{'':<13} {row['parameters']:,} trainable by default; learns by {row['learns']}{players}")
        print(f"{'':<13} proven on {', '.join(row['layouts'])}")
    print("\ndistdl families NAME lists the fields of its model: section")


def _players(players: tuple[str, ...]) -> str:
    return f"; players: {', '.join(players)}" if players else ""


def _describe(schema: FamilySchema) -> None:
    print(f"{schema.summary}\n\nmodel:\n  family: {schema.name}")
    for field in dataclasses.fields(schema.config):
        default = "" if field.default is dataclasses.MISSING else json.dumps(field.default)
        print(f"  {field.name}: {default}\n      {schema.docs.get(field.name, '')}")


def _fields(schema: FamilySchema) -> list[dict[str, Any]]:
    """The fields of a family's `model:` section; one without `default` must be given."""
    rows = []
    for field in dataclasses.fields(schema.config):
        default = {} if field.default is dataclasses.MISSING else {"default": field.default}
        rows.append({"name": field.name, **default, "text": schema.docs.get(field.name, "")})
    return rows
