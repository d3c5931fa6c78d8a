"""Which families there are and what their `model:` section may say, without importing torch.

The folder `families/` is the registry: `families/mlp.py` is the family `mlp`. A family of the user's own is named by its
file, `./my_family.py` beside the config, or by its module, `package.module`. Its `Config` dataclass is the only schema of
the section. A config must be checked in well under a second, and importing a family imports torch (2 s), so the class is
read from the file's syntax tree and compiled alone; its annotations may use builtins, `typing`, pydantic's `Field`, the
types of fields.py and the marks of marks.py. Where it is more than such annotations and plain values, compiling it runs
code, which a stranger's run needs a yes for (trust.py). A test compares the result with the class of the imported module.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import itertools
import os
import re
import traceback
import typing
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import pydantic

from distdl import trust
from distdl.config import fields
from distdl.config.marks import INVISIBLE, TRAINING_ONLY, Mark
from distdl.errors import InputError, did_you_mean, nearest

FOLDER = Path(__file__).parent.parent / "families"
FACTS = FOLDER / "facts.json"
"""What `distdl families` tells of each; `python -m tests.families.test_facts` writes it."""
DOCS = "docs/custom_family.md"
FIELDS = {name: getattr(fields, name) for name in fields.__all__}
"""The types that a Config may take from `fields`."""


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

    def marked(self, mark: Mark) -> frozenset[str]:
        """The fields that are declared with this mark."""
        return frozenset(field.name for field in dataclasses.fields(self.config) if _has(field.type, mark))

    @property
    def adapter(self) -> pydantic.TypeAdapter[Any]:
        """Validates a mapping into the dataclass: no unknown keys, no silent conversion."""
        return _adapter(self.config)


def _has(annotation: Any, mark: Mark) -> bool:
    """Whether a type or a part of it is annotated with this mark."""
    return any(part is mark or _has(part, mark) for part in typing.get_args(annotation))


def family_names() -> list[str]:
    """The families of `families/`, sorted by name."""
    return sorted(_files())


@cache
def _files() -> dict[str, Path]:
    """Family -> its file: `NAME.py`, or `NAME/NAME.py` where a family needs more than one. Looked for once a process: each
    config asks dozens of times."""
    alone = [path for path in FOLDER.glob("*.py") if not path.stem.startswith("_")]
    return {path.stem: path for path in (*alone, *(p for p in FOLDER.glob("*/*.py") if p.stem == p.parent.name))}


def summary_of(name: str) -> str:
    """First line of a family's docstring, without parsing what follows it."""
    text = _files()[name].read_text(encoding="utf-8")
    _, _, rest = text.partition('"""')
    return rest.partition('"""')[0].partition("\n")[0].strip()


# -- names of families -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FamilyName:
    """A family as a config names it: one of ours by its name, the user's own by its file or by its module.

    The one place that knows which of the three it is, and where its code lies.
    """

    text: str
    """What `model.family` says."""

    @property
    def file(self) -> Path | None:
        """The file that names it; None where a name or a module does."""
        return Path(self.text) if self.text.endswith(".py") else None

    @property
    def own(self) -> bool:
        """Whether it is the user's own: `./my_family.py` or `package.module`."""
        return self.file is not None or re.fullmatch(r"\w+(\.\w+)+", self.text) is not None

    @property
    def label(self) -> str:
        """The name without a place: `my_family`."""
        return self.file.stem if self.file else self.text

    @property
    def module(self) -> str:
        """The dotted name of the module that one of distdl's families, or a user's installed one, is written in."""
        if self.own:
            return self.text
        below = _files()[self.text].relative_to(FOLDER).with_suffix("")
        return ".".join(("distdl.families", *below.parts))

    @property
    def portable(self) -> FamilyName:
        """The name for what is read elsewhere, beside a copy of the file: `./my_family.py`."""
        return FamilyName(f"./{self.file.name}") if self.file else self

    def beside(self, folder: Path) -> FamilyName:
        """The name with its file in full; `folder` is where the config lies that names it."""
        return FamilyName(os.path.abspath(folder / self.file)) if self.file else self

    def source(self) -> Path:
        """The file that the family is written in. Raises InputError where there is none."""
        if not self.own:
            if self.text in family_names():
                return _files()[self.text]
            raise InputError(f"there is no family {self.text!r}", fix=did_you_mean(self.text, family_names()))
        if self.file:
            if self.file.is_file():
                return self.file
            fix = "the path of a family is relative to the folder of the config that names it"
            raise InputError(f"there is no family file {self.text} on {os.uname().nodename}", fix=fix)
        spec = _spec(self.text)
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            fix = "install it there, add its folder to PYTHONPATH, or name its file: family: ./my_family.py"
            raise InputError(f"the family's module {self.text} cannot be imported on {os.uname().nodename}", fix=fix)
        return Path(spec.origin)


