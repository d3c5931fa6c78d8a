"""Starts the workers where the config says, and turns whatever ends them into one clear error."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Timer
from typing import Any

from distdl.attempts import Attempt
from distdl.config import Config
from distdl.errors import DistdlError, InputError, TrainingFailed
from distdl.plan.plan import Plan
from distdl.run_folder import RunFolder


def launch(config: Config, plan: Plan, folder: RunFolder) -> dict[str, Any]:
    """Runs the plan on the config's runtime, to its end or until SIGTERM asks for one; returns the summary, whose
    `finished` tells which.

    Raises a DistdlError that says why not; TakenOver where a newer attempt trains the run.
    """
    folder.attempt.check()
    shutil.rmtree(folder.failures, ignore_errors=True)
    (folder.path / "summary.json").unlink(missing_ok=True)
    try:
        if config.runtime.kind == "ray":
            from distdl.runtime.ray import start
        else:
            from distdl.runtime.local import start
        with stop_on_sigterm(folder.attempt, config.runtime.grace_s):
            start(config, plan, folder)
        folder.attempt.check()
    except BaseException as error:
        with suppress(OSError):
            folder.attempt.check()  # whatever else it is matters no longer
            if folder.attempt.stop_requested():  # the signal went to the workers, too, and ended them on the spot
                raise KeyboardInterrupt from error
        if isinstance(error, Exception) and not isinstance(error, DistdlError):
            raise first_failure(folder, error) from error
        raise
    summary = folder.read("summary.json")
    if summary is None:
        raise first_failure(folder, RuntimeError("the workers ended without a summary"))
    return summary  # type: ignore[no-any-return]


TWICE_S = 1.0
"""Signals this close together are one request: who ends a process group often signals its leader, too."""


@contextmanager
def stop_on_sigterm(attempt: Attempt, grace_s: float) -> Iterator[None]:
    """SIGTERM asks the workers to finish their step, write a checkpoint and end. A second one, or `grace_s` seconds
    without their end, is a KeyboardInterrupt: they are ended at once."""
    timers: list[Timer] = []
    asked_s = 0.0

    def asked(*_: Any) -> None:
        nonlocal asked_s
        if timers:
            if time.monotonic() - asked_s > TWICE_S:
                raise KeyboardInterrupt
            return
        asked_s = time.monotonic()
        timers.append(Timer(max(grace_s, 2 * TWICE_S), os.kill, (os.getpid(), signal.SIGTERM)))
        timers[0].daemon = True
        timers[0].start()
        try:
            attempt.request_stop()
        except OSError as error:
            raise KeyboardInterrupt from error

    before = signal.signal(signal.SIGTERM, asked)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for timer in timers:
            timer.cancel()


def first_failure(folder: RunFolder, error: Exception) -> DistdlError:
    """The error of the worker that failed first; the others only lost their connection to it."""
    records = folder.failure_records()
    killed = _killed(error)
    if killed and not any(record["known"] for record in records):  # the others only say that they lost it
        return TrainingFailed(
            f"{killed}: out of memory and a kill from outside are the usual causes\n"
            f"    the last checkpoint is in {folder.checkpoints}; the same command continues from it"
        )
    if not records:
        lines = [line for line in str(error).splitlines() if line.strip("= ")]
        why = lines[-1].strip() if lines else ""
        return TrainingFailed(f"the workers could not be run: {type(error).__name__}: {why}")
    first = min(records, key=lambda r: (not r["known"], r["time"]))
    if first["exit_code"] == 2:
        return InputError(first["message"])
    if first["known"]:
        return TrainingFailed(first["message"])
    where = folder.failures / f"rank-{first['rank']}.json"
    return TrainingFailed(f"worker {first['rank']} failed: {first['message']}\n    its traceback is in {where}")


def _killed(error: Exception) -> str:
    """Which worker a signal ended, as torch's launcher or Ray Train tell it; '' where none did."""
    for rank, failure in sorted(getattr(error, "failures", {}).items()):
        code = getattr(failure, "exitcode", 0)
        if code < 0 and code != -signal.SIGTERM:  # SIGTERM is the launcher's own, to those that were left
            return f"worker {rank} was killed by signal {-code}"
    for rank, failure in sorted(getattr(error, "worker_failures", {}).items()):
        if "ActorDied" in type(failure).__name__ or "ActorDied" in str(failure):
            return f"worker {rank} died without a word"
    return ""
