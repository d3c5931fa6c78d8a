"""An uploader seen from its driver, as a process: how it is started, woken and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO


def start(
    module: str, output: int | IO[bytes], *arguments: str, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Starts a module in a session of its own: Ctrl-C in the terminal does not reach it. May raise OSError."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=stdin,
        stdout=output,
        stderr=output,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
    )


def wait_or_kill(process: subprocess.Popen[bytes], timeout_s: float) -> int:
    """Waits for an uploader, at most `timeout_s`; then ends it. Its exit code: 0 is 'all sent'."""
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()  # safe at any moment: offsets are noted only for what MLflow has accepted
        return process.wait()


def pause(seconds: float) -> bool:
    """Waits so long, or until the driver has written the end and says so (`wake`): True then. A signal that comes while
    this process is at work waits for it."""
    if not hasattr(signal, "sigtimedwait"):
        time.sleep(seconds)
        return False
    return signal.sigtimedwait([signal.SIGCONT], seconds) is not None


def wake(process: subprocess.Popen[bytes]) -> None:
    """Ends an uploader's pause. By SIGCONT, which does nothing to a process that is not ready for it."""
    process.send_signal(signal.SIGCONT)
