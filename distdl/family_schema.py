"""Which families there are and what their `model:` section may say, without importing torch.

The folder `families/` is the registry: `families/mlp.py` is the family `mlp`. Its `Config` dataclass is the only schema of
the section. A config must be checked in well under a second, and importing a family imports torch (2 s), so the class is
read from the file's syntax tree and compiled alone; its annotations may use builtins, `typing` and pydantic's `Field`.
A test compares the result with the class that the imported module really has.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import typing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pydantic

FOLDER = Path(__file__).parent / "families"


@dataclass(frozen=True)
class FamilySchema:
    """The `model:` section of one family."""

    name: str
    config: type
    """The family's frozen dataclass, compiled without the rest of the module."""
    summary: str
    """First line of the module's docstring."""
    docs: dict[str, str]
    """Field name -> the sentence under it."""

    @property
    def adapter(self) -> pydantic.TypeAdapter[Any]:
        """Validates a mapping into the dataclass: no unknown keys, no silent conversion."""
        return _adapter(self.config)


def family_names() -> list[str]:
    """All families, sorted by name."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


@cache
def family_schema(name: str) -> FamilySchema:
    """The schema of one family. Raises KeyError where the folder has no such file."""
    path = FOLDER / f"{name}.py"
    if name not in family_names():
        raise KeyError(name)
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Config")
    compiled = compile(ast.Module([node], []), str(path), "exec", dont_inherit=True)  # annotations become real types
    namespace: dict[str, Any] = {
        "dataclass": dataclasses.dataclass,
        "Annotated": typing.Annotated,
        "Any": Any,
        "Literal": typing.Literal,
        "Field": pydantic.Field,
        "__name__": __name__,  # dataclasses look their module up
    }
    exec(compiled, namespace)  # our own source file, never input
    summary = (ast.get_docstring(tree) or "").split("\n", 1)[0]
    return FamilySchema(name, namespace["Config"], summary, field_docs(node))


def field_docs(node: ast.ClassDef) -> dict[str, str]:
    """Field name -> the string literal that follows it in the class body."""
    docs: dict[str, str] = {}
    for field, text in itertools.pairwise(node.body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str):
            docs[field.target.id] = " ".join(text.value.value.split())
    return docs


@cache
def _adapter(config: type) -> pydantic.TypeAdapter[Any]:
    strict = pydantic.ConfigDict(extra="forbid", strict=True)
    return pydantic.TypeAdapter(pydantic.dataclasses.dataclass(config, config=strict, frozen=True))
