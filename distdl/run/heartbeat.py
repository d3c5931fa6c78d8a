"""Where each rank of a run is, told all the time: what names the one that the others wait for.

The training thread only sets attributes (`Pulse.at`, under a microsecond). A thread beside it writes them to a small file
several times within the limit, with its Python stack once nothing moves:

    runs/NAME/attempts/000003.ranks/
      rank-0.beat     where rank 0 is; changed in place, which an NFS client sees as soon as it opens the file
      rank-0.stack    what faulthandler wrote of a process that a signal ended, or that was asked for its stack

A process that is stopped or starved says nothing: that, too, is seen. Clocks are never compared across machines.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import signal
import statistics
import sys
import sysconfig
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

START_UP, ENDED = "start-up", "end"
DEFAULT_HANG_S = 30.0
"""`guard.hang_s` where the config leaves it open."""
TIMES_MEDIAN = 10
"""A step or a phase this many times longer than its median is late, where that is more than the limit in seconds."""
KEPT = 31
"""Durations that the medians are of."""
STACK_LINES = 12
ASK = signal.SIGUSR2
"""Makes a worker's process write its Python stack, even where native code holds the interpreter."""


class Pulse:
    """Where the training thread is. Its methods are called in every step."""

    def __init__(self) -> None:
        self.phase, self.step, self.marks = START_UP, 0, 0
        self._since = self._step_since = time.monotonic()
        self._phases: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._steps: deque[float] = deque(maxlen=KEPT)
        self.begun: Callable[[], None] = lambda: None
        """Called as the first step begins, before anything in it: from then on there is something to lose, and a driver
        that is asked to stop must know."""

    def at(self, phase: str, step: int | None = None) -> None:
        """A new phase begins, or the same one again; with `step`, a new step (1-based)."""
        now = time.monotonic()
        self._phases[self.phase].append(now - self._since)
        self.phase, self._since = phase, now
        self.marks += 1
        if step is not None and step != self.step:
            first = not self.step
            if not first:
                self._steps.append(now - self._step_since)
            self.step, self._step_since = step, now
            if first:
                self.begun()

    def limit_s(self, hang_s: float, first_s: float) -> float:
        """Seconds that the present phase may take: `first_s` where it is the first of its kind (it may compile, download,
        make caches), else `hang_s` or ten times the median of such phases and of the steps."""
        before = list(self._phases[self.phase])
        if not before:
            return max(hang_s, first_s)
        return max(hang_s, TIMES_MEDIAN * max(statistics.median(d) for d in (before, list(self._steps)) if d))

    def usual_step_s(self) -> float | None:
        """The median of the latest steps, but for the first one, which may compile; None: there is none yet."""
        steps = list(self._steps)[1:]
        return statistics.median(steps) if steps else None


@dataclasses.dataclass(frozen=True)
class Who:
    """A rank, and Ray's id of the node that it is on ('' without Ray)."""

    rank: int
    node: str = ""


@dataclasses.dataclass(frozen=True)
class Beat:
    """What a rank last said of itself."""

    rank: int
    pid: int
    host: str
    node: str = ""
    """Ray's id of the node; '' without Ray."""
    count: int = 0
    """Of the beats so far."""
    phase: str = START_UP
    step: int = 0
    """1-based; 0 before the first."""
    still_s: float = 0.0
    """Seconds since it last entered a phase, as far as this process was running."""
    limit_s: float = 0.0
    """Seconds that the phase may take."""
    collectives: int = 0
    """That this rank has entered so far (of the group of all ranks)."""
    waits: str = ""
    """The collective that it stands in, by name; '' where it does something else. Looked for once it stands still."""
    place: str = ""
    """Where its own code stands: `loss (family.py:12)`."""
    last: str = ""
    """The collective that it entered last: name, number, sizes."""
    stack: tuple[str, ...] = ()
    """`file:line in function`, innermost last."""


def beat_s(hang_s: float) -> float:
    """Seconds between two beats."""
    return min(1.5, max(0.1, (hang_s or DEFAULT_HANG_S) / 20))


TORN_READS = 3
"""Looks at a beat that is being written: a write is over in microseconds, and the kernel lets who reads see half of it."""


def read_beats(folder: Path, world: int) -> list[Beat | None]:
    """The last beat of every rank; None where there is none yet."""
    return [_read(folder / f"rank-{rank}.beat") for rank in range(world)]