def portable(model: dict[str, Any]) -> dict[str, Any]:
    """A `model:` section for what is read elsewhere: of its family's file the name alone."""
    return {**model, "family": FamilyName(model["family"]).portable.text}


def module_file(module: str) -> Path | None:
    """Where a module that can be imported is written, found without executing it or its packages; None: it is not there."""
    spec = _spec(module)
    return Path(spec.origin) if spec and spec.origin and spec.has_location else None


def _spec(module: str) -> ModuleSpec | None:
    """Where a module is, found without executing the packages around it."""
    top, *below = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # imported by hand, without a spec
        return None
    for n in range(len(below)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join([top, *below[: n + 1]]), list(spec.submodule_search_locations))
    return spec


# -- schemas -----------------------------------------------------------------------------------------------------------


def family_schema(name: str) -> FamilySchema:
    """The schema of one family. Raises InputError where there is no such family, or its file holds no sound schema."""
    path = FamilyName(name).source()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the family {path} cannot be read: {error}") from None
    return _schema(name, path, text)


@cache
def _schema(name: str, path: Path, text: str) -> FamilySchema:
    try:
        tree = ast.parse(text, filename=str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        raise InputError(f"this is not valid Python: {getattr(error, 'msg', error)}", where=f"{path}:{line}") from None
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Config"), None)
    if node is None:
        fix = f"a frozen dataclass called Config is the schema of its model: section ({DOCS})"
        raise InputError("the family has no class Config", where=str(path), fix=fix)
    _check_imports(tree, node, path)
    if FamilyName(name).own and not _is_plain(node):
        trust.allow(path)
    summary = (ast.get_docstring(tree) or "").split("\n", 1)[0]
    return FamilySchema(name, _compiled(node, path), summary, field_docs(node))


PLAIN_NAMES = frozenset(
    {"dataclass", "Annotated", "Any", "Literal", "Field", "int", "float", "str", "bool", "bytes", "object"}
    | {"tuple", "list", "dict", "set", "frozenset", *FIELDS}
    | {"TRAINING_ONLY", "INVISIBLE"}
)
"""Names that a Config may use and that do nothing by themselves."""


def _check_imports(tree: ast.Module, config: ast.ClassDef, path: Path) -> None:
    """Raises InputError where the file asks fields.py for a type that it has not, or its Config uses the name of one
    without importing it from there: what is read here must be what the file means when it runs."""
    imported = set[str]()
    for line in tree.body:
        if isinstance(line, ast.ImportFrom) and line.module == fields.__name__:
            names = [alias.name for alias in line.names if alias.asname in (None, alias.name)]
            imported |= FIELDS.keys() if "*" in names else set(names)
            for name in sorted({alias.name for alias in line.names} - FIELDS.keys() - {"*"}):
                what, match = f"{fields.__name__} has no type {name!r}", nearest(name, FIELDS)
                fix = f"did you mean '{match}'?" if match else ""
                raise InputError(what, where=f"{path}:{line.lineno}", allowed=", ".join(FIELDS), fix=fix)
    for item in ast.walk(config):
        if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Load) and item.id in FIELDS.keys() - imported:
            fix = f"from {fields.__name__} import {item.id}; a type of your own cannot stand in a Config ({DOCS})"
            raise InputError(f"Config uses {item.id}, which is not imported", where=f"{path}:{item.lineno}", fix=fix)


