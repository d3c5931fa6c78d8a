"""What `distdl families` tells without torch is what the families say: a table, and how it is renewed.

`python -m tests.families.test_facts` writes distdl/families/facts.json; read its diff.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from distdl.config.family import FACTS, family_names, family_schema, summary_of
from distdl.errors import InputError
from distdl.families import facts_of

OPTIONAL = ("transformers", "torchvision", "PIL")
"""Packages that a family may need and that distdl itself does without."""


def told() -> dict[str, Any]:
    """Family -> facts, with the optional packages that building it asks for."""
    found = {name: facts_of(name) for name in family_names()}
    for name in found:
        for package in OPTIONAL:
            if _fails_without(name, package):
                found[name]["needs"].append(package)
    return found


def _fails_without(name: str, package: str) -> bool:
    hidden = {key: sys.modules.pop(key) for key in list(sys.modules) if key.partition(".")[0] == package}
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        facts_of(name)
    except InputError:
        return True
    finally:
        del sys.modules[package]
        sys.modules.update(hidden)
    return False


def text() -> str:
    rows = [f"  {json.dumps(name)}: {json.dumps(facts)}" for name, facts in told().items()]
    return "{\n" + ",\n".join(rows) + "\n}\n"


def test_the_table_is_that_of_the_families() -> None:
    assert text() == FACTS.read_text(encoding="utf-8"), "renew it: python -m tests.families.test_facts; read the diff"


def test_the_first_line_is_that_of_the_docstring() -> None:
    assert {name: summary_of(name) for name in family_names()} == {n: family_schema(n).summary for n in family_names()}


if __name__ == "__main__":
    FACTS.write_text(text(), encoding="utf-8")
