"""The folder that a data set is written to before it is published, and what a killed preparation leaves of it.

`.TARGET.tmp-xxxxxxxx` beside the target holds a file that its process has locked while it lives, which a kernel lets go of
whatever ends the process. The next preparation of the same target takes away the folders whose lock is free.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OWNER = "owner.json"
"""In a draft, until it is published: whose it is."""
FOREIGN_S = 24 * 3600.0
"""A draft of another machine, whose locks cannot be seen from here, is left over when nothing in it has changed for so
long: whoever prepares writes all the time."""


class Draft:
    """A locked folder beside a target. `publishable()` when it is full, `remove()` in any case."""

    def __init__(self, target: Path, keep: Path | None = None) -> None:
        """`keep`: what was left of another one, which is needed. May raise OSError."""
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target, keep)
        self.folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
        self.folder.chmod(0o777 & ~_umask())  # mkdtemp's 0700 would hide the data set from other users
        self._lock = open(self.folder / OWNER, "w", encoding="utf-8")  # noqa: SIM115 - as long as the draft lives
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # at once, but for a moment in which another one looks
        json.dump({"host": os.uname().nodename, "pid": os.getpid(), "started_s": time.time()}, self._lock)
        self._lock.flush()

    def publishable(self) -> None:
        """Takes away what is no part of the data set."""
        (self.folder / OWNER).unlink()

    def remove(self) -> None:
        """The folder, if it was not published; and lets go of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


def sweep(target: Path, keep: Path | None = None) -> None:
    """Removes the drafts of a target whose processes are gone, but that one, and says so."""
    for folder in sorted(target.parent.glob(f".{glob.escape(target.name)}.tmp-*")):
        if folder != keep and folder.is_dir() and not folder.is_symlink() and is_left_over(folder):
            shutil.rmtree(folder, ignore_errors=True)
            print(f"removed {folder}, which a preparation that was killed had left", file=sys.stderr)


def is_left_over(folder: Path) -> bool:
    """Whether nobody writes to a draft any more. Where that cannot be known, no."""
    try:
        file = open(folder / OWNER, encoding="utf-8")  # noqa: SIM115 - closed below, with its lock
    except FileNotFoundError:
        return _untouched_s(folder) > FOREIGN_S  # of an older version, or a moment old
    except OSError:
        return False
    with contextlib.closing(file):
        if _owner(file).get("host") != os.uname().nodename:
            return _untouched_s(folder) > FOREIGN_S
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        # A draft is a moment older than its lock: one without a word in it is not locked yet.
        return (folder / OWNER).stat().st_size > 0 or _untouched_s(folder) > FOREIGN_S


def _owner(file: Any) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = json.load(file)
        return found if isinstance(found, dict) else {}
    return {"host": os.uname().nodename}


def _untouched_s(folder: Path) -> float:
    changed = [folder.stat().st_mtime]
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):
            changed.append(entry.stat().st_mtime)
    return time.time() - max(changed)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