def _is_plain(node: ast.ClassDef) -> bool:
    """Whether a class is fields and plain values alone, so that compiling it can do nothing: no methods, no attribute of
    anything, no call but of `Field` and `dataclass`, no type that is a text (pydantic would evaluate it)."""
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    rest = [item for item in node.body if not isinstance(item, ast.AnnAssign | ast.Pass)]
    return (
        not (node.bases or node.keywords or getattr(node, "type_params", None))
        and all(_plain_value(item) for item in node.decorator_list)
        and all(isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) for item in rest)
        and all(isinstance(item.target, ast.Name) and item.target.id not in PLAIN_NAMES for item in fields)
        and not any(isinstance(item.target, ast.Name) and item.target.id.startswith("_") for item in fields)
        and all(_plain_type(item.annotation) for item in fields)
        and all(item.value is None or _plain_value(item.value) for item in fields)
    )


def _plain_type(node: ast.expr) -> bool:
    match node:
        case ast.Name():
            return node.id in PLAIN_NAMES
        case ast.Constant():
            return node.value is None or node.value is ...
        case ast.BinOp(op=ast.BitOr()):
            return _plain_type(node.left) and _plain_type(node.right)
        case ast.Tuple():
            return all(map(_plain_type, node.elts))
        case ast.Subscript(value=ast.Name("Literal")):
            return _plain_value(node.slice)
        case ast.Subscript(value=ast.Name("Annotated"), slice=ast.Tuple(elts=[kind, *more])):
            return _plain_type(kind) and all(map(_plain_value, more))
        case ast.Subscript(value=ast.Name()):
            return _plain_type(node.value) and _plain_type(node.slice)
    return False


def _plain_value(node: ast.expr | None) -> bool:
    match node:
        case ast.Constant():
            return True
        case ast.Name():
            return node.id in PLAIN_NAMES
        case ast.UnaryOp(op=ast.USub()):
            return _plain_value(node.operand)
        case ast.Tuple() | ast.List() | ast.Set():
            return all(map(_plain_value, node.elts))
        case ast.Dict():
            return all(map(_plain_value, [*node.keys, *node.values]))
        case ast.Call(func=ast.Name("Field" | "dataclass")):
            return all(map(_plain_value, [*node.args, *(keyword.value for keyword in node.keywords)]))
    return False


def _compiled(node: ast.ClassDef, path: Path) -> type:
    """The class Config, without the rest of its file. Raises InputError where it needs more than the names below."""
    namespace: dict[str, Any] = {
        "dataclass": dataclasses.dataclass,
        "Annotated": typing.Annotated,
        "Any": Any,
        "Literal": typing.Literal,
        "Field": pydantic.Field,
        **FIELDS,
        "TRAINING_ONLY": TRAINING_ONLY,
        "INVISIBLE": INVISIBLE,
        "__name__": __name__,  # dataclasses look their module up
    }
    try:
        compiled = compile(
            ast.Module([node], []), str(path), "exec", dont_inherit=True
        )  # annotations become real types
        exec(compiled, namespace)  # our own source file, one that the user trains, or plain fields: never other input
        config = namespace["Config"]
        if not getattr(getattr(config, "__dataclass_params__", None), "frozen", False):
            raise InputError("Config is not a frozen dataclass", where=f"{path}:{node.lineno}", fix=f"see {DOCS}")
        _adapter(config)
    except (InputError, KeyboardInterrupt):
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        known = (
            f"builtins, dataclass, Annotated, Any, Literal, pydantic's Field, {', '.join(FIELDS)} of {fields.__name__}"
        )
        allowed = f"{known} and the marks of distdl.config.marks: it is read without the imports"
        what = f"Config cannot be read: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise InputError(what, where=f"{path}:{(lines or [node.lineno])[-1]}", allowed=allowed) from None
    return config


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
