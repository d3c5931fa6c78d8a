"""`distdl config show|check|schema`: what a config resolves to, and the JSON Schema that editors complete from."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from distdl.cli.common import add_config_arguments, loaded, to_write


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("config", help="show, check or describe configs")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="every resolved value with its origin")
    add_config_arguments(show)
    show.add_argument("--json", action="store_true", help="the resolved values as JSON")
    show.set_defaults(run=run_show)
    check = actions.add_parser("check", help="all mistakes of a config at once; exit code 2 if there are any")
    add_config_arguments(check)
    check.set_defaults(run=run_check)
    schema = actions.add_parser("schema", help="the JSON Schema of configs")
    schema.add_argument("--output", metavar="FILE", type=to_write, help="write it there instead of printing it")
    schema.set_defaults(run=run_schema)


def run_show(args: argparse.Namespace) -> int:
    from distdl.config.yaml_file import flatten

    found = loaded(args)
    values = found.config.model_dump(mode="json")
    if args.json:
        print(json.dumps(values, indent=2))
        return 0
    rows = [(".".join(path), json.dumps(value), found.origin(path)) for path, value in flatten(values)]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    for key, value, origin in rows:
        print(f"{key:<{widths[0]}}  {value:<{min(widths[1], 48)}}  {origin}")
    return 0


def run_check(args: argparse.Namespace) -> int:
    loaded(args)
    print(f"{args.config} is valid")
    return 0


def run_schema(args: argparse.Namespace) -> int:
    from distdl.config.json_schema import json_schema

    text = json.dumps(json_schema(), indent=2) + "\n"
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            file.write(text)
    else:
        sys.stdout.write(text)
    return 0
