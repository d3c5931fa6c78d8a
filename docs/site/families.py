"""One page a family, from its file, its configs and its results: nothing on it is written by hand.

Read by the schema compiler that checks configs, and from the syntax tree, so that torch is not imported.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import fields
import yaml

import distdl
from distdl.config import family

PACKAGE = Path(distdl.__file__).parent
LEARNER = PACKAGE / "learner" / "learner.py"
FACTS = ("learns", "players", "layouts")
"""Attributes of a learner's class that its page tells."""


def pages(repository: Path) -> dict[str, str]:
    """Place in the site -> Markdown, by the families' names."""
    configs: dict[str, list[Path]] = {}
    for path in sorted((repository / "configs").rglob("*.yaml")):
        configs.setdefault(yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["family"], []).append(path)
    results = (repository / "benchmarks" / "results" / "acceptance.md").read_text(encoding="utf-8").splitlines()
    return {
        f"families/{name}.md": page(name, configs.get(name, []), results, repository) for name in family.family_names()
    }


def linked(table: str) -> str:
    """The table of families with each name leading to its page."""
    return re.sub(r"^\| `(\w+)` \|", r"| [`\1`](families/\1.md) |", table, flags=re.MULTILINE)


def page(name: str, configs: list[Path], results: list[str], repository: Path) -> str:
    """The page of one family."""
    files = source_files(name)
    about = ast.get_docstring(parsed(files[0])) or ""
    told = facts(name)
    layouts = ", ".join(f"`{layout}`" for layout in sorted(told["layouts"]))
    players = ", ".join(f"`{player}`" for player in told["players"]) or "none: the network learns as one"
    parts = [
        f"# {name}\n\n{fields.docstring(about)}",
        f"| | |\n|---|---|\n| learns by | {fields.cell(told['learns'])} |\n| players | {players} |\n"
        f"| proven on | {layouts} |\n"
        f"| written in | {', '.join(f'`{path.relative_to(repository)}`' for path in files)} |",
        "The words are those of [the first page](../index.md#how-it-flows); [layouts](../layouts.md) tells what is proven.",
        "## Fields of `model:`",
        fields.table(schema(name)),
        "## On real data",
        acceptance(name, results),
        "## Configs",
    ]
    for path in configs:
        parts.append(f"`{path.relative_to(repository)}`\n\n```yaml\n{path.read_text(encoding='utf-8').rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def source_files(name: str) -> list[Path]:
    """The files that a family is written in, that of its learner first."""
    first = family.FamilyName(name).source()
    beside = sorted(first.parent.glob("[!_]*.py")) if first.parent != family.FOLDER else []
    return [first, *(path for path in beside if path != first)]


def facts(name: str) -> dict[str, Any]:
    """The attributes of FACTS that the learner's class has: its own, those of a class that several families share, or those
    that every learner begins with."""
    told = _of_class(LEARNER, "Learner")
    for path in source_files(name):
        for item in parsed(path).body:
            if isinstance(item, ast.ClassDef):
                told |= _of_class(path, item.name)
    return told


def _of_class(path: Path, name: str) -> dict[str, Any]:
    """What a class of a file assigns, and before it what its bases do, where those are distdl's own."""
    tree = parsed(path)
    homes = {item.name: path for item in tree.body if isinstance(item, ast.ClassDef)}
    for item in tree.body:
        if isinstance(item, ast.ImportFrom) and (item.module or "").startswith("distdl."):
            home = PACKAGE.parent.joinpath(*str(item.module).split(".")).with_suffix(".py")
            homes |= {alias.asname or alias.name: home for alias in item.names if home.is_file()}
    told: dict[str, Any] = {}
    for item in tree.body:
        if isinstance(item, ast.ClassDef) and item.name == name:
            for base in item.bases:
                if isinstance(base, ast.Name) and base.id in homes:
                    told |= _of_class(homes[base.id], base.id)
            told |= dict(filter(None, map(_fact, item.body)))
    return told


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def _fact(item: ast.stmt) -> tuple[str, Any] | None:
    """Name and value of an assignment `layouts = frozenset({...})`, `learns = "..."`."""
    targets = item.targets if isinstance(item, ast.Assign) else [item.target] if isinstance(item, ast.AnnAssign) else []
    value = getattr(item, "value", None)
    if len(targets) != 1 or not isinstance(targets[0], ast.Name) or targets[0].id not in FACTS or value is None:
        return None
    return targets[0].id, ast.literal_eval(value.args[0] if isinstance(value, ast.Call) else value)


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema of the family's `model:` section, with the sentence under each field."""
    told = family.family_schema(name)
    shape = told.adapter.json_schema()
    for key, text in told.docs.items():
        shape["properties"][key]["description"] = text
    return {**shape, "properties": {"family": {"const": name, "description": "This family."}, **shape["properties"]}}


def acceptance(name: str, results: list[str]) -> str:
    """The rows of the table of results that are this family's."""
    head = next(i for i, line in enumerate(results) if line.startswith("| family |"))
    rows = [line for line in results[head:] if line.startswith(f"| `{name}` |")]
    return "\n".join([results[head], results[head + 1], *rows, "", "[How it was measured](../results/acceptance.md)."])
