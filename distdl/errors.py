"""Errors for people: what is wrong and where, what is allowed, how to fix it.

The command line prints `str(error)` and exits with `error.exit_code`: 2 for bad input (the user can fix it), 1 for an
operational failure (the last checkpoint stays loadable). A traceback is never shown for either.
"""

from __future__ import annotations

import difflib
import signal
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class DistdlError(Exception):
    """A failure with a message meant for a person. `exit_code` is what the command exits with."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the input."""

    what: str
    """What is wrong, in one sentence: `model.hiden is not a key of the family mlp`."""
    where: str = ""
    """`file:line`, or the command-line argument, that holds it."""
    allowed: str = ""
    """What would be accepted."""
    fix: str = ""
    """The change that most likely cures it."""

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        lines += [f"    allowed: {self.allowed}"] if self.allowed else []
        lines += [f"    fix: {self.fix}"] if self.fix else []
        return "\n".join(lines)


class InputError(DistdlError):
    """Bad input: a config, an argument, a data set or a checkpoint that cannot be used as it is. Exit code 2."""

    exit_code = 2

    def __init__(self, *problems: Problem | str, fix: str = "", where: str = "", allowed: str = "") -> None:
        self.problems = [p if isinstance(p, Problem) else Problem(p, where, allowed, fix) for p in problems]
        super().__init__("\n".join(str(p) for p in self.problems))


class DataCorrupt(DistdlError):
    """Stored bytes are not the bytes that were written: a checksum or a size does not match. Exit code 1."""


class TrainingFailed(DistdlError):
    """A run that cannot go on (not-a-number, diverged replicas, a lost worker). Exit code 1."""


def line_in(error: BaseException, file: Path) -> tuple[str, str]:
    """The last line of a file that an exception went through, as (`file:line`, its code); '' where it went through none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_same(frame.filename, file):
            return f"{frame.filename}:{frame.lineno}", frame.line or ""
    return "", ""


def _is_same(name: str, file: Path) -> bool:
    """Whether a file is this one, or a copy of it, as a run folder has."""
    path = Path(name)
    try:
        return path.name == file.name and path.read_bytes() == file.read_bytes()
    except OSError:
        return False


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` most likely meant, or None."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the whole list where nothing is near."""
    known = sorted(known)
    match = nearest(word, known)
    return f"did you mean '{match}'?" if match else "one of: " + ", ".join(known)


@contextmanager
def sigterm_raises(exception: type[BaseException], over_others: bool = True) -> Iterator[None]:
    """SIGTERM, by which batch systems and containers end a process, is this exception meanwhile. Only the main thread may
    say what a signal does. `over_others=False`: a handler that is there already stays."""
    main = threading.current_thread() is threading.main_thread()
    if not main or (not over_others and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL):
        yield
        return

    def end(*_: Any) -> None:
        raise exception

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
