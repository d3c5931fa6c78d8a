"""What a source says of itself: `distdl data sources`, and the help of one source."""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distdl.data import catalogue
from distdl.data.catalogue import default_in_words, entries, entry, kind_in_words
from distdl.data.prepare import source_module, source_names
from tests.conftest import REPOSITORY, Result, python

Command = Callable[..., Result]


def test_every_option_of_every_source_is_told_as_its_class_has_it() -> None:
    """Those of base classes in other modules, too: read from the files, compared with what Python makes of them."""
    assert sorted(e.name for e in entries()) == source_names()
    for found in entries():
        options = {option.name: option for option in found.options}
        known = {field.name: field for field in dataclasses.fields(source_module(found.name).Options)}
        assert options.keys() == known.keys(), found.name
        for name, option in options.items():
            default = known[name].default
            if default is dataclasses.MISSING:
                assert option.default is None, (found.name, name)
            else:
                assert option.default is not None and ast.literal_eval(option.default) == default, (found.name, name)
            assert option.text.endswith((".", ")")), (found.name, name)
        assert found.summary and found.writes, found.name


def test_a_default_that_is_a_constant_of_another_file_is_told_by_its_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "constants_of_it.py").write_text("WORDS = ('NA', '?')\n")
    (tmp_path / "base_of_it.py").write_text(
        "from constants_of_it import WORDS\nclass Base:\n    na: tuple[str, ...] = WORDS\n    'Words.'\n"
    )
    (tmp_path / "source_of_it.py").write_text(
        "'A source.'\nfrom base_of_it import Base\nMOST = 3\nclass Options(Base):\n    n: int = field(default=MOST)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    options = catalogue._options("source_of_it", "Options")
    assert {name: option.default for name, option in options.items()} == {"n": "3", "na": "('NA', '?')"}


def test_an_option_of_a_base_class_that_was_taken_over_again_has_its_own_default() -> None:
    by_name = {option.name: option for option in entry("idx").options}
    assert by_name["test_fraction"].default == "0.0" and "t10k-" in by_name["test_fraction"].text
    assert {o.name: o for o in entry("csv").options}["test_fraction"].default == "0.1"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("str", "TEXT"),
        ("tuple[int, int] | None", "NxN"),
        ("tuple[str, ...]", "TEXT,..."),
        ("tuple[int, ...]", "Nx..."),
        ("Literal['mean', 'median']", "mean|median"),
        ("bool", "true|false"),
        ("Anything", "Anything"),
    ],
)
def test_types_in_words(kind: str, words: str) -> None:
    assert kind_in_words(kind) == words


def test_defaults_in_words() -> None:
    told = [
        default_in_words(text) for text in (None, "None", "''", "()", "True", "0.1", "('a', 'b')", "(8, 8)", "SIZE")
    ]
    assert told == ["must be given", "none", "none", "none", "true", "0.1", "a,b", "8x8", "SIZE"]


def test_sources_are_listed_in_their_groups(command: Command) -> None:
    code, out, _ = command("data", "sources")
    assert code == 0 and [
        line.partition(":")[0] for line in out.splitlines() if line[:1].islower() and ":" in line
    ] == [
        "formats",
        "corpora",
        "generators",
    ]
    assert all(f"  {name} " in out for name in source_names())
    rows = json.loads(command("data", "sources", "--json").stdout)
    assert {row["name"] for row in rows} == set(source_names())
    one = json.loads(command("data", "sources", "csv", "--json").stdout)
    assert one["group"] == "formats" and {"name", "kind", "default", "text"} == one["options"][0].keys()
    code, _, error = command("data", "sources", "cvs")
    assert code == 2 and "did you mean 'csv'" in error


def test_the_help_of_a_source_has_its_options(command: Command) -> None:
    code, out, _ = command("data", "prepare", "csv", "--help")
    assert code == 0 and out == command("data", "prepare", "csv", "-h").stdout
    for option in entry("csv").options:
        assert f"  {option.name}=" in out and option.text.split()[0] in out
    assert "path=TEXT  (must be given)" in out and "Default: 0.1" in out
    assert command("data", "sources", "csv").stdout.strip() in out
    general = command("data", "prepare", "--help").stdout
    assert "--overwrite" in general and "delimiter" not in general
    code, _, error = command("data", "prepare", "cvs", "--help")
    assert code == 2 and "did you mean 'csv'" in error


def test_nothing_is_imported_to_tell_them() -> None:
    script = (
        "from distdl.cli.main import main; main(['data', 'sources']); import sys; assert 'pyarrow' not in sys.modules"
    )
    assert python("-c", script, cwd=REPOSITORY).code == 0, sys.executable
