"""The driver's side of tracking: start the uploader with the run, end it with the run, say what became of it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distdl import trust
from distdl.run.attempts import Attempt
from distdl.track import process, uploader
from distdl.track.ahead import Early
from distdl.track.alive import Heartbeat
from distdl.track.note import markdown
from distdl.track.pictures import draw
from distdl.track.provenance import TAG_VALUE_CHARS, cut
from distdl.track.run import SPOOL_NAME, RunInfo, check_tracking_uri, default_tracking_uri, load, update
from distdl.track.spool import SpoolReader, SpoolWriter, count_events
from distdl.track.store import NOTE, describe, set_environment

ENDS_WITH_US = ("KUBERNETES_SERVICE_HOST", "SLURM_JOB_ID")
"""Environment of a container or a job that ends, with all its processes, when the driver does."""
NO_ATTEMPT, NONE_WAITS = Attempt(), Early()


class Tracker:
    """Tracks one run folder in one MLflow run, through every restart and continuation.

    `tracking_uri` None means the project's own store, `mlflow.db` in the runs folder. `source_dir` is the folder of the
    config (its git commit becomes a tag). Once a newer attempt than `attempt` trains the run, nothing more is sent and the
    MLflow run stays open. Without `uploads` another process sends what is written here. Raises InputError for a URI that
    cannot be used or holds a password.
    """

    def __init__(
        self,
        run_dir: str | Path,
        tracking_uri: str | None,
        experiment: str,
        run_name: str,
        enabled: bool = True,
        source_dir: str | Path | None = None,
        attempt: Attempt = NO_ATTEMPT,
        uploads: bool = True,
    ) -> None:
        self.run_dir = Path(run_dir)
        self.tracking_uri = check_tracking_uri(tracking_uri or default_tracking_uri(self.run_dir.resolve().parent))
        self.experiment = experiment
        self.run_name = run_name
        self.enabled = enabled
        self.source_dir = source_dir
        self._attempt = attempt
        self._uploads = uploads
        self._process: subprocess.Popen[bytes] | None = None
        self._heartbeat = Heartbeat(attempt) if enabled and attempt.number else None

    def start(self, early: Early = NONE_WAITS) -> None:
        """Writes tracking.json and starts the uploader, or tells the one that waits.

        Raises DistdlError for a tracking.json that is damaged. A machine that cannot start one more process is only
        warned about: the events wait in the spool.
        """
        if not self.enabled:
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        arguments = ["--parent", str(os.getpid()), "--session-offset", str(self._spool_bytes())]
        arguments += ["--attempt", str(self._attempt.number)]
        if self.source_dir is not None:
            arguments += ["--source-dir", str(Path(self.source_dir).resolve())]
        try:
            update(
                self.run_dir,
                tracking_uri=self.tracking_uri,
                experiment=self.experiment,
                run_name=self.run_name,
                last_error="",
            )
            if self._heartbeat:
                self._heartbeat.start()
            if self._uploads:
                self._process = early.take(self.run_dir, arguments) or uploader.spawn(self.run_dir, *arguments)
        except OSError as error:
            print(
                f"distdl: tracking could not be started ({error}); events are kept in {self.run_dir / SPOOL_NAME}",
                file=sys.stderr,
            )

    def finish(
        self,
        status: str,
        error: str | None = None,
        summary: dict[str, Any] | None = None,
        drain_timeout_s: float = 30.0,
    ) -> str:
        """Writes the `end` event, waits for the uploader at most `drain_timeout_s`, and says in one line what is where.

        `status` is FINISHED, FAILED or KILLED. Call it when the workers have stopped writing. Never raises for a store
        that is down.
        """
        if self._heartbeat:
            self._heartbeat.stop()
        if words := self._attempt.taken_over():
            return words
        began_s = time.monotonic()
        writer = SpoolWriter(self.run_dir / SPOOL_NAME)
        writer.write("end", status=status, error=error, summary=summary or {}, drain_timeout_s=drain_timeout_s)
        writer.close()
        if not self.enabled:
            return f"not tracked in MLflow; the events are in {self.run_dir / SPOOL_NAME}"
        if not self._uploads:
            return "tracked in MLflow with the search"
        code = 1
        if self._process is not None:
            process.wake(self._process)
            # The uploader stops by itself at the deadline; the second is for it to notice the event.
            code = process.wait_or_kill(self._process, drain_timeout_s + 1.0)
            self._process = None
        if any(os.environ.get(name) for name in ENDS_WITH_US):
            draw.wait_for(self.run_dir, drain_timeout_s)
        left_s = drain_timeout_s - (time.monotonic() - began_s)
        if code and left_s > 1.0:  # the uploader had died, or never started: one more attempt in the time that is left
            code = uploader.upload_pending(self.run_dir, left_s, self.tracking_uri).waiting
        return self._statement(code)

    def _statement(self, code: int) -> str:
        info = load(self.run_dir)
        waiting = count_events(self.run_dir / SPOOL_NAME, info.spool_offset if info else 0)
        if info is not None and info.mlflow_run_id and not waiting and not code:
            return f"tracked in MLflow run {info.mlflow_run_id}"
        reason = f" ({info.last_error})" if info is not None and info.last_error else ""
        what = "1 event waits" if waiting == 1 else f"{waiting} events wait" if waiting else "the end state waits"
        return (
            f"{what} in {self.run_dir / SPOOL_NAME}{reason}; sent when the run is continued or with "
            f"`distdl ui --sync {shlex.quote(str(self.run_dir))}`"
        )

    def _spool_bytes(self) -> int:
        try:
            return (self.run_dir / SPOOL_NAME).stat().st_size
        except OSError:
            return 0


# -- what is done to a run that has ended -------------------------------------------------------------------------------


def retell(run_dir: Path) -> str:
    """Writes a run's note in MLflow anew, where the run lies in the store beside it. Why it was not, in words, or ''."""

    def send(client: Any, info: RunInfo) -> None:
        ends = [event for event in SpoolReader(run_dir / SPOOL_NAME).poll() if event["kind"] == "end"]
        text = markdown(run_dir, info.tags, info.worlds, ends[-1] if ends else {})
        client.set_tag(info.mlflow_run_id, NOTE, cut(text, TAG_VALUE_CHARS))

    return _in_own_store(run_dir, send, "MLflow is told when the run goes on")


def forget(run_dir: Path) -> str:
    """Moves a run to MLflow's trash, where it lies in the store beside it. Why it was not, in words, or ''."""
    return _in_own_store(run_dir, lambda client, info: client.delete_run(info.mlflow_run_id), "its MLflow run stays")


def _in_own_store(run_dir: Path, do: Callable[[Any, RunInfo], None], otherwise: str) -> str:
    """A store that only a run's files name gets no credentials of this user, and is asked to change nothing."""
    info = load(run_dir)
    if info is None or not info.mlflow_run_id:
        return ""
    if info.tracking_uri != default_tracking_uri(run_dir.resolve().parent):
        return f"{otherwise}: it lies in {trust.server(info.tracking_uri)}"
    set_environment()
    try:
        from mlflow import MlflowClient

        do(MlflowClient(tracking_uri=info.tracking_uri), info)
    except Exception as error:
        return f"{otherwise}: {describe(error)}"
    return ""
