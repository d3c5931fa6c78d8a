"""Builds the documentation site: `python docs/site/build.py [FOLDER]`. A warning is an error, and nothing is downloaded.

Gathers the pages of docs/, the repository's own pages (CONTRIBUTING.md ...) and those that are made from the code into a
folder of sources, with the links between them as the site has them, and lets Sphinx make HTML of it. Nothing generated
lies in the tree.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import families
import links
import reference
from sphinx.cmd.build import build_main

SITE = Path(__file__).parent
REPOSITORY = SITE.parents[1]

FIRST = (
    *("first_run", "own_data", "data_sets", "table_files", "predict", "walks", "analyse", "export", "serve", "tune"),
    *("python", "command_line"),
)
THEN = (
    "tables",
    "tracking",
    "pictures_and_sound",
    "columns",
    "text",
    "custom_family",
    "huggingface",
    "ways",
    "layouts",
    "checkpoints",
    "ends",
    "trust",
    "deploy",
    "launch",
)
NAVIGATION = {"Guide": FIRST + THEN, "Families": ("families",), "Reference": (), "Internals": ("internals",)}
"""Caption -> the pages below it, in the order in which a newcomer reads them, where they are there; those that are made
follow. Sphinx refuses a page that no one names."""


def main(arguments: list[str]) -> int:
    """Exit code 0, or 1 where there was a warning."""
    target = Path(arguments[0] if arguments else "dist/site").resolve()
    with tempfile.TemporaryDirectory(prefix="distdl-site-") as folder:
        sources = Path(folder)
        gather(REPOSITORY, sources)
        shutil.rmtree(target, ignore_errors=True)
        code = html(sources, target)
    if code == 0:
        print(f"the documentation is {target / 'index.html'}")
    return code


def html(sources: Path, target: Path) -> int:
    """Makes HTML of a folder of Markdown. Exit code 0, or 1 where Sphinx warned."""
    options = ["-W", "--keep-going", "-q", "-E", "-b", "html", "-c", str(SITE), "-d", str(sources / ".doctrees")]
    return int(build_main([*options, str(sources), str(target)]) != 0)


def gather(repository: Path, sources: Path) -> None:
    """Writes every page of the site into the empty folder `sources`, and the files that they link to."""
    written = {path.name: (f"docs/{path.name}", path.read_text("utf-8")) for path in (repository / "docs").glob("*.md")}
    own = {place: (origin, (repository / origin).read_text("utf-8")) for origin, place in links.PAGES.items()}
    made = {place: ("", text) for place, text in {**families.pages(repository), **reference.pages(repository)}.items()}
    wanted: set[str] = set()
    for place, (origin, text) in {**written, **own, **made}.items():
        if origin:
            text, assets = links.for_site(text, origin, place, repository)
            text = text if text.startswith("# ") else f"# {Path(origin).stem}\n\n{text}"  # a table that a script writes
            wanted |= assets
        if place == "families.md":
            text = families.linked(text) + _contents("", [page for page in made if page.startswith("families/")])
        if place == "index.md":
            text += "".join(_contents(*part) for part in _navigation(list(own), list(made), list(written)).items())
        (sources / place).parent.mkdir(parents=True, exist_ok=True)
        (sources / place).write_text(text, encoding="utf-8")
    shutil.copytree(repository / "docs", sources, ignore=shutil.ignore_patterns("*.md", SITE.name), dirs_exist_ok=True)
    for path in wanted:
        (sources / links.ASSETS / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / path, sources / links.ASSETS / path)


def _navigation(own: list[str], made: list[str], written: list[str]) -> dict[str, list[str]]:
    there = {Path(page).stem for page in (*own, *written)}
    parts = {caption: [f"{name}.md" for name in names if name in there] for caption, names in NAVIGATION.items()}
    parts["Reference"] += [page for page in made if page.startswith("reference/")]
    parts["Internals"] += [page for page in own if page not in ("index.md", *parts["Guide"])]
    return parts


def _contents(caption: str, pages: list[str]) -> str:
    """A hidden table of contents: the sidebar's."""
    return "\n".join(
        ["", "", "```{toctree}", ":hidden:", f":caption: {caption}" if caption else "", "", *pages, "```", ""]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
