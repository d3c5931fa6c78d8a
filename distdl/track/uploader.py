"""The process that sends a run's spool to MLflow: `python -m distdl.track.uploader RUN_DIR --parent PID`.

Training and tracking never meet: training appends lines to a file, this process reads them. If MLflow is down it tries
again, for as long as the run lasts. It ends when the driver has written the `end` event and everything is sent, or when
the driver is gone without a word: then the run ends as KILLED. What could not be sent stays in the spool for next time.

    spool ──► read ──► points (no step twice) ──► log_batch ──► note the offset in tracking.json
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from distdl.errors import InputError
from distdl.run.attempts import Attempt
from distdl.track import alive, provenance, store
from distdl.track.pictures import draw
from distdl.track.process import pause, start, wait_or_kill
from distdl.track.run import (
    LOG_NAME,
    SPOOL_NAME,
    check_tracking_uri,
    file_lock,
    load,
    mode_of,
    refuse_unconfigured,
    update,
)
from distdl.track.spool import Event, SpoolReader, count_events
from distdl.trust import refuse_links

POLL_INTERVAL_S = 1.0
BACKOFF_MAX_S = 30.0
DRAIN_TIMEOUT_S = 30.0
DRAW_S = 60.0
"""Between two processes that draw while the run goes on."""
QUIET_S = 2.0
"""After the driver has vanished, workers may still write for a moment: this long without news is the end."""
READ_BYTES = 1 << 20
LOCK_PATIENCE_S = 15.0
"""A run's uploader waits this long for the one before it, which may hang; MLflow keeps a point that both send once."""
NEIGHBOUR_S = 10.0
"""For closing another run of the folder, while the own one waits."""
STATUSES = ("FINISHED", "FAILED", "KILLED")
VANISHED = "the driver process ended without a word (killed, or its machine went down)"


class Upload(NamedTuple):
    """What an `upload_pending` did."""

    sent: int
    """Events that MLflow has now and had not before."""
    waiting: int
    """Events that are still only in the spool."""
    reason: str
    """Why some wait; empty when none does."""


