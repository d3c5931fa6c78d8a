"""The durable stream of what happens in a run: one JSON line an event, in `<run_dir>/events.jsonl`.

The training process (rank 0) appends to it and does nothing else: no network, no lock. Everyone else reads it, at any
time, from any offset: the uploader that feeds MLflow and the display of the terminal.

Every event has `t` (unix seconds) and `kind`. The kinds and their fields (readers ignore kinds they do not know):

    metrics     step, values {name: float}
    evaluation  step, values {name: float}, split
    progress    step, steps, loss, samples_per_s, data_s, ...      what the display shows; not sent to MLflow
    phase       name ("start-up", "training", "evaluation", "checkpoint", ...), text
    checkpoint  step, path, seconds (training stood still), durable_s (until it is whole on disk), bytes
    message     level ("info", "warning", "error"), text
    restart     step
    world       step, workers, layout                              of every start
    picture     step, drawing, split, and what track/pictures/ draws: arrays {name: nested lists}, or of each layer
                calls [{name: array}] as track/pictures/arrays.py packs it
    end         status ("FINISHED", "FAILED", "KILLED"), error (str or None), summary (dict)

A float that JSON cannot hold travels as {"$float": "nan"}: the file stays valid JSON for every tool.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_PENDING = 100_000
"""Events kept in memory while the disk refuses them; beyond that the oldest go (about 20 MB of lines)."""

Event = dict[str, Any]


class SpoolWriter:
    """Appends events. `write` costs the caller about a microsecond; a daemon thread does the rest.

    Nothing here ever raises into the training loop. If the disk refuses (full, gone), the error is kept in `.error`,
    said once on stderr, the newest events stay in memory, and every interval tries again. Nothing is written any more
    once `taken_over` returns words: another process tells the rest.
    """

    def __init__(
        self,
        path: str | Path,
        flush_interval_s: float = 0.5,
        max_pending: int = MAX_PENDING,
        taken_over: Callable[[], str] = str,
    ) -> None:
        self.path = Path(path)
        self._taken_over = taken_over
        self.error: OSError | None = None
        """The error of the last attempt to write; None when all is well."""
        self.dropped = 0
        """Events lost because the disk refused for too long."""
        self._flush_interval_s = flush_interval_s
        self._fresh: deque[tuple[float, str, dict[str, Any]]] = deque(maxlen=max_pending)
        self._lines: deque[bytes] = deque()
        self._max_pending = max_pending
        self._fd: int | None = None
        self._line_is_open = False  # the file ends in half a line: of a crash, or of a disk that was full
        self._warned = False
        self._lock = threading.Lock()  # between the thread and flush(); write() never takes it
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="distdl-spool", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def write(self, kind: str, /, **fields: Any) -> None:
        """Adds one event of numbers (not tensors), strings, lists and dicts. A dict may be reused afterwards."""
        for name, value in fields.items():
            if type(value) is dict:
                fields[name] = value.copy()  # the thread looks at it later, the loop may already be filling it again
        self._fresh.append((time.time(), kind, fields))

    def flush(self) -> bool:
        """Writes everything and makes the disk keep it (fsync). False if the disk refused."""
        with self._lock:
            self._drain()
            if self.error is None and self._fd is not None:
                try:
                    os.fsync(self._fd)
                except OSError as error:
                    self._refused(error)
            return self.error is None

    def close(self) -> None:
        """Flushes and ends the thread. Safe to call twice."""
        atexit.unregister(self.close)
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)
        self.flush()
        with self._lock, contextlib.suppress(OSError):
            if self._fd is not None:
                os.close(self._fd)
            self._fd = None

    def _work(self) -> None:
        while not self._stop.wait(self._flush_interval_s):
            with self._lock:
                self._drain()

    def _drain(self) -> None:
        while self._fresh:
            self._lines.append(_encode(*self._fresh.popleft()))
        while len(self._lines) > self._max_pending:
            self._lines.popleft()
            self.dropped += 1
        if not self._lines:
            return
        try:
            if self._taken_over():
                self._lines.clear()
                return
            if self._fd is None:
                self._open()
            self._write_lines()
            self.error = None
        except OSError as error:
            self._refused(error)

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._fd).st_size
        # A crash may have left half a line. It is closed with a newline, not cut off: readers skip it, and nothing that
        # another process could still be writing is ever destroyed.
        self._line_is_open = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"

    def _write_lines(self) -> None:
        assert self._fd is not None
        while self._lines:
            batch = [b"\n"] if self._line_is_open else []
            batch += itertools.islice(self._lines, 1000)
            data = b"".join(batch)
            written = 0
            try:
                while written < len(data):
                    written += os.write(self._fd, data[written:])
            finally:  # a full disk takes a part: what is whole counts as written, the rest stays
                if written:
                    whole = data[:written].count(b"\n") - (1 if self._line_is_open else 0)
                    self._line_is_open = data[written - 1 : written] != b"\n"
                    for _ in range(whole):
                        self._lines.popleft()

    def _refused(self, error: OSError) -> None:
        self.error = error
        if not self._warned:
            self._warned = True
            print(
                f"distdl: cannot write {self.path}: {error.strerror or error}. Training goes on; the newest "
                f"{self._max_pending:,} events are kept in memory and tried again.",
                file=sys.stderr,
                flush=True,
            )


class SpoolReader:
    """Reads a spool that is being written. Tolerates a missing file, a torn tail and garbage lines."""

    def __init__(self, path: str | Path, offset: int = 0) -> None:
        self.path = Path(path)
        self.offset = offset
        """Bytes read: the start of the next line."""
        self.skipped = 0
        """Lines that were not events."""

    def poll(self, max_bytes: int | None = None) -> list[Event]:
        """The events of all complete lines since the last call, or of about `max_bytes` of them."""
        return [event for _, event in self.poll_with_offsets(max_bytes)]

    def poll_with_offsets(self, max_bytes: int | None = None) -> list[tuple[int, Event]]:
        """As `poll`, with the offset behind each event; reads about `max_bytes` (always at least one whole line)."""
        # Opened anew every time: on NFS only an open sees what another machine has written.
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_size < self.offset:
                    self.offset = 0  # a new file in the place of the old one
                file.seek(self.offset)
                data = file.read() if max_bytes is None else file.read(max_bytes) + file.readline()
        except OSError:
            return []
        found = []
        for line in data.split(b"\n")[:-1]:  # what follows the last newline is not a whole line yet
            self.offset += len(line) + 1
            event = _decode(line)
            if event is not None:
                found.append((self.offset, event))
            elif line.strip():
                self.skipped += 1
        return found

    def to_end(self) -> SpoolReader:
        """Skips everything that is there now; returns itself."""
        with contextlib.suppress(OSError):
            self.offset = self.path.stat().st_size
        return self


def count_events(path: str | Path, offset: int = 0) -> int:
    """How many events of the spool lie behind `offset`."""
    reader, count = SpoolReader(path, offset), 0
    while found := reader.poll_with_offsets(max_bytes=1 << 20):
        count += len(found)
    return count


def _encode(t: float, kind: str, fields: dict[str, Any]) -> bytes:
    event = {"t": round(t, 6), "kind": kind, **fields}
    try:
        text = json.dumps(event, allow_nan=False, default=_plain, separators=(",", ":"))
    except (ValueError, TypeError, RecursionError):
        try:
            text = json.dumps(_json_safe(event), separators=(",", ":"))
        except Exception as error:  # an event that cannot be written must not stop those that can
            text = json.dumps(
                {
                    "t": t,
                    "kind": "message",
                    "level": "warning",
                    "text": f"an event of kind {kind} could not be written: {type(error).__name__}",
                }
            )
    return text.encode("utf-8", "replace") + b"\n"


def _plain(value: Any) -> Any:
    """A number for what has one inside (numpy, torch scalars), else text."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "size", 1) in (1, ()):
        with contextlib.suppress(Exception):
            return item()
    return str(value)


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(float(value))}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    plain = _plain(value)
    return _json_safe(plain) if isinstance(plain, (float, int, str)) else str(plain)


def _decode(line: bytes) -> Event | None:
    try:
        event = json.loads(line, object_hook=_restore_float if b"$float" in line else None)
    except (ValueError, RecursionError):
        return None
    if isinstance(event, dict) and isinstance(event.get("kind"), str) and isinstance(event.get("t"), (int, float)):
        return event
    return None


def _restore_float(mapping: dict[str, Any]) -> Any:
    if len(mapping) == 1 and "$float" in mapping:
        return float(mapping["$float"])
    return mapping
