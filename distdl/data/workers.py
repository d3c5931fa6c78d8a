"""The processes that large raw data is read by: this one, several of this machine, or whatever somebody else gives
(`distdl/runtime/ray_workers.py` gives the workers of a Ray cluster).

    with using(3):
        for result in current().each(function, items):     # in the order of the items, whoever is done first
            ...

`items` may be made while others are worked on; what fails in making one is raised when its turn has come.
`function(item)` gives an iterator of results. Both go to other processes, as do the results: they are sent there by this
very program and by nobody else, and so are pickled. What a function gives may depend on its item alone, so that the number
of workers changes nothing; where it fails in a worker, it is called once more here, so that the failure is the same, too.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from itertools import islice
from mmap import ACCESS_COPY, mmap
from multiprocessing import Pipe, reduction
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from distdl.errors import DistdlError, InputError

PACKAGE = Path(__file__).resolve().parents[2]
"""Folder that distdl lies in: workers import this very copy."""
AHEAD = 3
"""Items for each worker that may be done before their turn: their results wait on the disk."""

NUMBER = "DISTDL_DATA_WORKER"
"""Environment of a process: which of them it is, from 0."""

T = TypeVar("T")
R = TypeVar("R")
Function = Callable[[Any], Iterable[Any]]


class Workers(Protocol):
    """Who calls a function for many items."""

    count: int

    def each(self, function: Callable[[T], Iterable[R]], items: Iterable[T]) -> Iterator[R]:
        """All that the function gives for the first item, then for the second, and so on."""
        ...


class Here:
    """This process."""

    count = 1

    def each(self, function: Callable[[T], Iterable[R]], items: Iterable[T]) -> Iterator[R]:
        """One after another."""
        for item in items:
            yield from function(item)


_current: ContextVar[Workers] = ContextVar("workers", default=Here())  # noqa: B039 - it has no state


def current() -> Workers:
    """Those that are to be used."""
    return _current.get()


@contextmanager
def using(workers: int | Workers) -> Iterator[None]:
    """So many processes, or these workers, inside the block. InputError: there are none."""
    if isinstance(workers, int) and workers < 1:
        raise InputError(f"workers is {workers}", allowed="1 or more processes")
    mine = (Here() if workers == 1 else Local(workers)) if isinstance(workers, int) else workers
    token = _current.set(mine)
    try:
        if isinstance(mine, Local):
            mine.start()
        yield
    finally:
        _current.reset(token)
        if isinstance(mine, Local):
            mine.close()


def called_again(function: Function, item: Any, taken: int = 0, why: str = "") -> Iterator[Any]:
    """What a function that has failed in a worker gives here, but the first results, which are taken. It fails here as
    well, in general; where not, that is said, as it is slow."""
    yield from islice(function(item), taken, None)
    print(f"a worker failed{f': {why}' if why else ''}; what it was to do is done by this process", file=sys.stderr)


class Coming(Generic[T]):
    """Items that are made when they are asked for. What fails in making one ends them, and is raised by `end`."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = enumerate(items)
        self._error: Exception | None = None

    def next(self) -> tuple[int, T] | None:
        """The next item and its number; None: there is no other."""
        try:
            return next(self._items, None) if self._error is None else None
        except Exception as error:
            self._error = error
            return None

    def end(self) -> None:
        """When those that were made have had their turn."""
        if self._error is not None:
            raise self._error


