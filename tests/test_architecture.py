"""The house stays in order: who may import whom, where third parties live, how long things get.

Read from the syntax trees of distdl/, imports inside functions included. The last test runs the same checks on a small
tree that breaks every rule once.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "distdl"

LEVELS = [  # a room may import what stands before it
    {"errors", "metrics", "columns", "files", "page", "trust", "own_process"},
    {"config"},
    {"layout"},
    {"nn"},
    {"learner"},
    {"families"},
    {"plan"},
    {"run"},
    {"parallel"},
    {"engine"},
    {"data"},
    {"track"},
    {"checkpoint"},
    {"ways"},
    {"train"},
    {"jobs"},
    {"runtime"},
    {"parity"},
    {"driver"},
    {"model"},
    {"analyse", "export", "serve", "tune"},
    {"cli", "__main__"},
    {"api"},
]
PLACE = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

THIRD_PARTY = {  # package -> the rooms or files below distdl that may import it
    "pyarrow": ("data",),
    "datasets": ("data.table.hf_table",),
    "deepspeed": (
        *("engine.deepspeed", "engine.deepspeed_import", "engine.nvme", "engine.pipeline", "engine.zero"),
        "engine.zero_step",
    ),
    "mlflow": ("track", "export.mlflow", "export.mlflow_registry", "export.mlflow_served"),
    # Places workers; sends jobs; places replicas; Tune's classes are what a trial is made of.
    "ray": (
        "runtime.ray",
        "runtime.ray_workers",
        "runtime.ray_group",
        "jobs.ray_cluster",
        "serve.on_cluster",
        "serve.replicas",
        "tune.by_ray",
    ),
    "optuna": ("tune.tpe",),
    "transformers": ("families.huggingface", "export.huggingface"),
    "onnx": ("export.onnx",),
    "onnxruntime": ("export.onnx",),
}
HEAVY = {"torch", *THIRD_PARTY}
# Importing these must not import anything heavy, not even through another file of ours.
LIGHT = (
    *("api", "cli", "config", "driver", "errors", "files", "jobs", "model", "plan", "run", "trust"),
    *("train.survey", "data.manifest"),
)
CYCLE_EXCEPTIONS: dict[tuple[str, str], str] = {}

FAMILY_LINES, FILE_LINES, FUNCTION_LINES, PARAMETERS, LOOP_LINES = 250, 400, 60, 8, 79
SIZE_EXCEPTIONS = {  # (kind, place) -> the size it may have, and why
    ("family lines", "families.bert"): (270, "three tasks, each with a question and an answer of its own"),
    ("family lines", "families.cvg"): (274, "a grammar and a network, and parses as answers"),
    ("family lines", "families.dnn_am.dnn_am"): (260, "pre-training, alignment and decoding, and words as answers"),
    ("family lines", "families.gpt"): (295, "the choices of Llama, Mistral and Qwen, a field and a sentence each"),
    ("family lines", "families.transformer"): (260, "what is written word by word, in a loop and in a graph"),
    ("parameters", "data.source.BatchSource.__init__"): (
        13,
        "keyword-only numbers of the plan, one by one, so that a stream of samples can be tested without a plan",
    ),
}


@dataclass(frozen=True)
class Import:
    source: str
    """Dotted name of the importing file without `distdl.`; a package's own file is its folder."""
    target: str
    """The same for a file of ours; the name of the distribution for anything else."""
    ours: bool
    top: bool
    """Runs when the file is imported: not inside a function, not for type checkers only."""
    line: int


@dataclass(frozen=True)
class Violation:
    kind: str
    place: str
    text: str


