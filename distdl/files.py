"""Small files that must survive: read with the file's name in every complaint, written so that a power cut leaves the old
content or the new one, never half of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from distdl.errors import DataCorrupt


def read_json(path: Path, cure: str = "") -> dict[str, Any] | None:
    """The mapping in a JSON file, or None where there is no such file. `cure`: what the user may do about a bad one.

    Raises DataCorrupt for what cannot be read, is not JSON (torn, or nested deeper than any file of ours), or no mapping.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataCorrupt(_damaged(path, reason, cure)) from None
    if not isinstance(value, dict):
        raise DataCorrupt(_damaged(path, f"it holds a {type(value).__name__}, not a mapping", cure))
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that nobody reads yet, to the disk itself. May raise OSError."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def replace_json(path: Path, value: Any, draft: Path) -> None:
    """Replaces a JSON file in one step, by way of the file `draft` beside it. May raise OSError."""
    write_json(draft, value)
    publish(draft, path)


def publish(draft: Path, path: Path) -> None:
    """Renames a file or folder whose bytes are on the disk, and makes the disk keep the rename, too."""
    os.replace(draft, path)
    sync_folder(path.parent)


def sync(path: Path) -> None:
    """Makes the disk keep the bytes of a file that was written and closed."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes the disk keep the names in a folder: without it a rename may be undone by a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(path: Path, reason: str, cure: str) -> str:
    return f"{path} is damaged: {reason}" + (f"\n    fix: {cure}" if cure else "")
