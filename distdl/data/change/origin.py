"""A data set that is made of others: how it is written, and where it says that it comes from.

    info["origin"] = {"made_by": "merge", "of": [{"path": "data/a", "fingerprint": "1f…", "rows": {"train": 90}}, ...]}

`source` and `options` of its manifest stay those of the first one, as its rows were prepared so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distdl.data.manifest import FILE_NAME, Manifest, read_manifest
from distdl.data.prepare import sigterm_cleans_up
from distdl.data.progress import Follow, Progress
from distdl.data.raw import Rows
from distdl.data.store import is_remote, remote_file, shown
from distdl.data.write import DatasetWriter, check_target
from distdl.errors import InputError

BAD_ROWS = "bad_rows"
"""Of a manifest's info: what it says of a list that lies beside the shards."""


@dataclass(frozen=True)
class Stored:
    """A data set and where it lies."""

    path: str
    manifest: Manifest

    @property
    def name(self) -> str:
        """For a person."""
        return shown(self.path)

    def record(self) -> dict[str, Any]:
        """What is kept of it."""
        manifest = self.manifest
        rows = {name: split.rows for name, split in manifest.splits.items()}
        kept = {key: manifest.info[key] for key in (BAD_ROWS, "origin") if key in manifest.info}
        return {"path": self.name, "fingerprint": manifest.fingerprint, "rows": rows, **kept}


def stored(path: str) -> Stored:
    """The data set at a path. InputError: there is none."""
    return Stored(path, read_manifest(path))


def is_dataset(path: str) -> bool:
    """Whether a data set lies there."""
    if not is_remote(path):
        return (Path(path) / FILE_NAME).is_file()
    filesystem, inside = remote_file(path, FILE_NAME)
    return bool(filesystem.get_file_info(inside).is_file)


def check_new(target: str, overwrite: bool, sources: Iterable[str]) -> None:
    """InputError where the target is taken, or is what is read."""
    for source in sources:
        same = source.rstrip("/") == target.rstrip("/")
        if same or (
            not is_remote(source) and not is_remote(target) and os.path.realpath(source) == os.path.realpath(target)
        ):
            raise InputError(f"{shown(target)} is what is read", fix="choose another target")
    check_target(target, overwrite)


def written(
    made_by: str,
    target: str,
    of: list[Stored],
    rows: Iterable[tuple[str, Rows]],
    info: Mapping[str, Any],
    *,
    overwrite: bool = False,
    follow: Follow | None = None,
) -> Manifest:
    """Writes pairs of a split and some of its rows as a data set like the first of those that they are of."""
    first = of[0].manifest
    origin = {"made_by": made_by, "of": [one.record() for one in of]}
    about = {"info": {**info, "origin": origin}, "preparation": dict(first.preparation)}
    progress = Progress(f"{made_by} to {shown(target)}", {})
    progress.total = sum(split.rows for one in of for split in one.manifest.splits.values())
    with (
        sigterm_cleans_up(shown(target)),
        follow(progress) if follow else nullcontext(),
        DatasetWriter(
            target, first.columns, first.source, first.options, first.rows_per_batch, about=about, overwrite=overwrite
        ) as writer,
    ):
        for split, chunk in rows:
            writer.write(split, chunk)
            progress.rows += len(next(iter(chunk.values())))
    assert writer.manifest is not None
    return writer.manifest
