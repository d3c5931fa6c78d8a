"""Looks at the heartbeats of the workers from their driver: who stands still while others wait for it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distdl.run.heartbeat import ASK, ENDED, START_UP, Beat, beat_s, dumped_stack, read_beats

ORDER = ("data", "forward", "backward", "after the step", "evaluation", "checkpoint")
"""The phases of a step, first to last."""
SILENT = "its process answers no more"
STACK_S, QUIET_S = 1.0, 0.3
"""Seconds for a process to begin to write its stack, and without another byte of it: then it is whole."""
SOON_S = 0.05
"""The latter where the process was stopped: let go for its stack, it trains on meanwhile."""


@dataclass(frozen=True)
class Seen:
    """A rank's last beat, and for how long the driver has looked without seeing another."""

    beat: Beat
    silent_s: float = 0.0

    @property
    def still_s(self) -> float:
        return self.beat.still_s + self.silent_s

    @property
    def late(self) -> bool:
        return self.still_s >= self.beat.limit_s > 0


def suspect(seen: Sequence[Seen]) -> tuple[Seen, str] | None:
    """The rank that keeps others waiting for longer than its phase may take, and in which way; None: nobody does.

    Ranks that are all slow, or all silent (the file system, a suspended machine), are nobody's fault. A heart beats in any
    phase, so that silence has the shortest limit of all ranks: the last beat may be of a phase that was over at once.
    """
    seen = [s for s in seen if s.beat.phase != ENDED]
    shortest_s = min((s.beat.limit_s for s in seen if s.beat.limit_s), default=0.0)
    silent = [s for s in seen if s.silent_s >= shortest_s > 0]
    fresh = [s for s in seen if s.silent_s < shortest_s / 2]
    guilty = silent or [s for s in fresh if s.late and not s.beat.waits]
    if guilty:
        worst = max(guilty, key=lambda s: s.still_s)
        limit_s = shortest_s if silent else worst.beat.limit_s
        waiting = [s for s in fresh if s.beat.waits and s.still_s >= limit_s / 2]
        return (worst, SILENT if silent else "") if waiting else None
    if len(seen) < 2 or not all(s.late and s in fresh for s in seen):
        return None
    if len({_where(s.beat) for s in seen}) == 1:
        return None  # in the same collective: what fails is between them, and its own timeout says so
    odd = out_of_step([s.beat for s in seen])
    return next((s, "it is past a collective in which the others wait") for s in seen if s.beat.rank == odd)


def out_of_step(beats: Sequence[Beat]) -> int:
    """The rank that is elsewhere than the others, who wait for each other in different collectives: the minority, and
    of two the one that is further on with no more collectives behind it, since it has left one out."""
    places = Counter(_where(beat) for beat in beats)
    fewest = min(places.values())
    minority = [beat for beat in beats if places[_where(beat)] == fewest]
    return max(minority, key=lambda b: (b.step, _index(b.phase), -b.collectives, b.rank)).rank


def _index(phase: str) -> int:
    return ORDER.index(phase) if phase in ORDER else -1


def _where(beat: Beat) -> tuple[int, str, str, str]:
    return beat.step, beat.phase, beat.waits, beat.place


