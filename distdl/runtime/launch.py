"""Starts the workers where the config says, and turns whatever ends them into one clear error."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Timer, current_thread, main_thread
from typing import Any

from distdl.errors import DistdlError
from distdl.plan.plan import Plan
from distdl.run.attempts import Attempt
from distdl.run.folder import RunFolder
from distdl.run.heartbeat import DEFAULT_HANG_S, make_beats
from distdl.runtime import flights
from distdl.runtime.blame import first_failure
from distdl.runtime.watch import Watch, watching
from distdl.track.spool import SpoolWriter


def launch(plan: Plan, folder: RunFolder, waits_for: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """Runs the plan on its config's runtime, to its end or until Ctrl-C or SIGTERM asks for one; returns the summary,
    whose `finished` tells which. Workers that fail are started again `max_restarts` times, where that may help.
    `waits_for` is told what takes a while before the workers can tell of themselves.

    Raises a DistdlError that says why not; TakenOver where a newer attempt trains the run; KeyboardInterrupt where the
    workers were ended at once.
    """
    folder.attempt.check()
    (folder.path / "summary.json").unlink(missing_ok=True)
    config = plan.settings
    if config.runtime.kind == "ray":
        from distdl.runtime.ray import workers
    else:
        from distdl.runtime.local import workers
    hang_s = DEFAULT_HANG_S if config.guard.hang_s is None else config.guard.hang_s
    ranks = folder.attempt.ranks
    make_beats(ranks, plan.world)
    try:
        if config.runtime.kind == "ray":
            waits_for(f"the Ray cluster at {config.runtime.address}" if config.runtime.address else "Ray to start")
        watch = Watch(ranks, plan.world, hang_s, lambda beat, stack: "")
        with (
            stop_on_signals(folder.attempt, config.runtime.grace_s, lambda: watch.underway),
            workers(plan, folder) as (start, watch.end),
        ):
            waits_for(f"{plan.world} worker{'s' if plan.world > 1 else ''} to start")
            _until_the_end(config.runtime.max_restarts, folder, watch, start)
        folder.attempt.check()
        summary = folder.read("summary.json")
        if summary is None:
            raise first_failure(folder, RuntimeError("the workers ended without a summary")).error
    except Exception as error:
        if isinstance(error, DistdlError):
            raise
        with suppress(OSError):
            folder.attempt.check()  # whatever else it is matters no longer
        raise first_failure(folder, error).error from error
    finally:
        shutil.rmtree(ranks, ignore_errors=True)
    return summary


def _until_the_end(restarts: int, folder: RunFolder, watch: Watch, start: Callable[[int], None]) -> None:
    """Starts the workers until they end well, once and `restarts` times more. A failure that would come again is told at
    once: one of the input or of the code, or the same exception at the same step."""
    before = None
    for restart in range(restarts + 1):
        shutil.rmtree(folder.failures, ignore_errors=True)
        flights.forget(folder.path)
        make_beats(watch.folder, watch.world)
        watch.begin()
        try:
            with watching(watch):
                start(restart)
            return
        except Exception as error:
            with suppress(OSError):
                folder.attempt.check()
            failure = first_failure(folder, error, watch.verdict[1] if watch.verdict else "")
            with suppress(OSError):
                if folder.attempt.stop_requested():
                    if failure.own:
                        raise failure.error from error
                    raise KeyboardInterrupt from error  # the signal went to the workers, too, and ended them on the spot
            again = failure.cause is not None and failure.cause == before
            if restart == restarts or failure.lasting or again:
                raise failure.error from error
            before = failure.cause
            _tell(folder, f"{failure.error}\n    starting the workers again ({restart + 1} of {restarts})")


def _tell(folder: RunFolder, text: str) -> None:
    """A message of the driver's own, while there are no workers."""
    spool = SpoolWriter(folder.events, taken_over=folder.attempt.taken_over)
    spool.write("message", level="warning", text=text)
    spool.close()


TWICE_S = {signal.SIGTERM: 1.0, signal.SIGHUP: 1.0, signal.SIGINT: 0.3}
"""Signals this close together are one request: who ends a process group often signals its leader, too. SIGHUP: a terminal
that was closed, a connection that was lost."""


@contextmanager
def stop_on_signals(attempt: Attempt, grace_s: float, underway: Callable[[], bool]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP ask the workers to finish their step, write a checkpoint and end. A second, or `grace_s`
    seconds without their end, is a KeyboardInterrupt: they are ended at once; so are workers that have not begun to train
    (`underway`), which have nothing to write."""
    timers: list[Timer] = []
    asked_s = 0.0

    def asked(number: int, _: Any) -> None:
        nonlocal asked_s
        if timers:
            if time.monotonic() - asked_s > TWICE_S[signal.Signals(number)]:
                raise KeyboardInterrupt
            return
        if not underway():
            raise KeyboardInterrupt
        asked_s = time.monotonic()
        timers.append(Timer(max(grace_s, 2.0), os.kill, (os.getpid(), signal.SIGTERM)))
        timers[0].daemon = True
        timers[0].start()
        try:
            attempt.request_stop()
        except OSError as error:
            raise KeyboardInterrupt from error
        with suppress(OSError):  # not print(): this may have interrupted one
            again = "; Ctrl-C again leaves at once" if number == signal.SIGINT else ""
            os.write(2, f"\nfinishing the step and writing a checkpoint{again}\n".encode())

    heard = [number for number in TWICE_S if signal.getsignal(number) != signal.SIG_IGN]  # nohup, and `&` in a script
    if current_thread() is not main_thread():  # which alone may say what a signal does
        heard = []
    before = {number: signal.signal(number, asked) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in timers:
            timer.cancel()
