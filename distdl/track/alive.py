"""Whether the driver of a run still lives, for whoever finds its MLflow run RUNNING: here, or on another machine.

    runs/NAME/attempts/000003.alive     which process on which machine; touched while it lives

On the same machine the process itself is asked. Of another machine only silence can be seen: of the driver, of its
uploader and of their locks, for a quarter of an hour by the clock of the file system. So a run that is alive elsewhere is
not taken for dead, and one whose machine is gone is known a little later.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

from distdl.errors import DistdlError
from distdl.run.attempts import Attempt
from distdl.track.run import INFO_NAME, default_tracking_uri, file_lock, load

BEAT_S = 30.0
SILENT_S = 900.0
"""Silence after which a driver on another machine is gone."""
UPLOADER_LOCK, RUN_LOCK = ".uploader.lock", ".lock"


class Heartbeat:
    """Says that this process, the driver of an attempt, lives."""

    def __init__(self, attempt: Attempt) -> None:
        self._file = _file(attempt.folder, attempt.number)
        self._over = Event()
        self._thread = Thread(target=self._beat, name="distdl-alive", daemon=True)

    def start(self) -> None:
        """May raise OSError."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(_process(os.getpid())), encoding="utf-8")
        self._thread.start()

    def stop(self) -> None:
        self._over.set()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            touch(self._file)


def touch(file: Path) -> None:
    """Gives a file the present time, that of the file system; a full or lost disk is no matter."""
    with contextlib.suppress(OSError):
        os.utime(file)


def dead_runs(runs: Path, uri: str | None = None) -> Iterator[tuple[Path, int]]:
    """The runs of a folder that MLflow has as RUNNING and nobody trains, each with its newest attempt.

    Only those in the folder's own store, or in `uri`, which the user has named: a store that only a run's files name is
    no reason to talk to it.
    """
    stores = {default_tracking_uri(runs), uri}
    for file in sorted(runs.glob(f"*/{INFO_NAME}")):
        run = file.parent
        if run.is_symlink() or file.is_symlink():
            continue
        with contextlib.suppress(DistdlError, OSError):
            info = load(run)
            if info is not None and info.status == "RUNNING" and info.tracking_uri in stores and (number := dead(run)):
                yield run, number


def dead(run: Path) -> int:
    """The newest attempt of a run whose driver is gone for certain; 0 where it lives, or may. May raise OSError."""
    attempts = run / "attempts"
    number = max((int(path.stem) for path in attempts.glob("*.fence") if path.stem.isdecimal()), default=0)
    alive = _file(attempts, number)
    if not number or not alive.is_file():
        return 0
    try:
        told = json.loads(alive.read_text(encoding="utf-8"))
        here = _process(int(told["pid"]))
    except (ValueError, KeyError, TypeError):  # it is being written, or was torn
        return 0
    if told.get("machine") and told["machine"] == here["machine"]:
        return number if here["began"] != told.get("began") and is_free(run / UPLOADER_LOCK) else 0
    probe = attempts / f".now.{os.getpid()}"
    probe.touch()
    now_s = probe.stat().st_mtime
    probe.unlink()
    beats = [path.stat().st_mtime for path in (alive, run / UPLOADER_LOCK, run / "events.jsonl") if path.exists()]
    silent = now_s - max(beats) > SILENT_S
    return number if silent and is_free(run / RUN_LOCK) and is_free(run / UPLOADER_LOCK) else 0


def is_free(lock: Path) -> bool:
    """Whether no process holds a lock of a run."""
    if not lock.exists():
        return True
    before = lock.stat()
    with file_lock(lock, wait=False) as free:
        pass
    with contextlib.suppress(
        OSError
    ):  # nothing was written, but opening to append counts as a change on some file systems
        os.utime(lock, ns=(before.st_atime_ns, before.st_mtime_ns))
    return free


def _process(pid: int) -> dict[str, Any]:
    """A process of this machine: `machine` is the running system and its process numbers, `began` is '' for one that is
    gone. Both are '' where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        machine = ""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        began = fields[19] if fields[0] not in "ZX" else ""
    except OSError:
        began = ""
    return {"pid": pid, "machine": machine, "began": began}


def _file(attempts: Path, number: int) -> Path:
    return attempts / f"{number:06d}.alive"
