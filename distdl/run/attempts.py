"""Who trains a run: each `distdl train` is an attempt with a number, and a newer attempt fences off every older one.

A job that is started again may find its predecessor alive: a head that was cut off from its cluster, a machine that
hung and came back. The numbers decide: the older attempt notices before it changes anything of the run, and ends.

    runs/NAME/attempts/
      000003.json     who: number, host, pid, time
      000003.fence    empty while the attempt is the newest; then a newer attempt's record
      000003.stop     empty until the run is asked to end with a checkpoint
      000003.ranks/   where each rank is, while it runs (heartbeat.py)

A number is taken by creating its .fence exclusively, which NFS does on the server. What is written to later exists from
the start and is changed in place: an NFS client sees that as soon as it opens the file, while a file that is new or
renamed may stay unseen for as long as it caches the folder (30 s and more).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from distdl.errors import TrainingFailed


class TakenOver(TrainingFailed):
    """A newer attempt trains the run now; this one must leave it alone. Exit code 1."""


class Attempt:
    """One attempt at a run, as its driver or a worker of it sees it. Number 0 is none: it is never fenced off."""

    def __init__(self, run: Path = Path(), number: int = 0) -> None:
        self.number = number
        self.folder = run / "attempts"

    @property
    def ranks(self) -> Path:
        """The folder of the ranks' heartbeats."""
        return self._file("ranks")

    @property
    def visible(self) -> bool:
        """Whether this machine sees the attempt's files at all."""
        return not self.number or self._file("fence").is_file()

    def taken_over(self) -> str:
        """Which attempt took over, in words; '' while this is the newest. One open and one read. May raise OSError; raises
        TrainingFailed where somebody has removed the folder."""
        try:
            content = self._file("fence").read_text(encoding="utf-8") if self.number else ""
        except FileNotFoundError:
            if self.folder.is_dir():
                raise  # a file system that has not told this machine of it yet
            what = f"{self.folder} was removed while the run trained, and nothing says who may write there"
            raise TrainingFailed(f"{what}\n    fix: put the run's folder back, then start again") from None
        if not content:
            return ""
        try:
            newer = json.loads(content)
            who = f"attempt {newer['number']} (process {newer['pid']} on {newer['host']})"
        except (ValueError, KeyError, TypeError):  # it is being written this very moment
            who = "a newer attempt"
        return (
            f"{who} has taken over this run from attempt {self.number}, which writes nothing more and ends\n"
            "    the run goes on there"
        )

    def check(self) -> None:
        """Raises TakenOver where a newer attempt trains the run."""
        if words := self.taken_over():
            raise TakenOver(words)

    def stop_requested(self) -> bool:
        """Whether the run was asked to end with a checkpoint. May raise OSError."""
        return bool(self.number and self._file("stop").read_text(encoding="utf-8"))

    def request_stop(self) -> None:
        """Asks the workers to finish their step, write a checkpoint and end."""
        self._file("stop").write_text(str(time.time()), encoding="utf-8")

    def _file(self, kind: str) -> Path:
        return self.folder / f"{self.number:06d}.{kind}"


def claim(run: Path) -> Attempt:
    """Takes the next number of a run. When it returns, every older attempt is fenced off."""
    folder = run / "attempts"
    folder.mkdir(exist_ok=True)
    number = max((int(path.stem) for path in folder.glob("*.fence") if path.stem.isdecimal()), default=0)
    while True:
        number += 1
        try:
            with (folder / f"{number:06d}.fence").open("x"):
                break
        except FileExistsError:  # taken a moment ago, or by a machine whose files this one did not see yet
            continue
    record = {"number": number, "host": os.uname().nodename, "pid": os.getpid(), "time": time.time()}
    (folder / f"{number:06d}.stop").touch()
    _write(folder / f"{number:06d}.json", record)
    for older in range(number - 1, 0, -1):
        fence = folder / f"{older:06d}.fence"
        if fence.is_file():
            _write(fence, record)
    return Attempt(run, number)


def _write(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record), encoding="utf-8")