def _read(path: Path) -> Beat | None:
    for _ in range(TORN_READS):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return Beat(**values | {"stack": tuple(values["stack"])})
        except OSError:
            return None
        except (ValueError, TypeError, KeyError):
            continue
    return None


def make_beats(folder: Path, world: int) -> None:
    """Makes the files of all ranks, or empties them."""
    folder.mkdir(parents=True, exist_ok=True)
    for rank in range(world):
        for kind in ("beat", "stack"):
            (folder / f"rank-{rank}.{kind}").write_bytes(b"")


def dumped_stack(folder: Path, rank: int) -> tuple[str, tuple[str, ...]]:
    """What faulthandler wrote of a rank: why ('Segmentation fault'; '' where it was asked by ASK) and the Python stack of
    the thread that failed or else trains, innermost last; ('', ()) where it wrote nothing."""
    try:
        lines = (folder / f"rank-{rank}.stack").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "", ()
    fatal = [i for i, line in enumerate(lines) if line.startswith("Fatal Python error: ")]
    why = lines[fatal[-1]].partition(": ")[2] if fatal else ""
    stacks: list[list[str]] = []
    current = 0
    for line in lines[fatal[-1] if fatal else 0 :]:
        if line.startswith(("Thread ", "Current thread ", "Stack (")):
            current = len(stacks) if fatal and line.startswith("Current thread ") else current
            stacks.append([])
        elif line.startswith("  File ") and stacks:
            file, _, rest = line.removeprefix('  File "').partition('", line ')
            stacks[-1].insert(0, f"{file}:{rest}")
    ours = [stack for stack in stacks if any("/worker.py:" in line and "_train" in line for line in stack)]
    chosen = stacks[current : current + 1] if fatal else ours
    return why, _short(chosen[0]) if chosen else ()


def _short(stack: Sequence[str]) -> tuple[str, ...]:
    """What a person reads of a stack: nothing of who started it, and no other package's inside but for the last frame."""
    start = max(
        (i for i, line in enumerate(stack) if "/worker.py:" in line and line.endswith(" in _train")), default=-1
    )
    ours = [line for line in stack[start + 1 : -1] if "/site-packages/" not in line or "/distdl/" in line]
    return (*ours, *stack[-1:])[-STACK_LINES:]


@contextmanager
def beating(pulse: Pulse, folder: Path, who: Who, hang_s: float, first_s: float, alone: bool) -> Iterator[None]:
    """Tells of the calling thread within it. Does nothing where no driver has made the files. `alone`: the process is not
    ours alone (one worker runs in its driver), so that faulthandler stays as it is."""
    file = folder / f"rank-{who.rank}.beat"
    if not file.exists():
        yield
        return
    teller = _Teller(pulse, file, who, hang_s, first_s, threading.get_ident())
    stack = None
    if not alone:
        with suppress(OSError):
            stack = file.with_suffix(".stack").open("r+b")
            faulthandler.enable(stack)
            faulthandler.register(ASK, stack)
    stop = threading.Event()
    pulse.begun = teller.say
    thread = threading.Thread(target=teller.tell, args=(stop,), name="distdl-heartbeat", daemon=True)
    thread.start()
    try:
        yield
        pulse.at(ENDED)
    finally:
        stop.set()
        thread.join(timeout=5.0)
        if stack:
            faulthandler.unregister(ASK)
            faulthandler.enable()
            stack.close()


