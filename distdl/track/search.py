"""Sends a search and all its trials to MLflow: `python -m distdl.track.search SEARCH_DIR --parent PID`.

One process for all of them, since importing MLflow takes seconds: the search is a run whose children are the trials
(MLflow's tag `mlflow.parentRunId`). As with a single run, training and tracking never meet: it reads what the trials have
spooled. What could not be sent stays in the spools, and is sent when the search goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from distdl.config.schema import Track
from distdl.track import process, provenance, store
from distdl.track.alive import UPLOADER_LOCK
from distdl.track.run import (
    INFO_NAME,
    LOG_NAME,
    SEARCH_NAME,
    SPOOL_NAME,
    check_tracking_uri,
    default_tracking_uri,
    file_lock,
    load,
    update,
)
from distdl.track.spool import SpoolReader, SpoolWriter, count_events
from distdl.track.uploader import STATUSES, log

POLL_S = 1.0
DRAIN_S = 60.0
"""For what is left when the search has ended."""
PARENT = "mlflow.parentRunId"
FILES = ("search.json", "config.yaml", "best.yaml", "trials.csv")
PICTURE = "search.png"


class SearchTracker:
    """The driver's side: starts the process with the search, ends it with the search, says what became of it."""

    def __init__(self, folder: Path, track: Track, name: str, runs: Path, source: Path) -> None:
        """`source`: the folder of the config, whose git commit becomes a tag."""
        self._folder, self._track, self._name, self._source = folder, track, name, source
        self._uri = check_tracking_uri(track.uri or default_tracking_uri(runs))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """A machine that cannot start one more process is only warned about: the events wait in the spools."""
        if not self._track.enabled:
            return
        try:
            update(
                self._folder,
                tracking_uri=self._uri,
                experiment=self._track.experiment,
                run_name=self._name,
                last_error="",
            )
            with open(self._folder / LOG_NAME, "ab") as log_file:
                arguments = [str(self._folder.resolve()), "--parent", str(os.getpid())]
                arguments += ["--offset", str(self._spool_bytes()), "--source-dir", str(self._source.resolve())]
                self._process = process.start("distdl.track.search", log_file, *arguments)
        except OSError as error:
            print(f"distdl: tracking could not be started ({error}); events are kept in the trials", file=sys.stderr)

    def finish(self, status: str, error: str) -> str:
        """Waits for what is left to be sent, and says in one line what is where. `status`: FINISHED, FAILED or KILLED."""
        if not self._track.enabled:
            return f"not tracked in MLflow; the trials are in {self._folder}"
        writer = SpoolWriter(self._folder / SPOOL_NAME)
        writer.write("end", status=status, error=error)
        writer.close()
        code = 1
        if self._process is not None:
            process.wake(self._process)
            code = process.wait_or_kill(self._process, DRAIN_S + 1.0)
        info = load(self._folder)
        if info is not None and info.mlflow_run_id and not code:
            return f"tracked in MLflow run {info.mlflow_run_id}, the trials below it"
        reason = f" ({info.last_error})" if info is not None and info.last_error else ""
        return f"some of the search waits to be sent to MLflow{reason}; `distdl tune … --resume` sends it"

    def _spool_bytes(self) -> int:
        try:
            return (self._folder / SPOOL_NAME).stat().st_size
        except OSError:
            return 0


# -- the process ---------------------------------------------------------------------------------------------------------