class Local:
    """Processes of this machine, started when they are needed. A result lies in a file without a name until its turn has
    come, so that memory does not depend on how far ahead a worker is. `losses`: how many processes may be ended by somebody
    before that is an error; what one was doing is given to another in its place."""

    def __init__(self, count: int, losses: int = 0) -> None:
        self.count, self.losses = count, losses
        self.used = False
        """Whether any of them had something to do."""
        self._processes: list[_Process] = []

    def each(self, function: Callable[[T], Iterable[R]], items: Iterable[T]) -> Iterator[R]:
        """In the order of the items. DistdlError: too many processes were ended by somebody."""
        coming = Coming(items)
        if isinstance(items, Sequence) and len(items) < 2:
            yield from Here().each(function, items)
            return
        self.start()
        self.used = True
        call = pickle.dumps(function, protocol=5)
        given: dict[int, T] = {}
        done: dict[int, mmap | bytes | None] = {}
        turn = 0
        try:
            while True:
                self._give(call, coming, given, most=AHEAD * self.count)
                if turn not in given:
                    break
                if turn not in done:
                    for process in self._ready():
                        self._take(process, call, given, done)
                    continue
                result, item = done.pop(turn), given.pop(turn)
                yield from called_again(function, item) if result is None else unpacked(result)
                turn += 1
            coming.end()
        finally:
            if any(process.tasks for process in self._processes):
                self.close()  # they do what nobody waits for any more

    def start(self) -> None:
        """At once, while the first file is being opened: they take half a second to be ready."""
        while len(self._processes) < self.count:
            self._processes.append(_Process(len(self._processes)))

    def _give(self, call: bytes, coming: Coming[T], given: dict[int, T], most: int) -> None:
        """Two items for each process, so that it need not wait for its next, but no more than `most` at a time."""
        for ahead in (1, 2):
            for process in self._processes:
                if len(given) < most and len(process.tasks) < ahead and (one := coming.next()):
                    number, given[one[0]] = one
                    process.give(number, call, given[number])

    def _take(self, process: _Process, call: bytes, given: dict[int, T], done: dict[int, mmap | bytes | None]) -> None:
        number, tasks = process.tasks[0], list(process.tasks)
        try:
            done[number] = process.take()
        except DistdlError as error:
            if not self.losses:
                raise
            self.losses -= 1
            print(f"{error}; another does again what it was doing", file=sys.stderr)
            process.close()
            instead = self._processes[process.number] = _Process(process.number)
            for task in tasks:
                instead.give(task, call, given[task])

    def _ready(self) -> list[_Process]:
        connections = {process.connection: process for process in self._processes if process.tasks}
        return [connections[each] for each in wait(list(connections)) if isinstance(each, Connection)]

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.close()
        self._processes = []


class _Process:
    """One of them."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.connection, theirs = Pipe()
        self.tasks: list[int] = []
        """Items that it has been given and has not answered."""
        paths = [str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", NUMBER: str(number)}
        begin = f"from distdl.data.workers import serve; serve({theirs.fileno()})"
        command = [sys.executable, "-c", begin]
        self._process = subprocess.Popen(command, env=variables, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._known = b""

    def give(self, number: int, call: bytes, item: Any) -> None:
        """Let it call a function."""
        with suppress(OSError):  # it has ended: `take` says so
            self.connection.send_bytes(pickle.dumps((None if call == self._known else call, item), protocol=5))
        self._known = call
        self.tasks.append(number)

    def take(self) -> mmap | bytes | None:
        """What the function gave for the first of its items, packed; None: it failed."""
        try:
            size = int(self.connection.recv_bytes())
            self.tasks.pop(0)
            if size < 0:
                return None
            file = reduction.recv_handle(self.connection)
        except (EOFError, OSError):
            raise DistdlError(self._ended()) from None
        try:
            return mmap(file, size, access=ACCESS_COPY) if size else b""
        finally:
            os.close(file)

    def _ended(self) -> str:
        code = self._process.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        why = ": memory may have run out, with fewer workers there is more for each" if code == -9 else ""
        return f"a worker that reads the raw data has ended {how}{why}"

    def close(self) -> None:
        """End it."""
        self.connection.close()
        self._process.kill()
        self._process.wait()


# -- in the worker -----------------------------------------------------------------------------------------------------


def serve(connection_number: int) -> None:
    """The life of a process: calls what it is given, until nobody gives it any more."""
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.array([0])  # imports what it needs for its first array
    connection = Connection(connection_number)
    function: Any = None
    with suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            call, item = _loads(connection.recv_bytes())
            function = function if call is None else _loads(call)
            with tempfile.TemporaryFile() as file:
                try:
                    for result in function(item):
                        pack(result, file)
                except Exception:  # the caller will meet it, too
                    connection.send_bytes(b"-1")
                    continue
                file.flush()
                connection.send_bytes(str(file.tell()).encode())
                reduction.send_handle(connection, file.fileno(), os.getppid())


def pack(result: Any, file: Any) -> None:
    """Append a result to a file, its arrays as they lie in memory."""
    buffers: list[pickle.PickleBuffer] = []
    frame = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    head = pickle.dumps((len(frame), [len(view) for view in raw]))
    file.write(len(head).to_bytes(8, "little") + head + frame)
    for view in raw:
        file.write(bytes(-file.tell() % 64))
        file.write(view)


def unpacked(packed: mmap | bytes) -> Iterator[Any]:
    """What was packed, without a copy of its arrays."""
    view, at = memoryview(packed), 0
    while at < len(view):
        begin = at + 8 + int.from_bytes(view[at : at + 8], "little")
        size, lengths = _loads(view[at + 8 : begin])
        at, buffers = begin + size, []
        for length in lengths:
            at += -at % 64
            buffers.append(view[at : at + length])
            at += length
        yield _loads(view[begin : begin + size], buffers)


def _loads(frame: Any, buffers: Sequence[Any] = ()) -> Any:
    return pickle.loads(frame, buffers=buffers)  # noqa: S301 - from our own process, through a pipe that only we hold
