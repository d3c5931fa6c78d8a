"""An uploader that is started before it is known for which run: it imports MLflow, which takes seconds, while the driver
plans. Then it is told the run, and is an uploader like any other; untold, it ends with the driver or before.

    with ahead.waiting(config.track.enabled) as early:
        ...
        process = early.take(run_dir, arguments) or uploader.spawn(run_dir, *arguments)
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from distdl.track import store, uploader
from distdl.track.process import start
from distdl.track.run import LOG_NAME


class Early:
    """One that waits to be told its run, or none."""

    def __init__(self, process: subprocess.Popen[bytes] | None = None) -> None:
        self._process = process

    def take(self, run_dir: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes] | None:
        """Tells it the run: what `uploader.spawn` would have started. None where none waits any more."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return None
        try:
            process.stdin.write(json.dumps([str(run_dir.resolve()), *arguments]).encode() + b"\n")
            process.stdin.close()
        except OSError:  # it has died
            process.kill()
            process.wait()
            return None
        return process

    def dismiss(self) -> None:
        """Ends it where it was not taken."""
        if self._process is not None:
            self._process.kill()  # it holds nothing yet
            self._process.communicate()
            self._process = None


@contextlib.contextmanager
def waiting(wanted: bool) -> Iterator[Early]:
    """One within it, if it is wanted and this machine can start one more process."""
    early = Early()
    if wanted:
        with contextlib.suppress(OSError):
            early = Early(start("distdl.track.ahead", subprocess.DEVNULL, stdin=subprocess.PIPE))
    try:
        yield early
    finally:
        early.dismiss()


def main() -> int:
    """Imports what sending takes, reads the arguments of `uploader.main`, and is that."""
    if hasattr(os, "nice"):
        os.nice(19)  # as the uploader's own
    store.set_environment()
    with contextlib.suppress(Exception):  # whatever is wrong with MLflow, the uploader says in the run's log
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    line = sys.stdin.readline()
    if not line.endswith("\n"):  # the driver has ended without a run
        return 0
    arguments = json.loads(line)
    with open(Path(arguments[0], LOG_NAME), "ab") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    return uploader.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
