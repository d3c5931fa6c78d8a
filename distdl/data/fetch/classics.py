"""The classic data sets that `distdl data fetch` knows, as `classics.yaml` has them: where they lie, what their bytes are,
and what prepares them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from distdl.errors import InputError, did_you_mean

CATALOGUE = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True)
class File:
    """A file as it is published."""

    name: str
    urls: tuple[str, ...]
    """Where it lies, the first one asked first."""
    kind: str
    """sha256, or md5 where that alone is published."""
    checksum: str
    bytes: int = 0
    """0: that is not published."""


@dataclass(frozen=True)
class Unpack:
    """Files of an archive, which then is not kept."""

    archive: str
    endings: tuple[str, ...]
    below: str = ""
    """The folder in the archive whose files are taken; '' for all."""
    into: str = ""
    """The folder that they come to."""
    without: tuple[str, ...] = ()
    """Folders below it that are left out."""


@dataclass(frozen=True)
class Mend:
    """A file of text whose form no reader expects, written anew line by line; the published one is not kept."""

    file: str
    into: str
    skip_lines: int = 0
    strip: str = ""
    """What is taken from the end of each line."""


@dataclass(frozen=True)
class Classic:
    """A data set."""

    name: str
    about: str
    licence: str
    page: str
    """Where it is described."""
    said_by: str
    """Who published the checksums."""
    files: tuple[File, ...]
    source: str
    """What prepares it."""
    options: Mapping[str, Any]
    """How; `{dir}` stands for its folder."""
    steps: tuple[Unpack | Mend, ...] = ()
    note: str = ""

    @property
    def bytes(self) -> int:
        """Of the download, as far as that is published."""
        return sum(file.bytes for file in self.files)

    def options_in(self, folder: str) -> dict[str, str]:
        """The options that prepare it from a folder."""
        return {key: str(value).replace("{dir}", folder) for key, value in self.options.items()}


@cache
def classics() -> tuple[Classic, ...]:
    """All of them."""
    import yaml

    raw = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    return tuple(_classic(name, record) for name, record in raw.items())


def find(name: str) -> Classic:
    """The data set of that name, whatever its case and with - or _. InputError names the nearest."""
    wanted = name.lower().replace("-", "_")
    known = {classic.name: classic for classic in classics()}
    if wanted not in known:
        fix = f"{did_you_mean(wanted, known)}; `distdl data fetch --list` tells of all"
        raise InputError(f"there is no data set '{name}' to fetch", fix=fix)
    return known[wanted]


def _classic(name: str, record: dict[str, Any]) -> Classic:
    folders = record.pop("at", ())
    files = tuple(_file(raw, folders) for raw in record.pop("files"))
    steps = tuple(_step(*next(iter(step.items()))) for step in record.pop("steps", ()))
    return Classic(name, files=files, steps=steps, source=record.pop("prepare"), **record)


def _file(raw: dict[str, Any], folders: list[str]) -> File:
    urls = tuple(raw.get("at") or (folder + raw["name"] for folder in folders))
    kind = "sha256" if "sha256" in raw else "md5"
    return File(raw["name"], urls, kind, raw[kind], raw.get("bytes", 0))


def _step(kind: str, raw: dict[str, Any]) -> Unpack | Mend:
    known = {"unpack": Unpack, "mend": Mend}[kind]
    step: Unpack | Mend = known(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    )
    return step