class SearchUploader:
    """Follows the spools of a search's trials, and its record, until the search has ended."""

    def __init__(self, folder: Path, parent_pid: int, offset: int, source: Path | None) -> None:
        self.folder = folder
        self._tags = {**provenance.gather_tags(folder, source), "mlflow.source.name": "distdl tune"}
        self._parent_pid = parent_pid
        self._events = SpoolReader(folder / SPOOL_NAME, offset)
        self._end: dict[str, Any] | None = None
        self._client: Any = None
        self._run_id = ""
        self._children: dict[Path, store.Store] = {}
        self._closed: set[Path] = set()
        self._told: set[str] = set()
        self._said = ""

    def follow(self) -> int:
        """Exit code 0: everything sent and all runs closed; 1: something waits."""
        deadline_s = None
        while True:
            for event in self._events.poll():
                self._end = event if event["kind"] == "end" else self._end
            gone = self._parent_pid > 0 and os.getppid() != self._parent_pid
            if deadline_s is None and (gone or self._end):
                deadline_s = time.monotonic() + DRAIN_S
            sent = self._try_to_send()
            if sent and (gone or self._end) and self._try_to_close():
                return 0
            if deadline_s is not None and time.monotonic() > deadline_s:
                log("time is up; what was not sent stays in the spools")
                return 1
            process.pause(POLL_S if deadline_s is None else 0.2)

    def _try_to_send(self) -> bool:
        """Sends what is there. True when nothing is left to send."""
        try:
            if self._client is None:
                self._connect()
            for path in sorted(self.folder.glob(f"*/{INFO_NAME}")):
                if path.parent not in self._closed and not path.parent.is_symlink():
                    self._send_trial(path.parent)
            self._send_values()
            return True
        except Exception as error:
            self._say(f"MLflow does not take the search, trying again: {store.describe(error)}")
            with contextlib.suppress(OSError):
                update(self.folder, last_error=store.describe(error))
            return False

    def _connect(self) -> None:
        """Finds or makes the run of the search, and tells what is searched."""
        parent = store.Store(self.folder, log)
        update(self.folder, tags=self._tags)
        parent.connect()
        self._run_id = parent.run_id
        info = load(self.folder)
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=info.tracking_uri if info else None)
        self._tell_what_is_searched()

    def _tell_what_is_searched(self) -> None:
        from mlflow.entities import Param

        record = provenance.read_json(self.folder / SEARCH_NAME) or {}
        section = {**record.get("search", {}), "seed": record.get("seed"), "metric": record.get("metric")}
        space = {f"space.{key}": value for key, value in section.pop("space", {}).items()}
        known = self._client.get_run(self._run_id).data.params
        params = provenance.config_params({**section, **{k: _only_given(v) for k, v in space.items()}})
        new = [Param(f"search.{key}", value) for key, value in params.items() if f"search.{key}" not in known]
        for start in range(0, len(new), store.PARAMS_PER_BATCH):
            self._client.log_batch(self._run_id, params=new[start : start + store.PARAMS_PER_BATCH])

    def _send_trial(self, run: Path) -> None:
        """What a trial has told since last time; where it has ended, its MLflow run does, too."""
        with file_lock(run / UPLOADER_LOCK, wait=False) as alone:
            info = load(run)
            if not alone or info is None:
                return
            waiting = count_events(run / SPOOL_NAME, info.spool_offset)
            if not waiting and info.status in STATUSES:
                return
            if run not in self._children:
                own = provenance.gather_tags(run, None)["distdl.run_dir"]
                update(run, tags={**self._tags, "distdl.run_dir": own, PARENT: self._run_id})
                self._children[run] = store.Store(run, log)
                self._children[run].connect()
            child, last = self._children[run], None
            while events := SpoolReader(run / SPOOL_NAME, child.info().spool_offset).poll_with_offsets(1 << 20):
                child.send(events)
                last = events[-1][1]
            if last is not None and last["kind"] == "end":
                child.send_system()
                status = last.get("status")
                child.finish(str(status if status in STATUSES else "KILLED"), last.get("error"), last)
                del self._children[run]

    def _send_values(self) -> None:
        """The metric of every trial that has ended, by its number, and the best so far."""
        record = provenance.read_json(self.folder / SEARCH_NAME) or {}
        metric, better, best = record.get("metric", "objective"), record.get("better"), None
        for trial in record.get("trials", []):
            value = trial["objective"]
            if value is None or trial["state"] in ("running", "failed"):
                continue
            best = value if best is None else (max if better == "higher" else min)(best, value)
            if trial["name"] not in self._told and trial["state"] in ("finished", "stopped"):
                self._client.log_metric(self._run_id, f"trials/{metric}", value, step=trial["number"])
                self._client.log_metric(self._run_id, f"best/{metric}", best, step=trial["number"])
                self._told.add(trial["name"])

    def _try_to_close(self) -> bool:
        end = self._end or {"status": "KILLED", "error": "the driver process ended without a word"}
        try:
            for name in FILES:
                if (file := self.folder / name).is_file():
                    self._client.log_text(self._run_id, provenance.artifact_text(file), name)
            if (picture := self.folder / PICTURE).is_file():
                self._client.log_artifact(self._run_id, str(picture))
            self._client.set_tag(self._run_id, store.NOTE, provenance.cut(self._note(), provenance.TAG_VALUE_CHARS))
            self._client.set_tag(self._run_id, "distdl.error", provenance.cut(str(end.get("error") or ""), 5000))
            status = end["status"] if end["status"] in STATUSES else "KILLED"
            self._client.set_terminated(self._run_id, status=status)
            update(self.folder, status=status, last_error="")
            return True
        except Exception as error:
            self._say(f"MLflow does not take the end of the search: {store.describe(error)}")
            return False

    def _note(self) -> str:
        """What people read first: the best trials."""
        record = provenance.read_json(self.folder / SEARCH_NAME) or {}
        metric, trials = record.get("metric", ""), [t for t in record.get("trials", []) if t["objective"] is not None]
        order = sorted(trials, key=lambda t: t["objective"], reverse=record.get("better") == "higher")
        keys = list(record.get("search", {}).get("space", {}))
        rows = [("trial", "state", "step", metric, *keys), *(("---",) * (4 + len(keys)),)]
        for t in order[:10]:
            values = (json.dumps(t["values"].get(key)) for key in keys)
            rows.append((t["name"], t["state"], f"{t['step']:,}", f"{t['objective']:.6g}", *values))
        table = "\n".join(f"| {' | '.join(str(cell).replace('|', '¦') for cell in row)} |" for row in rows)
        section = record.get("search", {})
        how = f"{section.get('algorithm')}, scheduler {section.get('scheduler')}"
        what = f"**{len(record.get('trials', []))} trials** by {how}."
        return provenance.redact(f"{what} The best first:\n\n{table}\n\n`best.yaml` is the config of the best.\n")

    def _say(self, text: str) -> None:
        """Once, and not at each try."""
        if text != self._said:
            self._said = text
            log(text)


def _only_given(space: dict[str, Any]) -> str:
    """`log_uniform [0.0001, 0.1]`: what is said of a key, without what is not."""
    return "; ".join(f"{kind} {json.dumps(value)}" for kind, value in space.items() if value is not None)


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 all sent, 1 something waits."""
    parser = argparse.ArgumentParser(prog="distdl.track.search", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--parent", type=int, default=0, help="process id of the driver; when it is gone the search ends"
    )
    parser.add_argument("--offset", type=int, default=0, help="size of the search's spool when this session began")
    parser.add_argument("--source-dir", type=Path, help="folder of the config: its git commit becomes a tag")
    options = parser.parse_args(arguments)
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the driver decides when the search ends
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCONT])  # kept for the next pause
    os.nice(19)
    store.set_environment()
    os.umask(~options.folder.resolve().parent.stat().st_mode & 0o777 | 0o002)
    return SearchUploader(options.folder, options.parent, options.offset, options.source_dir).follow()


if __name__ == "__main__":
    sys.exit(main())
