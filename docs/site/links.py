"""Links between files of the repository, and where they lead in the site.

A page is written to be read in the repository, too: it links to `../CONTRIBUTING.md` or `../configs/x.yaml`. In the site
the former is a page and the latter a file beside it. A link to what is not there stays as it is, and Sphinx refuses it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

PAGES = {  # the repository's own pages -> their place in the site
    "README.md": "index.md",
    "launch/README.md": "launch.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/results/acceptance.md": "results/acceptance.md",
    "benchmarks/results/parity.md": "results/parity.md",
    "benchmarks/results/export.md": "results/export.md",
    "benchmarks/results/mutants.md": "results/mutants.md",
    "benchmarks/results/found.md": "results/found.md",
    "benchmarks/results/overhead.md": "results/overhead.md",
    "benchmarks/results/overhead_ranks.md": "results/overhead_ranks.md",
    "benchmarks/results/step.md": "results/step.md",
    "benchmarks/results/step_beside.md": "results/step_beside.md",
    "benchmarks/results/suite.md": "results/suite.md",
    "benchmarks/results/verify_again.md": "results/verify_again.md",
    "benchmarks/results/tables.md": "results/tables.md",
    "benchmarks/results/data_sources.md": "results/data_sources.md",
    "benchmarks/results/startup.md": "results/startup.md",
    "benchmarks/results/serve.md": "results/serve.md",
    "benchmarks/results/tune.md": "results/tune.md",
    "benchmarks/results/predict.md": "results/predict.md",
    "benchmarks/results/checkpoint.md": "results/checkpoint.md",
    "benchmarks/results/kernels.md": "results/kernels.md",
    "benchmarks/results/gradient_error.md": "results/gradient_error.md",
}
ASSETS = "repository"
"""Folder of the site with the repository's files that pages link to."""

LINK = re.compile(r"\]\((?!\w+:)([^)\s]+)\)")
"""Of an inline link to anything but another server: its target."""


def prose(markdown: str) -> Iterator[tuple[bool, str]]:
    """The lines of a page, each with whether it is prose and not within a fence."""
    fence = ""
    for line in markdown.splitlines(keepends=True):
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and (not fence or line.strip() == fence):
            fence = "" if fence else mark[1]
            yield False, line
        else:
            yield not fence, line


def targets(markdown: str) -> list[str]:
    """What a page's inline links lead to."""
    return [target for is_prose, line in prose(markdown) if is_prose for target in LINK.findall(line)]


def for_site(markdown: str, origin: str, place: str, repository: Path) -> tuple[str, set[str]]:
    """A page with its links as the site has them, and the files of the repository that they need.

    `origin`: where the page lies in the repository; `place`: where it lies in the site.
    """
    assets: set[str] = set()

    def moved(match: re.Match[str]) -> str:
        target, hash_, anchor = match[1].partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target)) if target else origin
        if path in PAGES:
            goal = PAGES[path]
        elif path.startswith("docs/"):
            goal = path.removeprefix("docs/")
        elif (repository / path).is_file():
            assets.add(path)
            goal = f"{ASSETS}/{path}"
        else:
            return match[0]
        return f"]({posixpath.relpath(goal, posixpath.dirname(place) or '.')}{hash_}{anchor})"

    lines = [LINK.sub(moved, line) if is_prose else line for is_prose, line in prose(markdown)]
    return "".join(lines), assets
