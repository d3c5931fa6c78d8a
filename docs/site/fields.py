"""A JSON Schema's fields as a table: key, type, default, the sentence under the field."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

LARGEST = 2**53
"""Bounds beyond it say what a machine can hold, which nobody needs to read."""
UNITS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}


def table(schema: Mapping[str, Any], titles: Mapping[str, str] | None = None) -> str:
    """Every field of an object. `titles`: definition -> the heading of this page below which it is described."""
    required = set(schema.get("required", ()))
    rows = ["| key | type | default | |", "|---|---|---|---|"]
    for key, field in schema.get("properties", {}).items():
        default = _default(field) if key not in required else "*must be given*"
        rows.append(f"| `{key}` | {kind(field, titles or {})} | {default} | {cell(field.get('description', ''))} |")
    return "\n".join(rows) + "\n"


def _default(field: Mapping[str, Any]) -> str:
    """The value that a field has by itself; a section has those of its own table."""
    if isinstance(field.get("default"), dict) and field["default"]:
        return code(field["default"]["name"]) if "name" in field["default"] else ""
    return code(json.dumps(field["default"])) if "default" in field else ""


def kind(field: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """What a field may hold, in words."""
    if "$ref" in field:
        title = titles[field["$ref"].rsplit("/", 1)[-1]]
        return f"[{title.rpartition(': ')[2]}](#{anchor(title)})"
    for alternatives in ("anyOf", "oneOf"):
        if alternatives in field:
            return " or ".join(dict.fromkeys(kind(option, titles) for option in field[alternatives]))
    if "const" in field or "enum" in field:
        return ", ".join(code(value) for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        if "prefixItems" in field:
            inner = ", ".join(kind(item, titles) for item in field["prefixItems"])
            return f"[{inner}]".replace("|", "\\|")
        return f"list of {kind(field.get('items', {}), titles)}"
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        return f"mapping of {kind(values, titles)}" if isinstance(values, dict) and "$ref" in values else "mapping"
    return cell(UNITS.get(field.get("type", ""), "anything") + _bounds(field))


def _bounds(field: Mapping[str, Any]) -> str:
    words = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    told = [f"{sign} {field[key]:g}" for key, sign in words.items() if key in field and abs(field[key]) < LARGEST]
    return f" {', '.join(told)}" if told else ""


def code(value: object) -> str:
    """A value in a cell, as it is written in the YAML."""
    text = str(value).replace("|", "\\|")
    return f"`{text}`" if text else '`""`'


def cell(text: str) -> str:
    """A sentence in a cell: nothing in it may end the cell."""
    return escaped(" ".join(text.split()).replace("|", "\\|"))


def escaped(text: str) -> str:
    """Prose of which only what is between backticks is more than letters: no HTML, no emphasis."""
    parts = text.split("`")
    return "`".join(part if i % 2 else part.replace("<", "&lt;").replace("*", "\\*") for i, part in enumerate(parts))


def docstring(text: str) -> str:
    """What a file says of itself: prose, and formulas, which are indented and stay as they are written."""
    return "\n".join(line if line.startswith("    ") else escaped(line) for line in text.splitlines())


def anchor(title: str) -> str:
    """What a link to a heading is called, as GitHub and the site have it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