class Watch:
    """A thread of the driver. `end` is `state_and_kill` where a rank's process is."""

    def __init__(self, folder: Path, world: int, hang_s: float, end: Callable[[Beat, str], str]) -> None:
        self.folder, self.world, self.hang_s, self.end = folder, world, hang_s, end
        self.verdict: tuple[Beat, str] | None = None
        """The rank that hung, and what to say of it; None: nobody has."""
        self.begin()

    def begin(self) -> None:
        """Workers start: nothing is known of them."""
        self.verdict = None
        self._seen: dict[int, Seen] = {}
        self._looked_s = time.monotonic()

    @property
    def underway(self) -> bool:
        """Whether training has begun on any rank."""
        return any(beat and beat.phase != START_UP for beat in read_beats(self.folder, self.world))

    def look(self) -> list[Seen]:
        """What every rank was last seen at."""
        now = time.monotonic()
        passed = min(now - self._looked_s, 2 * beat_s(self.hang_s))  # a driver that was frozen has not looked meanwhile
        self._looked_s = now
        for rank, beat in enumerate(read_beats(self.folder, self.world)):
            before = self._seen.get(rank)
            if beat and (before is None or before.beat.count != beat.count):
                self._seen[rank] = Seen(beat)
            elif before:
                self._seen[rank] = Seen(before.beat, before.silent_s + passed)
        return list(self._seen.values())

    def run(self, stop: threading.Event) -> None:
        """Until it is told to stop, or has ended a rank that hung."""
        before = None
        while not stop.wait(beat_s(self.hang_s) / 3):
            found = suspect(self.look())
            if found and before == found[0].beat.rank:  # twice in a row: it was not just about to go on
                seen, why = found
                others = [s.beat for s in self._seen.values() if s.beat.rank != seen.beat.rank and s.beat.waits]
                state = self.end(seen.beat, str(self.folder / f"rank-{seen.beat.rank}.stack"))
                self.verdict = seen.beat, self._words(seen, why, others, state)
                return
            before = found[0].beat.rank if found else None

    def _words(self, seen: Seen, why: str, others: Sequence[Beat], state: str) -> str:
        beat = seen.beat
        waiting = ", ".join(f"worker {b.rank} in {b.waits}" + (f" of {b.place}" if b.place else "") for b in others[:3])
        lines = [f"{named(beat)} hung: nothing has moved for {seen.still_s:.0f} s, and the others wait for it"]
        if state == "stopped":
            lines += ["    its process is stopped (state T), by SIGSTOP or a debugger"]
        elif why:
            lines += [f"    {why}"]
        lines += [f"    where it {'was last seen' if why == SILENT else 'stands'}: {standing(beat)}"]
        lines += [f"    who waits: {waiting}"] if waiting else []
        stack = dumped_stack(self.folder, beat.rank)[1] or beat.stack
        lines += ["    its Python stack, innermost last:", *(f"      {line}" for line in stack)] if stack else []
        lines += ["    fix: guard.hang_s=SECONDS gives more time where that is no hang; 0 ends nobody"]
        return "\n".join(lines)


def named(beat: Beat) -> str:
    """The worker, its node and process."""
    return f"worker {beat.rank} (process {beat.pid} on {beat.host})"


def standing(beat: Beat) -> str:
    """Where in the run."""
    place = f", {beat.place}" if beat.place else ""
    return (
        f"{beat.phase} of step {beat.step:,}{place}; its last collective: {beat.last or f'number {beat.collectives:,}'}"
    )


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Looks within it, where there is more than one rank and the config wants it."""
    stop = threading.Event()
    thread = threading.Thread(target=watch.run, args=(stop,), name="distdl-watch", daemon=True)
    if watch.world > 1 and watch.hang_s:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if thread.is_alive() and thread is not threading.current_thread():
            thread.join(timeout=30.0)


def state_and_kill(pid: int, stack: str) -> str:
    """The state of a worker's process of this machine ('stopped', 'sleeping', …; '' where unknown). It is asked for its
    stack (`stack` is the file), for which a stopped one is let go for a moment, and killed."""
    import psutil

    state = ""
    try:
        state = str(psutil.Process(pid).status())
        os.kill(pid, ASK)
        os.kill(pid, signal.SIGCONT)
        _wait_until_written(Path(stack), SOON_S if state == "stopped" else QUIET_S)
        os.kill(pid, signal.SIGKILL)
    except (psutil.Error, OSError):
        pass
    return {"disk-sleep": "waiting for a disk or device"}.get(state, state)


def _wait_until_written(file: Path, quiet_s: float) -> None:
    """Each thread's stack is written by itself: who is ended after the first one has not told where it trains."""
    size, end = 0, time.monotonic() + STACK_S
    while time.monotonic() < end:
        time.sleep(quiet_s if size else 0.01)
        if (now := file.stat().st_size) == size > 0:
            return
        if now > size:
            size, end = now, time.monotonic() + STACK_S