class House:
    """A package's files and what they import."""

    def __init__(self, package: Path) -> None:
        self.files = {self._name(package, path): path for path in sorted(package.rglob("*.py"))}
        self.trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.files.items()}
        self.packages = {name for name, path in self.files.items() if path.name == "__init__.py"}

    @staticmethod
    def _name(package: Path, path: Path) -> str:
        parts = path.relative_to(package).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def imports(self) -> list[Import]:
        return [i for name, tree in self.trees.items() for i in self._of(name, tree, True)]

    def _of(self, name: str, node: ast.AST, top: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _for_types_only(child)
            for target in self._targets(name, child):
                ours = target == "distdl" or target.startswith("distdl.")
                known = target.removeprefix("distdl").removeprefix(".") if ours else target.split(".")[0]
                yield Import(name, known, ours, top, getattr(child, "lineno", 0))
            yield from self._of(name, child, top and not inside)

    def _targets(self, name: str, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["distdl", *name.split(".")]
                here = here[: len(here) - node.level + (name in self.packages)]
                base = ".".join([*here, *([node.module] if node.module else [])])
            for alias in node.names:
                below = f"{base}.{alias.name}"
                yield below if below.removeprefix("distdl.") in self.files else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def room(name: str) -> str:
    return name.split(".")[0]


def within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


# -- the rules ---------------------------------------------------------------------------------------------------------


def check(house: House) -> list[Violation]:
    rules = (
        unknown_rooms,
        upward,
        family_to_family,
        cycles,
        third_parties,
        heavy_when_imported,
        loop_rules,
        one_order,
        sizes,
    )
    return [violation for rule in rules for violation in rule(house)]


def unknown_rooms(house: House) -> Iterator[Violation]:
    for name in house.files:
        if name and room(name) not in PLACE:
            yield Violation("unknown room", name, f"give the room {room(name)!r} its place in LEVELS")


def upward(house: House) -> Iterator[Violation]:
    for i in house.imports:
        if i.ours and i.target and PLACE.get(room(i.source), 99) < PLACE.get(room(i.target), 99):
            yield Violation("upward", i.source, f"line {i.line} imports {i.target}, which lies above it")


def family_to_family(house: House) -> Iterator[Violation]:
    """Files of one family's folder may import each other."""
    for i in house.imports:
        own = ".".join(i.source.split(".")[:2])
        if (
            i.ours
            and i.source.startswith("families.")
            and room(i.target) == "families"
            and not within(i.target, (own,))
        ):
            yield Violation("family to family", i.source, f"line {i.line} imports {i.target}")


def cycles(house: House) -> Iterator[Violation]:
    """Between files, and between rooms, imports inside functions included: neither could be read, tested or replaced
    without the other."""
    files: dict[str, set[str]] = {}
    rooms: dict[str, set[str]] = {}
    for i in house.imports:
        if i.ours and i.source != i.target and (i.source, i.target) not in CYCLE_EXCEPTIONS:
            files.setdefault(i.source, set()).add(i.target)
            if room(i.source) != room(i.target):
                rooms.setdefault(room(i.source), set()).add(room(i.target))
    for graph, what in ((files, "files"), (rooms, "rooms")):
        for node in sorted(graph):
            if (path := _way_back(graph, node)) and node == min(path):
                yield Violation(f"cycle of {what}", node, " -> ".join([*path, node]))


def _way_back(graph: Mapping[str, set[str]], start: str) -> list[str] | None:
    """The shortest way from `start` to itself."""
    ways, seen = [[start]], set()
    for way in ways:
        for target in sorted(graph.get(way[-1], ())):
            if target == start:
                return way
            if target not in seen:
                seen.add(target)
                ways.append([*way, target])
    return None


def third_parties(house: House) -> Iterator[Violation]:
    for i in house.imports:
        if not i.ours and i.target in THIRD_PARTY and not within(i.source, THIRD_PARTY[i.target]):
            allowed = " and ".join(THIRD_PARTY[i.target])
            yield Violation("third party", i.source, f"line {i.line} imports {i.target}; only {allowed} may")


def heavy_when_imported(house: House) -> Iterator[Violation]:
    tops: dict[str, list[Import]] = {}
    for i in house.imports:
        if i.top:
            tops.setdefault(i.source, []).append(i)
    for name in house.files:
        if not within(name, LIGHT):
            continue
        way, ways = [name], {name: [name]}
        for at in way:  # grows
            parents = [".".join(at.split(".")[:n]) for n in range(1, at.count(".") + 1)]
            ours = [i.target for i in tops.get(at, []) if i.ours] + parents
            for i in tops.get(at, []):
                if not i.ours and i.target in HEAVY:
                    yield Violation("heavy import", name, f"importing it imports {i.target}: {' -> '.join(ways[at])}")
            for target in ours:
                if target not in ways:
                    ways[target] = [*ways[at], target]
                    way.append(target)


def loop_rules(house: House) -> Iterator[Violation]:
    """`train/loop.py` asks nothing about what it runs, and stays short."""
    tree, lines = house.trees["train.loop"], 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ("isinstance", "issubclass", "type", "hasattr"):
            yield Violation("loop asks", "train.loop", f"line {node.lineno} uses {node.id}")
        if isinstance(node, ast.If | ast.IfExp | ast.While | ast.comprehension | ast.Match):
            tests = node.ifs if isinstance(node, ast.comprehension) else [getattr(node, "test", None) or node.subject]
            for word in ("family", "distributed", "world", "rank", "is_initialized", "device"):
                if any(word in ast.unparse(test) for test in tests):
                    yield Violation("loop asks", "train.loop", f"line {tests[0].lineno} asks about {word}")
        if isinstance(node, ast.FunctionDef) and node.name in ("train", "evaluate"):
            lines += _lines(node)
    if lines > LOOP_LINES:
        yield Violation("loop length", "train.loop", f"train() and evaluate() have {lines} lines together")


def one_order(house: House) -> Iterator[Violation]:
    """Options that two places allow stand in one order: Python holds `Literal["a", "b"]` and `Literal["b", "a"]` for
    equal, and `Annotated` then gives whichever it was shown first, so a message would depend on what was imported."""
    orders: dict[frozenset[str], tuple[list[str], str]] = {}
    for name, tree in house.trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value).split(".")[-1] == "Literal":
                parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
                options = [ast.unparse(part) for part in parts]
                first, where = orders.setdefault(frozenset(options), (options, f"{name}:{node.lineno}"))
                if options != first:
                    yield Violation("two orders", name, f"line {node.lineno} has {options}, {where} has {first}")


def sizes(house: House) -> Iterator[Violation]:
    for kind, place, size, guide in measure(house):
        allowed, _ = SIZE_EXCEPTIONS.get((kind, place), (guide, ""))
        if size > max(allowed, guide):
            yield Violation(kind, place, f"{size} {kind}, the guide is {guide}")


def measure(house: House) -> Iterator[tuple[str, str, int, int]]:
    """(kind, place, size, guide) of every file, function and constructor."""
    for name, tree in house.trees.items():
        lines = len(house.files[name].read_text(encoding="utf-8").splitlines())
        below = name.split(".")[1:]
        family = name.startswith("families.") and below[-1] == below[0]  # not what else lies in a family's folder
        yield ("family lines", name, lines, FAMILY_LINES) if family else ("file lines", name, lines, FILE_LINES)
        for above, function in _functions(tree, name):
            yield "function lines", f"{above}.{function.name}", _lines(function), FUNCTION_LINES
            if function.name == "__init__":
                a = function.args
                count = len(a.posonlyargs + a.args + a.kwonlyargs) + bool(a.vararg) + bool(a.kwarg) - 1
                yield "parameters", f"{above}.__init__", count, PARAMETERS


def _functions(node: ast.AST, above: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        inner = above
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield above, child
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{above}.{child.name}"
        yield from _functions(child, inner)


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


# -- the tests ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def house() -> House:
    return House(PACKAGE)


def test_the_house_is_in_order(house: House) -> None:
    assert [f"{v.kind}: {v.place}: {v.text}" for v in check(house)] == []


def test_every_room_says_what_it_is_for(house: House) -> None:
    """But the folder of a family, whose file does."""
    rooms = [name for name in house.packages if name and not name.startswith("families.")]
    assert len(rooms) > 20
    assert [name for name in rooms if not ast.get_docstring(house.trees[name])] == []


def test_the_import_graph_is_really_read(house: House) -> None:
    """A checker that sees no imports would pass everything."""
    edges = {(i.source, i.target, i.top) for i in house.imports}
    assert {
        ("train.worker", "train.loop", True),
        ("train.worker", "engine.deepspeed", False),
        ("engine.deepspeed", "deepspeed", False),
        ("engine.base", "engine.nonfinite", True),  # `from distdl.engine import nonfinite` names a file
        ("families.gpt", "torch", True),
        ("metrics", "torch", False),  # for type checkers only
    } <= edges
    rooms = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert {room(name) for name in house.files} - {""} == rooms - {"__init__", "__pycache__"}


def test_every_exception_is_needed_and_has_a_reason(house: House) -> None:
    edges = {(i.source, i.target) for i in house.imports}
    for edge, reason in CYCLE_EXCEPTIONS.items():
        assert edge in edges, f"{edge} is no longer imported: remove its exception"
        assert len(reason) > 20
    found = {(kind, place): (size, guide) for kind, place, size, guide in measure(house)}
    for key, (allowed, reason) in SIZE_EXCEPTIONS.items():
        size, guide = found[key]
        assert guide < size <= allowed, f"{key} has the size {size}: lower or remove its exception"
        assert len(reason) > 20


ONE_OF_EACH = {
    "__init__": "",
    "errors": "def f():\n    from distdl.plan import plan\n",
    "plan/plan": "from distdl.learner.learner import Learner\n",
    "learner/learner": "import torch\n",
    "nn/noise": "import torch\n",
    "families/one": "from distdl.families.two import Two\nx: typing.Literal['a', 'b']\n",
    "families/two": "x = 1\n" * 251 + "y: Literal['b', 'a']\n",
    "families/both/both": "from distdl.families.both import parts\nfrom distdl.families import two\n",
    "families/both/parts": "",
    "data/read": "import pyarrow\nfrom ..track import spool\n",
    "track/spool": "from distdl.data.read import x\n",
    "track/store": "x = 1\n" * 401,
    "engine/base": "import importlib\n\ndef f():\n    importlib.import_module('mlflow')\n",
    "engine/deepspeed": "import deepspeed\n",
    "engine/torch": "class E:\n    def __init__(self, a, b, c, d, e, f, g, h=1, *, i=2):\n        pass\n",
    "train/hooks/log": "def f():\n    from pyarrow import fs\n",
    "train/hooks/deep": "if 1:\n    import deepspeed.ops\n",
    "checkpoint/save": "def long():\n" + "    pass\n" * 60,
    "runtime/ray": "import ray\n",
    "runtime/local": "import ray.train\n",
    "train/survey": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n",
    "cli/train": "import torch\n",
    "odd": "",
    "train/loop": (
        "def train(learner, engine):\n    if isinstance(learner, str):\n        pass\n"
        "    x = 1 if engine.family == 'gan' else 2\n    while engine.distributed:\n        pass\n" + "    x = 1\n" * 60
    )
    + "def evaluate(x):\n"
    + "    x = 1\n" * 30,
}


def test_the_checker_finds_one_of_each(tmp_path: Path) -> None:
    for name, source in ONE_OF_EACH.items():
        path = tmp_path / "distdl" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    found = {(v.kind, v.place, v.text) for v in check(House(tmp_path / "distdl"))}
    assert {(kind, place) for kind, place, _ in found} == {
        ("unknown room", "odd"),
        ("upward", "errors"),
        ("upward", "data.read"),
        ("family to family", "families.one"),
        ("family to family", "families.both.both"),
        ("family lines", "families.two"),
        ("cycle of files", "data.read"),
        ("cycle of rooms", "data"),
        ("file lines", "track.store"),
        ("third party", "engine.base"),
        ("third party", "train.hooks.log"),
        ("third party", "train.hooks.deep"),
        ("third party", "runtime.local"),
        ("parameters", "engine.torch.E.__init__"),
        ("function lines", "checkpoint.save.long"),
        ("function lines", "train.loop.train"),
        ("heavy import", "plan.plan"),
        ("heavy import", "cli.train"),
        ("loop asks", "train.loop"),
        ("loop length", "train.loop"),
        ("two orders", "families.two"),
    }
    texts = {text for _, _, text in found}
    assert "importing it imports torch: plan.plan -> learner.learner" in texts
    assert "data -> track -> data" in texts and "data.read -> track.spool -> data.read" in texts
    assert [text for kind, place, text in found if place == "families.both.both"] == ["line 2 imports families.two"]
    assert {"line 2 uses isinstance", "line 4 asks about family", "line 5 asks about distributed"} <= texts