def spawn(run_dir: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Starts an uploader of a run. May raise OSError."""
    with open(run_dir / LOG_NAME, "ab") as log:
        return start("distdl.track.uploader", log, str(run_dir.resolve()), *arguments)


def upload_pending(run_dir: str | Path, timeout_s: float = 60.0, uri: str | None = None) -> Upload:
    """Sends what still waits in a run's spool and sets the end state of its MLflow run. Takes at most `timeout_s`.

    `uri`: the store that the user names; None: the one that the run's files name, if the user has named it before.
    Raises InputError when the folder is not a tracked run, or names a store that is not the user's. A store that cannot
    be reached is no error: see `Upload`.
    """
    run_dir = Path(run_dir)
    refuse_links(run_dir)
    before = load(run_dir)
    if before is None:
        raise InputError(
            f"{run_dir} is not a tracked run: it holds no tracking.json",
            where="RUN",
            allowed="the folder of a run that was started with tracking",
        )
    if uri is None:
        fix = f"distdl ui --sync {shlex.quote(str(run_dir))} --uri {shlex.quote(before.tracking_uri)}"
        refuse_unconfigured(before.tracking_uri, run_dir, fix)
    elif check_tracking_uri(uri) != before.tracking_uri:
        before = update(run_dir, tracking_uri=uri)
    waiting_before = count_events(run_dir / SPOOL_NAME, before.spool_offset)
    process = spawn(run_dir, "--drain", "--drain-timeout-s", str(timeout_s))
    code = wait_or_kill(process, timeout_s)
    after = load(run_dir) or before
    waiting = count_events(run_dir / SPOOL_NAME, after.spool_offset)
    reason = ""
    if waiting or code:
        reason = "another uploader is at work on this run" if code == 3 else after.last_error or f"see {LOG_NAME}"
    return Upload(max(0, waiting_before - waiting), waiting, reason)


def close_dead_later(runs: Path) -> list[str]:
    """Starts to close the runs of a folder that MLflow has as RUNNING and nobody trains, in a process of its own; their
    names. May raise OSError."""
    if found := list(alive.dead_runs(runs)):
        spawn(found[0][0], "--dead")
    return [run.name for run, _ in found]


def close_dead(runs: Path, uri: str | None = None) -> None:
    """Ends the MLflow runs of a folder whose driver and uploader are gone: as their last event says, else as KILLED."""
    for run, attempt in alive.dead_runs(runs, uri):
        with file_lock(run / alive.UPLOADER_LOCK, wait=False) as alone:
            if alone:
                log(f"nobody trains {run.name} any more: its MLflow run is closed")
                with contextlib.suppress(store.RunGone):
                    Uploader(run, 0, 0, True, NEIGHBOUR_S, attempt).follow()


class Uploader:
    """Follows one spool until the end of the session, or (drain) only to its present end."""

    def __init__(
        self,
        run_dir: Path,
        parent_pid: int,
        session_offset: int,
        drain: bool,
        drain_timeout_s: float,
        attempt: int = 0,
    ) -> None:
        self.run_dir = run_dir
        self._parent_pid = parent_pid
        self._session_offset = session_offset
        self._drain = drain
        self._drain_timeout_s = drain_timeout_s
        self._attempt = Attempt(run_dir, attempt)
        self._store = store.Store(run_dir, log)
        self._scout = SpoolReader(run_dir / SPOOL_NAME)  # runs ahead of what is sent, only to see the end coming
        self._last_news_s = time.monotonic()
        self._end: Event | None = None
        self._deadline_s: float | None = None
        self._next_try_s = self._next_beat_s = 0.0
        self._backoff_s = 0.0
        self._to_draw, self._next_draw_s = False, time.monotonic() + DRAW_S
        self._drawing: subprocess.Popen[bytes] | None = None

    def follow(self) -> int:
        """Runs to the end. 0: everything sent and the run closed; 1: something waits in the spool, or the rest is for the
        uploader of a newer attempt to send."""
        while True:
            if self._taken_over():
                return 1
            if time.monotonic() > self._next_beat_s:
                self._next_beat_s = time.monotonic() + alive.BEAT_S
                alive.touch(self.run_dir / alive.UPLOADER_LOCK)
            self._look_ahead()
            all_sent = self._try_to_send()
            if all_sent and self._ending() and not self._taken_over() and self._try_to_close():
                return 0
            if self._deadline_s is not None and time.monotonic() > self._deadline_s:
                log("time is up; what was not sent stays in the spool")
                return 1
            pause(POLL_INTERVAL_S if self._deadline_s is None else 0.2)

    def _taken_over(self) -> bool:
        with contextlib.suppress(OSError):
            if words := self._attempt.taken_over():
                log(words)
                return True
        return False

    def _look_ahead(self) -> None:
        while found := self._scout.poll_with_offsets(READ_BYTES):
            self._last_news_s = time.monotonic()
            for offset, event in found:
                if event["kind"] == "end" and offset > self._session_offset:
                    self._end = event
                elif self._drain and event["kind"] in ("phase", "metrics"):
                    self._end = None  # the run was continued after that end
        if self._deadline_s is not None:
            return
        if self._end is not None or self._drain or self._parent_is_gone():
            limit_s = self._drain_timeout_s
            if self._end is not None and not self._drain:
                limit_s = float(self._end.get("drain_timeout_s", limit_s))
            self._deadline_s = time.monotonic() + limit_s
            self._next_try_s = 0.0  # a last try now, whatever the backoff says

    def _ending(self) -> bool:
        if self._end is not None or self._drain:
            return True
        return self._parent_is_gone() and time.monotonic() - self._last_news_s > QUIET_S

    def _parent_is_gone(self) -> bool:
        # A process whose parent dies gets another one at once, even while the dead one still waits to be reaped.
        return self._parent_pid > 0 and os.getppid() != self._parent_pid

    def _try_to_send(self) -> bool:
        """Sends what is there. True when nothing is left to send."""
        if time.monotonic() < self._next_try_s:
            return False
        try:
            if not self._store.connected:
                self._store.connect()
                self._recovered()
                if not self._drain:
                    close_dead(self.run_dir.resolve().parent, self._store.info().tracking_uri)
            while True:
                reader = SpoolReader(self.run_dir / SPOOL_NAME, self._store.info().spool_offset)
                events = reader.poll_with_offsets(READ_BYTES)
                if not events:
                    break
                self._store.send(events)
                self._recovered()
                self._to_draw |= any(event["kind"] in ("picture", "evaluation") for _, event in events)
            if self._to_draw and not self._drain and time.monotonic() > self._next_draw_s:
                self._draw()
            self._store.send_system()
            return True
        except store.RunGone:
            raise
        except Exception as error:
            self._failed(error)
            return False

    def _draw(self) -> None:
        """Starts what draws the run's pictures, where there is something new to draw."""
        if self._to_draw:
            self._to_draw, self._next_draw_s = False, time.monotonic() + DRAW_S
            with contextlib.suppress(OSError):  # a machine that can start no more processes has no pictures
                self._drawing = draw.spawn(self.run_dir)

    def _try_to_close(self) -> bool:
        end = self._end or {}
        status = end.get("status") if end.get("status") in STATUSES else "KILLED"
        try:
            self._store.finish(str(status), end.get("error") if self._end else VANISHED, self._end)
            log(f"the MLflow run ended as {status}")
            self._draw()
            return True
        except Exception as error:
            self._failed(error)
            return False

    def _failed(self, error: Exception) -> None:
        text = store.describe(error)
        if not self._backoff_s:
            log(f"MLflow does not take the events, trying again: {text}")
            update_quietly(self.run_dir, last_error=text)
        self._backoff_s = min(BACKOFF_MAX_S, 2 * self._backoff_s or 1.0)
        self._next_try_s = time.monotonic() + self._backoff_s

    def _recovered(self) -> None:
        if self._backoff_s:
            log("MLflow takes the events again")
            update_quietly(self.run_dir, last_error="")
        self._backoff_s = 0.0


def log(text: str) -> None:
    """One line in tracking.log, which is where this process's output goes."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


def update_quietly(run_dir: Path, **changes: Any) -> None:
    """As `run.update`; a full disk is only noted."""
    try:
        update(run_dir, **changes)
    except OSError as error:
        log(f"cannot write the tracking record: {error}")


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 all sent, 1 something waits, 3 another uploader has this run."""
    parser = argparse.ArgumentParser(prog="distdl.track.uploader", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--parent", type=int, default=0, help="process id of the driver; when it is gone the run ends")
    parser.add_argument("--session-offset", type=int, default=0, help="size of the spool when this session began")
    parser.add_argument("--source-dir", type=Path, help="folder of the config: its git commit becomes a tag")
    parser.add_argument("--attempt", type=int, default=0, help="number of the driver's attempt; a newer one ends this")
    parser.add_argument("--drain", action="store_true", help="send what is there and exit")
    parser.add_argument("--dead", action="store_true", help="close the dead runs of the folder that RUN_DIR lies in")
    parser.add_argument("--drain-timeout-s", type=float, default=DRAIN_TIMEOUT_S)
    options = parser.parse_args(arguments)
    # The driver decides when the run ends: by an `end` event, or by being gone.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCONT])  # kept for the next pause
    if hasattr(os, "nice"):
        # Importing mlflow alone takes seconds of a core, and training goes first: that of Ray's workers, too, whose own
        # niceness is 15.
        os.nice(19)
    store.set_environment()
    # The store lies in the runs folder and is as open as that one, whatever the driver has set for the run's own folder.
    os.umask(~options.run_dir.resolve().parent.stat().st_mode & 0o777 | 0o002)
    if options.dead:
        close_dead(options.run_dir.resolve().parent)
        return 0
    with _lock(options.run_dir / alive.UPLOADER_LOCK, 0.0 if options.drain else LOCK_PATIENCE_S) as alone:
        if not alone and options.drain:
            return 3
        if not options.drain:
            _write_origin(options.run_dir, options.source_dir)
        uploader = Uploader(
            options.run_dir,
            options.parent,
            options.session_offset,
            options.drain,
            options.drain_timeout_s,
            options.attempt,
        )
        try:
            return uploader.follow()
        except store.RunGone as error:
            log(str(error))
            update_quietly(options.run_dir, last_error=str(error))
            return 1


@contextlib.contextmanager
def _lock(path: Path, patience_s: float) -> Iterator[bool]:
    """Holds the lock of the run's uploader; yields False where another still has it when patience is over."""
    end = time.monotonic() + patience_s
    while True:
        with file_lock(path, wait=False) as got:
            if got or time.monotonic() >= end:
                yield got
                return
        time.sleep(0.2)


def _write_origin(run_dir: Path, source_dir: Path | None) -> None:
    """Notes where the run comes from now, on this machine: the store may only be reachable much later."""
    try:
        (run_dir / "environment.txt").write_text(provenance.environment_text(), encoding="utf-8")
        (run_dir / "environment.txt").chmod(mode_of(run_dir))
        update(run_dir, tags=provenance.gather_tags(run_dir, source_dir))
    except OSError as error:
        log(f"cannot note where the run comes from: {error}")


if __name__ == "__main__":
    sys.exit(main())
