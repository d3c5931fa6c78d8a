"""`distdl families`: what there is to train, and what its config says."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from distdl.cli.common import add_trust_argument
from distdl.config.family import FamilySchema, family_names, family_schema
from distdl.errors import InputError


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("families", help="the architecture families, or the config fields of one")
    parser.add_argument("name", metavar="NAME", nargs="?", help="a family, or the file or module of one of your own")
    add_trust_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.name is None:
        return _list()
    _describe(family_schema(args.name))
    return 0


def _list() -> int:
    import torch

    from distdl.families import load_family

    for name in family_names():
        print(f"{name:<13} {family_schema(name).summary}")
        try:
            family = load_family(name)
            with torch.device("meta"):
                learner = family(family.Config())
        except InputError as error:  # a package that it needs is not installed
            print(f"{'':<13} {error.problems[0].what}; {error.problems[0].fix}")
            continue
        parameters = sum(p.numel() for p in learner.parameters() if p.requires_grad)
        print(f"{'':<13} {parameters:,} trainable by default; learns by {family.learns}{_players(family.players)}")
        print(f"{'':<13} proven on {', '.join(sorted(family.layouts))}")
    print("\ndistdl families NAME lists the fields of its model: section")
    return 0


def _players(players: tuple[str, ...]) -> str:
    return f"; players: {', '.join(players)}" if players else ""


def _describe(schema: FamilySchema) -> None:
    print(f"{schema.summary}\n\nmodel:\n  family: {schema.name}")
    for field in dataclasses.fields(schema.config):
        default = "" if field.default is dataclasses.MISSING else json.dumps(field.default)
        print(f"  {field.name}: {default}\n      {schema.docs.get(field.name, '')}")
