"""Runs the driver of a launched job where nothing else looks after it (Ray Jobs, SSH): starts it again when it was killed,
and ends it at its deadline.

    python -m distdl.jobs.drive --deadline-hours 168 --retries 3 --grace-s 120 -- train config.yaml …

SIGTERM is meant for the whole process group: Ray Jobs and `distdl jobs stop` send it to every process of it. So it is not
passed on to the driver, which would get it twice and be interrupted in the middle of ending well.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the head of a job need not load all of this to start its driver
    from distdl.jobs.target import Package

BESIDE_GRACE_S = 60
"""Seconds beyond `runtime.grace_s` that a driver has after SIGTERM, for Ray and its MLflow run; then it is killed."""
PAUSE_S = 5.0
"""Seconds before a driver that was killed is started again: what killed it may need them to pass."""


def driven(package: Package, folder: str | None) -> list[str]:
    """Arguments of this module that run a package's driver; relative paths of its config lie in `folder`."""
    launch = package.config.launch
    limits = {"--deadline-hours": launch.deadline_hours, "--retries": launch.max_retries, "--grace-s": stop_s(package)}
    words = [word for option, value in limits.items() for word in (option, f"{value:g}")]
    return [*words, "--", *package.train_arguments(folder=folder)]


def stop_s(package: Package) -> float:
    """Seconds that the driver of a package has to end well."""
    return package.config.runtime.grace_s + BESIDE_GRACE_S


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m distdl ARGS` to its end. Returns its exit code; 1 at the deadline."""
    parser = argparse.ArgumentParser(prog="python -m distdl.jobs.drive")
    parser.add_argument("--deadline-hours", type=float, required=True)
    parser.add_argument("--retries", type=int, required=True)
    parser.add_argument("--grace-s", type=float, required=True)
    parser.add_argument("arguments", nargs="+", metavar="ARGS")
    args = parser.parse_args(argv)
    arguments = list(args.arguments)
    for retry in range(args.retries + 1):
        code = _once(arguments, args.deadline_hours, args.grace_s)
        if code >= 0 or retry == args.retries:
            break
        print(f"the driver was killed by signal {-code}; starting it again ({retry + 1} of {args.retries})", flush=True)
        time.sleep(PAUSE_S)
        arguments = [text for text in arguments if text != "--fresh"]  # what was fresh is there now: continue it
    return code if code >= 0 else 128 - code


def _once(arguments: Sequence[str], deadline_hours: float, grace_s: float) -> int:
    """One driver. Returns its exit code; -N: signal N killed it."""
    stopped: list[int] = []

    def stop(number: int, _: Any) -> None:
        stopped.append(number)

    earlier = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    driver = subprocess.Popen([sys.executable, "-m", "distdl", *arguments])
    try:
        end = time.monotonic() + deadline_hours * 3600
        while driver.poll() is None and not stopped and time.monotonic() < end:
            time.sleep(0.1)
        if driver.poll() is not None and not stopped:
            return driver.returncode
        if not stopped:
            print(f"the deadline of {deadline_hours:g} hours is reached: `distdl jobs resume` continues", flush=True)
            driver.send_signal(signal.SIGTERM)
        code = _await_end(driver, grace_s)
        return (max(code, 0) or 130) if stopped else 1  # a stopped driver is not started again, however it ended
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _await_end(driver: subprocess.Popen[bytes], grace_s: float) -> int:
    try:
        return driver.wait(grace_s)
    except subprocess.TimeoutExpired:
        driver.kill()
        return driver.wait()


if __name__ == "__main__":
    sys.exit(main())
