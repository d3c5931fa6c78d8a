"""`distdl config show|check|schema`: what a config resolves to, and the JSON Schema that editors complete from."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from distdl.cli.common import Verb, add_config_arguments, add_json_argument, add_verbs, loaded, print_json, to_write
from distdl.errors import InputError


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("config", help="show, check or describe configs")
    verbs = add_verbs(
        parser,
        Verb("show", "every resolved value with its origin", run_show),
        Verb(
            "check",
            "all mistakes of a config at once, and what its data set contradicts; exit code 2 if there are any",
            run_check,
        ),
        Verb("schema", "the JSON Schema of configs", run_schema),
    )
    for name in ("show", "check"):
        add_config_arguments(verbs[name])
        add_json_argument(verbs[name])
    schema = verbs["schema"]
    schema.add_argument("--output", metavar="FILE", type=to_write, help="write it there instead of printing it")


def run_show(args: argparse.Namespace) -> int:
    from distdl.config.yaml_file import flatten

    found = loaded(args)
    values = found.config.model_dump(mode="json")
    if args.json:
        print_json(values)
        return 0
    rows = [(".".join(path), json.dumps(value), found.origin(path)) for path, value in flatten(values)]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    for key, value, origin in rows:
        print(f"{key:<{widths[0]}}  {value:<{min(widths[1], 48)}}  {origin}")
    return 0


def run_check(args: argparse.Namespace) -> int:
    from distdl import driver

    try:
        unknown = driver.unfit_data(loaded(args).config)
    except InputError as error:
        if not args.json:
            raise
        print_json(
            {
                "path": args.config,
                "valid": False,
                "unchecked": "",
                "problems": [dataclasses.asdict(p) for p in error.problems],
            }
        )
        return error.exit_code
    if args.json:
        print_json({"path": args.config, "valid": True, "problems": [], "unchecked": unknown})
    else:
        print(
            f"{args.config} is valid" + (f"; its data were not checked: {unknown}" if unknown else ", and its data fit")
        )
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
