"""What a source says of itself, read from its file and not by importing it: its first sentence, what it writes, and its
options, those that it takes over from a base class in whatever module included."""

from __future__ import annotations

import ast
import importlib.util
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from distdl.config.family import field_docs
from distdl.data.prepare import FOLDERS, source_modules
from distdl.errors import InputError, did_you_mean

ABOUT = {
    "formats": "what people's own files are written in",
    "corpora": "collections with a form of their own",
    "generators": "data that a formula or a library makes",
}
"""The folders of sources, in words."""


@dataclass(frozen=True)
class Option:
    """One option of a source."""

    name: str
    kind: str
    """Its type, as it is written in the file."""
    default: str | None
    """As Python writes it; None: it must be given."""
    text: str
    """The sentence under it."""


@dataclass(frozen=True)
class Entry:
    """A source."""

    name: str
    group: str
    """formats, corpora or generators."""
    about: str
    """Its file's docstring."""
    writes: str
    """What its `prepare` says of the columns."""
    options: tuple[Option, ...]

    @property
    def summary(self) -> str:
        """The first line of `about`."""
        return self.about.partition("\n")[0]


def entries() -> list[Entry]:
    """All sources, by group and name."""
    modules = source_modules()
    return [entry(name) for group in FOLDERS for name in sorted(modules) if modules[name].split(".")[-2] == group]


@cache
def entry(name: str) -> Entry:
    """A source of that name. InputError: there is none."""
    modules = source_modules()
    if name not in modules:
        raise InputError(f"there is no source '{name}'", fix=did_you_mean(name, modules))
    tree = _tree(modules[name])
    prepare = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "prepare"), None)
    return Entry(
        name=name,
        group=modules[name].split(".")[-2],
        about=ast.get_docstring(tree) or "",
        writes=(ast.get_docstring(prepare) or "") if prepare else "",
        options=tuple(_options(modules[name], "Options").values()),
    )


def _options(module: str, name: str) -> dict[str, Option]:
    """The fields of a dataclass and of its bases: what must be given first, then its own, then what it takes over."""
    tree = _tree(module)
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if node is None:
        return {}
    taken: dict[str, Option] = {}
    for base in node.bases:
        if isinstance(base, ast.Name):
            taken |= _options(_module_of(tree, base.id, module), base.id)
    own = {option.name: option for option in _own(node, module)}
    merged = {**own, **{key: option for key, option in taken.items() if key not in own}}
    return dict(sorted(merged.items(), key=lambda item: item[1].default is not None))


def _own(node: ast.ClassDef, module: str) -> Iterator[Option]:
    docs = field_docs(node)
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            name = item.target.id
            default = None if item.value is None else _default(item.value, module)
            yield Option(name, ast.unparse(item.annotation), default, " ".join(docs.get(name, "").split()))


def _default(value: ast.expr, module: str) -> str | None:
    """A default as it is written; of `field(default=1, kw_only=True)` what counts, of a constant its value."""
    if isinstance(value, ast.Name):
        return ast.unparse(_constant(value, module))
    if isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] == "field":
        given = {word.arg: word.value for word in value.keywords}
        return _default(given["default"], module) if "default" in given else None
    return ast.unparse(value)


def _constant(name: ast.Name, module: str) -> ast.expr:
    """What a constant is set to, in the file that names it or in the one that it comes from; else its name."""
    where = _module_of(_tree(module), name.id, module)
    for node in _tree(where).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name.id for t in node.targets):
            return node.value
    return name


def _module_of(tree: ast.Module, name: str, here: str) -> str:
    """Where a class that a file names is written: in the file itself, or where it imports it from."""
    for node in tree.body:
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and any(a.name == name and not a.asname for a in node.names)
        ):
            return node.module
    return here


@cache
def _tree(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin, module
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


# -- as text -----------------------------------------------------------------------------------------------------------


def kind_in_words(kind: str) -> str:
    """A type for somebody who writes key=value: `tuple[int, int] | None` is NxN."""
    kind = kind.removesuffix(" | None")
    plain = {"str": "TEXT", "int": "N", "float": "NUMBER", "bool": "true|false"}
    if kind.startswith("Literal["):
        return "|".join(str(part) for part in ast.literal_eval(f"({kind[8:-1]},)"))
    if kind.startswith("tuple["):
        parts = [part.strip() for part in kind[6:-1].split(",")]
        inner = [plain.get(part, part) for part in parts if part != "..."]
        sign = "x" if parts[0] == "int" else ","
        return sign.join([*inner, *(["..."] if "..." in parts else [])])
    return plain.get(kind, kind)


def default_in_words(default: str | None) -> str:
    """A default for somebody who writes key=value."""
    if default is None:
        return "must be given"
    try:
        value = ast.literal_eval(default)
    except (ValueError, SyntaxError):
        return default
    if value is None or value == () or value == "":
        return "none"
    if isinstance(value, tuple):
        return ("x" if isinstance(value[0], int) else ",").join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def described(source: Entry, width: int = 100) -> str:
    """A source for a terminal: what it is, what it writes, every option with its type, its default and its sentence."""
    lines = [source.about]
    if source.writes:
        lines += ["", "writes: " + " ".join(source.writes.split())]
    lines += ["", "options, as key=value:" if source.options else "no options"]
    return "\n".join([*lines, *options_in_words(source.options, width)])


def options_of(module: str) -> tuple[Option, ...]:
    """The options of whatever has some: of the class `Options` of a module."""
    return tuple(_options(module, "Options").values())


def options_in_words(options: tuple[Option, ...], width: int = 100) -> list[str]:
    """Every option with its type, its default and its sentence, as lines."""
    lines = []
    for option in options:
        default = default_in_words(option.default)
        lines.append(
            f"  {option.name}={kind_in_words(option.kind)}" + (f"  ({default})" if option.default is None else "")
        )
        text = option.text + (f" Default: {default}." if option.default is not None else "")
        lines += textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines
