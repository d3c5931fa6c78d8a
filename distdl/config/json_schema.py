"""The JSON Schema of configs, with one alternative per family for the `model:` section."""

from __future__ import annotations

from typing import Any

from distdl.config.family import DOCS, FamilySchema, family_names, family_schema
from distdl.config.schema import Config

OWN = r"\.py$|^\w+(\.\w+)+$"
"""What names a family of the user's own."""


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a whole config, for editors to check and complete with."""
    schema = Config.model_json_schema()
    families = [_family(family_schema(name)) for name in family_names()]
    for family in families:
        schema["$defs"].update(family.pop("$defs", {}))
    schema["properties"]["model"] = {
        "description": schema["properties"]["model"].get("description", ""),
        "type": "object",
        "required": ["family"],
        "properties": {"family": {"anyOf": [{"enum": family_names()}, {"pattern": OWN}]}},
        "oneOf": [*families, _own()],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _own() -> dict[str, Any]:
    """The alternative of all families that are not ours: their fields are checked when the file is there."""
    what = "`./my_family.py`, relative to the config, or `package.module`"
    return {
        "title": "a family of your own",
        "description": f"Any other fields are those of its Config ({DOCS}).",
        "properties": {"family": {"type": "string", "pattern": OWN, "description": what}},
        "required": ["family"],
    }


def _family(family: FamilySchema) -> dict[str, Any]:
    schema = family.adapter.json_schema()
    for name, text in family.docs.items():
        schema["properties"][name]["description"] = text
    schema["properties"] = {"family": {"const": family.name}, **schema["properties"]}
    schema["required"] = ["family", *schema.get("required", [])]
    schema["title"], schema["description"] = family.name, family.summary
    schema["additionalProperties"] = False
    return schema
