"""The documentation: links lead somewhere, and what is generated tells what the code says, without importing torch."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import distdl
from distdl.config.family import family_names, family_schema
from distdl.families import load_family
from tests.conftest import REPOSITORY, python
from tests.test_architecture import LEVELS, PACKAGE

SITE = REPOSITORY / "docs" / "site"
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "benchmarks").rglob("*.md")),
    REPOSITORY / "launch" / "README.md",
]


@pytest.fixture(scope="module")
def site() -> Iterator[Any]:
    """Imports a file of docs/site, as `build.py` does."""
    sys.path.insert(0, str(SITE))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    sys.path.remove(str(SITE))
    for name in {path.stem for path in SITE.glob("*.py")} - before:
        sys.modules.pop(name, None)


# -- links -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path, site: Any) -> None:
    """Read in the repository, as on GitHub; the site's own links are Sphinx's to check."""
    links = site("links")
    for target in links.targets(page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in headings(path.read_text(encoding="utf-8"), links), f"{page.name}: {target}"


def headings(text: str, links: ModuleType) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    titles = [line.lstrip("#").strip() for is_prose, line in links.prose(text) if is_prose and line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}  # GitHub's way


def test_links_are_those_of_the_site(site: Any) -> None:
    text = (
        "[a](../CONTRIBUTING.md#x) [b](ways.md) [c](#here) [d](../pyproject.toml) [e](https://a.org/b) [f](../no.md)\n"
    )
    fenced = "```\n[a](../CONTRIBUTING.md)\n```\n"
    moved, assets = site("links").for_site(text + fenced, "docs/layouts.md", "layouts.md", REPOSITORY)
    assert moved == (
        "[a](contributing.md#x) [b](ways.md) [c](layouts.md#here) [d](repository/pyproject.toml) "
        "[e](https://a.org/b) [f](../no.md)\n" + fenced
    )
    assert assets == {"pyproject.toml"}


# -- generated pages ---------------------------------------------------------------------------------------------------


def test_every_family_has_a_page_that_tells_what_its_class_says(site: Any) -> None:
    pages = site("families").pages(REPOSITORY)
    assert set(pages) == {f"families/{name}.md" for name in family_names()}
    results = json.loads((REPOSITORY / "benchmarks" / "results" / "acceptance.json").read_text())["cases"]
    for name in family_names():
        text, family, schema = pages[f"families/{name}.md"], load_family(name), family_schema(name)
        assert site("families").facts(name) == {
            "learns": family.learns,
            "players": tuple(family.players),
            "layouts": set(family.layouts),
        }, name
        assert all(f"`{layout}`" in text for layout in family.layouts) and family.learns in text
        for field in dataclasses.fields(schema.config):
            row = rf"^\| `{field.name}` \|.*\| {re.escape(site('fields').cell(schema.docs[field.name]))} \|$"
            assert re.search(row, text, re.MULTILINE), (name, field.name)
        assert text.count(f"\n| `{name}` |") == sum(case["family"] == name for case in results) > 0
        assert schema.summary.split("(")[0].replace("*", "\\*") in text


def test_every_config_is_on_the_page_of_its_family(site: Any) -> None:
    pages = site("families").pages(REPOSITORY)
    paths = list((REPOSITORY / "configs").rglob("*.yaml"))
    for path in paths:
        text = path.read_text(encoding="utf-8")
        page = pages[f"families/{yaml.safe_load(text)['model']['family']}.md"]
        assert f"`{path.relative_to(REPOSITORY)}`" in page and text.rstrip() in page
    assert paths


def test_every_command_option_key_and_source_is_in_the_reference(site: Any) -> None:
    pages = site("reference").pages(REPOSITORY)
    for words, parser, _ in site("reference")._below("distdl", site("reference").make_parser()):
        section = re.search(rf"^##+ {re.escape(words)}\n(.*?)(?=^##|\Z)", pages["reference/commands.md"], re.M | re.S)
        assert section, words
        for action in parser._actions:
            if action.help != argparse.SUPPRESS and action.dest != "help":
                assert all(option in section[1] for option in action.option_strings), (words, action.option_strings)
    schema = site("reference").json_schema()
    sections = [schema, *schema["$defs"].values()]
    for key in (key for section in sections for key in section.get("properties", {})):
        assert f"\n| `{key}` |" in pages["reference/yaml.md"], key
    from distdl.data.prepare import source_module, source_names

    for name in source_names():
        section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", pages["reference/sources.md"], re.M | re.S)
        assert section, name
        for field in dataclasses.fields(source_module(name).Options):
            assert f"| `{field.name}` |" in section[1], (name, field.name)


def test_a_verb_that_is_also_a_package_is_in_the_reference(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sphinx takes `distdl.plan` for the package and leaves it out."""
    monkeypatch.setattr(distdl, "__all__", ["plan", "train_it"], raising=False)
    text = site("reference").python()
    assert ".. autofunction:: distdl.api.plan\n" in text and "train_it" not in text


@pytest.mark.slow
def test_nothing_heavy_is_imported_for_the_generated_pages() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(SITE)!r}); from pathlib import Path; import families, reference\n"
        f"folder = Path({str(REPOSITORY)!r}); families.pages(folder); reference.pages(folder)\n"
        "print([name for name in ('torch', 'ray', 'deepspeed', 'mlflow', 'pyarrow') if name in sys.modules])"
    )
    result = python("-c", script, cwd=REPOSITORY)
    assert result.code == 0 and result.stdout.strip() == "[]", result.stderr


WHOLE = {"index.md": "# A\n\n[b](b.md#here)\n\n```{toctree}\nb.md\n```\n", "b.md": "# B\n\n## Here\n"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Check CHANGES for Sphinx API")  # MyST's, of what Sphinx 11 takes away
@pytest.mark.parametrize(
    ("page", "old", "new", "sound"),
    [
        ("b.md", "", "", True),
        ("index.md", "b.md#here", "c.md", False),
        ("index.md", "#here", "#there", False),
        ("index.md", "\nb.md\n", "\n", False),
    ],
    ids=["sound", "no such page", "no such heading", "a page that nobody names"],
)
def test_a_warning_is_an_error(page: str, old: str, new: str, sound: bool, tmp_path: Path, site: Any) -> None:
    for name, text in WHOLE.items():
        (tmp_path / name).write_text(text.replace(old, new) if name == page and old else text)
    assert (site("build").html(tmp_path, tmp_path / "out") == 0) is sound
    assert not sound or (tmp_path / "out" / "index.html").is_file()


# -- what is written by hand and must follow the code -------------------------------------------------------------------


def test_the_rooms_are_told_in_the_order_in_which_they_may_import() -> None:
    order = [room for level in LEVELS for room in sorted(level) if (PACKAGE / room).is_dir()]
    assert sorted(order) == sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    internals = (REPOSITORY / "docs" / "internals.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)/` \|", internals, re.MULTILINE) == order
    contributing = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (chain,) = re.findall(r"^    (errors, .*?)\n\n", contributing, re.MULTILINE | re.DOTALL)
    assert [room for room in re.findall(r"\w+", chain) if (PACKAGE / room).is_dir()] == order


# -- the project's other papers ----------------------------------------------------------------------------------------


def test_the_version_is_the_same_everywhere() -> None:
    """The newest version of the changelog, with its date, is what a citation names."""
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "version", "date-released", "license"} <= citation.keys()
    changes = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)$", changes, re.MULTILINE)
    assert newest and newest[1] == distdl.__version__ == citation["version"]
    assert newest[2] == str(citation["date-released"])
