"""The folder of an export: written beside its place, and published by one rename, so that it is whole or not there."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distdl.checkpoint.layout import checksum
from distdl.data.draft import OWNER, Draft
from distdl.errors import InputError, TrainingFailed
from distdl.files import publish, sync, sync_folder, write_json

MANIFEST = "export.json"
"""What is in the folder, of which run, and how far it is from it."""
PREPARATION = "preparation.json"
"""How raw values become what the model reads, and answers become words again: that of the checkpoint."""
FORMAT, VERSION = "distdl-export", 1


@contextlib.contextmanager
def published(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write to, which takes the place of `target` at the end. Raises InputError for one that is there and no
    export, or may not be replaced; TrainingFailed for a disk that is full."""
    if target.exists() and not overwrite:
        raise InputError(f"{target} is there already", fix="--overwrite replaces it, --output DIR writes elsewhere")
    if target.exists() and not (target / MANIFEST).is_file():
        raise InputError(f"{target} holds no export; it is not replaced", fix="--output DIR writes elsewhere")
    draft = old = None
    try:
        draft = Draft(target)
        yield draft.folder
        draft.publishable()
        for path in draft.folder.rglob("*"):
            sync_folder(path) if path.is_dir() else sync(path)
        sync_folder(draft.folder)
        if target.exists():
            old = target.with_name(f".{target.name}.old-{os.getpid()}")
            target.rename(old)
        publish(draft.folder, target)
    except OSError as error:
        if old is not None and not target.exists():
            old.rename(target)
        what = f"{target} could not be written: {error.strerror or error}"
        raise TrainingFailed(f"{what}\n    fix: free space or rights there, then start again") from None
    finally:
        if draft:
            draft.remove()
        if old is not None and target.exists():
            shutil.rmtree(old, ignore_errors=True)


def seal(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Writes what is in the folder. Returns it."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "xxh3": checksum(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != OWNER
    }
    manifest = {"format": FORMAT, "version": VERSION, **about, "files": files}
    write_json(folder / MANIFEST, manifest)
    return manifest