class _Teller:
    """Writes beats of one thread until it is told to stop, and then a last one."""

    def __init__(self, pulse: Pulse, file: Path, who: Who, hang_s: float, first_s: float, thread: int) -> None:
        self.pulse, self.file, self.hang_s, self.first_s, self.thread = pulse, file, hang_s, first_s, thread
        self.every_s = beat_s(hang_s)
        self.first = Beat(who.rank, os.getpid(), os.uname().nodename, node=who.node)
        self._last = ""
        self._saying = threading.Lock()
        self._count = self._longest = 0

    def tell(self, stop: threading.Event) -> None:
        marks, still_s, looked_s = -1, 0.0, time.monotonic()
        while True:
            now = time.monotonic()
            # What a frozen process slept through does not count: it would seem late the moment it goes on.
            passed = min(now - looked_s, 2 * self.every_s)
            still_s = 0.0 if marks != self.pulse.marks else still_s + passed
            self._last = "" if marks != self.pulse.marks else self._last
            marks, looked_s = self.pulse.marks, now
            self.say(still_s)
            if stop.is_set():
                return
            stop.wait(self.every_s)

    def say(self, still_s: float = 0.0) -> None:
        """Writes where the thread is now. A disk that refuses is not what the run is ended for."""
        with self._saying, suppress(OSError):
            self._count += 1
            self._write(self.beat(self._count, still_s))

    def beat(self, count: int, still_s: float) -> Beat:
        """Where the thread is now."""
        pulse = self.pulse
        limit_s = pulse.limit_s(self.hang_s or DEFAULT_HANG_S, self.first_s)
        told = dataclasses.replace(self.first, count=count, phase=pulse.phase, step=pulse.step)
        told = dataclasses.replace(told, still_s=still_s, limit_s=limit_s, collectives=_entered())
        frame = sys._current_frames().get(self.thread) if still_s >= 2 * self.every_s else None
        if frame is None:
            return told
        frames = list(traceback.extract_stack(frame))
        self._last = self._last or _last_collective()
        lines = _short([f"{f.filename}:{f.lineno} in {f.name}" for f in frames])
        return dataclasses.replace(told, waits=waits(frames), place=_place(frames), last=self._last, stack=lines)

    def _write(self, beat: Beat) -> None:
        content = json.dumps(dataclasses.asdict(beat)).encode().ljust(self._longest)
        self._longest = len(content)  # a file that never shrinks is never seen with the end of an older beat
        file = os.open(self.file, os.O_WRONLY)  # not created: who has taken the files away wants none
        try:
            os.pwrite(file, content, 0)
        finally:
            os.close(file)


def waits(frames: Sequence[traceback.FrameSummary]) -> str:
    """The collective that a stack stands in, by name; '' where it does something else."""
    inner = frames[-1]
    if "/torch/distributed/" in inner.filename or "/deepspeed/comm/" in inner.filename:
        names = [frame.name for frame in frames if frame.filename.endswith("/distributed_c10d.py")]
        return names[0] if names else inner.name
    if inner.name == "_engine_run_backward":
        return "the sum of the gradients"
    if inner.filename.endswith("/torch/nn/parallel/distributed.py"):
        return "DistributedDataParallel"
    # The end of a collective that runs by itself, or of the device's queue, which holds it.
    if any(call in (inner.line or "") for call in (".wait()", ".synchronize()", ".item()", ".tolist()", ".cpu()")):
        return "a collective that was started before"
    return ""


def _place(frames: Sequence[traceback.FrameSummary]) -> str:
    """The innermost frame of the user's code or ours."""
    standard = (sysconfig.get_path("stdlib"), "<")
    for frame in reversed(frames):
        library = "/site-packages/" in frame.filename and "/distdl/" not in frame.filename
        if not library and not frame.filename.startswith(standard):
            return f"{frame.name} ({os.path.basename(frame.filename)}:{frame.lineno})"
    return ""


def _distributed() -> Any:
    """torch.distributed with its group, or None: nothing is imported for it."""
    torch = sys.modules.get("torch")
    dist = getattr(torch, "distributed", None)
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None


def _asked(question: Callable[[], Any], instead: Any) -> Any:
    """What torch's internals answer; `instead` where this version has another answer than expected."""
    try:
        return question()
    except Exception:  # a diagnosis must never end what it watches
        return instead


def _entered() -> int:
    dist = _distributed()
    return int(_asked(lambda: dist.group.WORLD._get_sequence_number_for_group(), 0)) if dist else 0


def _last_collective() -> str:
    """From torch's flight recorder: 25 ms, so that it is asked once in each standstill."""
    if _distributed() is None:
        return "none"

    def question() -> str:
        from torch._C import _distributed_c10d as c10d

        last = json.loads(c10d._dump_fr_trace_json(True, False))["entries"][-1]  # type: ignore[attr-defined]
        name, sizes = last["profiling_name"].split(":")[-1], ", ".join(map(str, last["input_sizes"]))
        return f"{name} number {last['collective_seq_id']:,}" + (f" of {sizes}" if sizes else "")

    return str(_asked(question, "none"))
