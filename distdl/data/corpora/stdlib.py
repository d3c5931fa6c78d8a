"""The Python standard library of this machine as a corpus of bytes: megabytes of real text that need no download."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distdl.data.raw import BYTE_INFO, Prepared, Rows, pack_bytes, token_columns
from distdl.data.split_rules import SPLITS
from distdl.data.splits import SplitOptions, check_files, split_files

LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}  # not the library itself


@dataclass(frozen=True)
class Options(SplitOptions):
    """Options of the source `stdlib`."""

    context: int = 128
    """Bytes that a row predicts; a row holds one more."""
    max_bytes: int = 0
    """Stop after this many bytes of source files, in the order of their paths; 0 takes all."""


def prepare(options: Options) -> Prepared:
    """`tokens` uint8 (context + 1,): the .py files in the order of their paths, one after the other."""
    record = check_files(options)
    return Prepared(token_columns(options.context), _chunks(options), {**BYTE_INFO, "split": record})


def _files() -> tuple[Path, list[str]]:
    """The library's folder, and the paths of its files below it in their order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if not LEFT_OUT.intersection(path.relative_to(root).parts)
    )
    return root, names


def documented() -> Iterator[tuple[str, str, str]]:
    """Of every function of the library that says what it does: where it is, its head, and the first paragraph of that."""
    root, names = _files()
    for name in names:
        for node in ast.walk(ast.parse((root / name).read_bytes())):
            if isinstance(node, ast.FunctionDef) and (told := (ast.get_docstring(node) or "").split("\n\n")[0].strip()):
                yield f"{name}:{node.lineno}", f"{node.name}({ast.unparse(node.args)})", told


def _chunks(options: Options) -> Iterator[tuple[str, Rows]]:
    root, names = _files()
    taken: dict[str, int] = {}
    left = options.max_bytes or float("inf")
    for name in names:
        size_bytes = int(min(left, (root / name).stat().st_size))
        left -= size_bytes
        if size_bytes:
            taken[name] = size_bytes
    of_file = split_files(list(taken), options)
    for split in SPLITS:
        files = [name for name in taken if of_file[name] == split]
        for rows in pack_bytes(((root / name).read_bytes()[: taken[name]] for name in files), options.context):
            yield split, rows
