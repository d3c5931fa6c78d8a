"""The reference: the Python interface from its docstrings, the commands from their parsers, the YAML from its schema, the
sources of data from their options."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fields

import distdl
from distdl.cli.main import make_parser
from distdl.config.json_schema import json_schema
from distdl.data.catalogue import Entry, default_in_words, entries, kind_in_words

PYTHON = {
    "The package": "distdl",
    "The interface of a family": "distdl.learner",
    "Columns": "distdl.columns",
    "Metrics": "distdl.metrics",
    "Noise": "distdl.layout.noise",
    "Labels that may be missing": "distdl.learner.labels",
    "Classifiers": "distdl.learner.classifier",
    "Sequences": "distdl.learner.sequence",
    "Errors": "distdl.errors",
}
"""Heading -> module."""
IMPORTED = {"distdl.learner": "\n   :imported-members:"}
"""A package whose files a user does not name."""


def pages(repository: Path) -> dict[str, str]:
    """Place in the site -> Markdown."""
    return {
        "reference/commands.md": commands(),
        "reference/yaml.md": config(),
        "reference/sources.md": sources(),
        "reference/python.md": python(),
    }


# -- commands ----------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its arguments, as its own parser has them."""
    parser = make_parser()
    parts = [f"# Commands, by name\n\n{parser.description}", f"```\n{(parser.epilog or '').rstrip()}\n```"]
    parts += [_command(words, one, about) for words, one, about in _below("distdl", parser)]
    return "\n\n".join(parts) + "\n"


def _below(words: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            about = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, one in action.choices.items():
                yield f"{words} {name}", one, about.get(name, "")
                yield from _below(f"{words} {name}", one)


def _command(words: str, parser: argparse.ArgumentParser, about: str) -> str:
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)  # whatever the terminal is
    usage = parser.format_usage().removeprefix("usage: ").rstrip()
    level = "##" if words.count(" ") == 1 else "###"
    rows = [f"| {_spelled(action)} | {_told(action)} |" for action in parser._actions if _is_told(action)]
    table = ["| | |", "|---|---|", *rows] if rows else []
    return "\n\n".join([f"{level} {words}", fields.cell(about), f"```\n{usage}\n```", "\n".join(table)]).rstrip()


def _is_told(action: argparse.Action) -> bool:
    hidden = action.help in (None, argparse.SUPPRESS) or isinstance(action, argparse._HelpAction)
    return not hidden and not isinstance(action, argparse._SubParsersAction)


def _spelled(action: argparse.Action) -> str:
    value = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    value = " ".join(value) if isinstance(value, tuple) else value
    if not action.option_strings:
        return fields.code(value)
    return ", ".join(fields.code(f"{text} {value}" if action.nargs != 0 else text) for text in action.option_strings)


def _told(action: argparse.Action) -> str:
    known = {"default": action.default, "prog": "distdl", "choices": action.choices, "dest": action.dest}
    return fields.cell((action.help or "") % known)


# -- YAML --------------------------------------------------------------------------------------------------------------


def config() -> str:
    """Every section and key of a config, in the order of the schema."""
    schema = json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    titles = _titles({key: field for key, field in schema["properties"].items() if key != "model"}, definitions)
    intro = (
        "# The YAML\n\nOne file is one run. Any key can be given on the command line, too: `optimizer.lr=1e-3`. "
        "`distdl config check` tells every mistake at once, `distdl config show` every value and where it came from, and "
        "`distdl config schema` writes this page's schema for an editor. The fields of `model:` are on the "
        "[families' pages](../families.md)."
    )
    top = {key: {**_about(field, definitions), **field} for key, field in schema["properties"].items()}
    top["model"] = {"type": "object", "description": top["model"]["description"]}
    parts = [intro, fields.table({"properties": top, "required": schema["required"]}, titles)]
    for name, title in titles.items():
        one = definitions[name]
        parts.append(f"## {title}\n\n{fields.cell(one.get('description', ''))}\n\n{fields.table(one, titles)}")
    return "\n\n".join(parts) + "\n"


def _about(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, str]:
    """What the section says of itself that a key without a sentence holds."""
    return {"description": definitions.get(_name(field), {}).get("description", "")}


def _name(field: dict[str, Any]) -> str:
    return str(field.get("$ref", "")).rsplit("/", 1)[-1]


def _alternatives(field: dict[str, Any]) -> Iterator[dict[str, Any]]:
    options = field.get("anyOf") or field.get("oneOf")
    if isinstance(values := field.get("additionalProperties"), dict):  # a mapping whose values are sections
        options = [values]
    if not options:
        yield field
    for option in options or []:
        yield from _alternatives(option)


def _titles(properties: dict[str, Any], definitions: dict[str, Any], above: str = "") -> dict[str, str]:
    """Every section below some keys, in the order in which a reader meets it -> its title: `data`, `data.prepare`, and
    `optimizer: adamw` where one of several is chosen by name."""
    titles: dict[str, str] = {}
    for key, field in properties.items():
        for name in map(_name, _alternatives(field)):
            if name not in definitions or name in titles:
                continue
            below = definitions[name]["properties"]
            chosen = next((below[word]["const"] for word in ("name", "kind") if "const" in below.get(word, {})), "")
            titles[name] = f"{above}{key}{f': {chosen}' if chosen else ''}"
            titles |= _titles(below, definitions, f"{above}{key}.")
    return titles


# -- sources of data ---------------------------------------------------------------------------------------------------


def sources() -> str:
    """Every source of `distdl data prepare`, as `distdl data sources` tells them."""
    parts = [
        "# Sources of data\n\n`distdl data prepare SOURCE PATH key=value …` writes a data set; `data.prepare` of a config "
        "does the same before a run ([your own data](../own_data.md)). `distdl data sources` lists them, and `distdl data "
        "prepare SOURCE --help` tells the options of one."
    ]
    for source in entries():
        parts.append(_source(source))
    return "\n\n".join(parts) + "\n"


def _source(source: Entry) -> str:
    rows = ["| option | type | default | |", "|---|---|---|---|"]
    for option in source.options:
        default = "*must be given*" if option.default is None else fields.code(default_in_words(option.default))
        kind = fields.cell(kind_in_words(option.kind))
        rows.append(f"| `{option.name}` | {kind} | {default} | {fields.cell(option.text)} |")
    table = "\n".join(rows) if source.options else "No options."
    columns = f"Writes: {fields.cell(source.writes)}" if source.writes else ""
    about = f"*{source.group}*: {fields.docstring(source.about)}"
    return "\n\n".join(filter(None, [f"## {source.name}", about, columns, table]))


# -- Python ------------------------------------------------------------------------------------------------------------


def python() -> str:
    """The Python interface; Sphinx takes it from the docstrings."""
    parts = [
        "# Python, by name\n\nWhat a program may call, and what a [family of your own](../custom_family.md) may use."
    ]
    offered = getattr(distdl, "__all__", ())
    rooms = [name for name in offered if importlib.util.find_spec(f"distdl.{name}")]  # a verb and a package of one name
    for title, module in PYTHON.items():
        parts.append(f"## {title}\n\n```{{eval-rst}}\n.. automodule:: {module}{IMPORTED.get(module, '')}\n```")
        if module == "distdl":
            parts += [f"```{{eval-rst}}\n.. autofunction:: distdl.api.{name}\n```" for name in rooms]
    return "\n\n".join(parts) + "\n"
