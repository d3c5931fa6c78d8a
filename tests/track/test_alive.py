"""A run whose driver and uploader are gone is closed in MLflow by whoever looks next; one that is alive never is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distdl.cli import jobs
from distdl.jobs.records import Record
from distdl.run.attempts import claim
from distdl.track import alive, uploader
from distdl.track.alive import Heartbeat, dead, dead_runs
from distdl.track.run import default_tracking_uri, file_lock, load, update
from distdl.track.spool import SpoolWriter
from distdl.track.store import Store
from distdl.track.uploader import VANISHED, close_dead
from tests.track.conftest import make_run, mlflow_run, spool, steps_of


def left_running(folder: Path) -> Path:
    """A run whose driver and uploader were killed at once: attempt 1, events that wait, RUNNING in MLflow."""
    process = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], stdout=subprocess.PIPE, check=True
    )
    attempt = claim(folder)
    Heartbeat(attempt).start()
    told(folder, pid=int(process.stdout), began="1")
    uri = default_tracking_uri(folder.parent)
    update(folder, tracking_uri=uri, experiment="e", run_name=folder.name)
    Store(folder, print).connect()
    spool(folder, range(5))
    (folder / alive.UPLOADER_LOCK).touch()
    return folder


def told(folder: Path, age_s: float = 0, **changes: Any) -> None:
    """Changes what the newest attempt has said of its process, and when all of it was last heard of."""
    file = max((folder / "attempts").glob("*.alive"))
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    for path in (file, folder / alive.UPLOADER_LOCK, folder / "events.jsonl"):
        if age_s and path.exists():
            os.utime(path, (time.time() - age_s, time.time() - age_s))


@pytest.fixture
def lost(runs_dir: Path) -> Path:
    return left_running(make_run(runs_dir, "lost"))


def test_the_next_one_who_looks_closes_it(lost: Path) -> None:
    assert mlflow_run(lost)[1].info.status == "RUNNING"
    assert list(dead_runs(lost.parent)) == [(lost, 1)]
    close_dead(lost.parent)
    _, run = mlflow_run(lost)
    assert run.info.status == "KILLED" and run.data.tags["distdl.error"] == VANISHED
    assert steps_of(lost, "train/loss") == list(range(5)), "what waited is sent"
    assert not any(name.startswith("system/") for name in run.data.metrics), "of another machine, at another time"
    assert not list(dead_runs(lost.parent)), "once"


@pytest.mark.slow
def test_an_end_that_was_written_and_not_sent_counts(lost: Path) -> None:
    writer = SpoolWriter(lost / "events.jsonl")
    writer.write("end", status="FAILED", error="worker 3 was lost", summary={})
    writer.close()
    close_dead(lost.parent)
    _, run = mlflow_run(lost)
    assert (run.info.status, run.data.tags["distdl.error"]) == ("FAILED", "worker 3 was lost")


def test_what_is_alive_or_may_be_is_left_alone(lost: Path) -> None:
    me = json.loads(max((lost / "attempts").glob("*.alive")).read_text())
    elsewhere = {"machine": "another one"}
    for what, changes, verdict in (
        ("its driver is gone", {}, 1),
        ("another process has its number now", {"pid": os.getpid()}, 1),
        ("alive", alive._process(os.getpid()), 0),
        ("on another machine, heard of a moment ago", elsewhere, 0),
        ("silent for as long as a step may take", {**elsewhere, "age_s": alive.SILENT_S - 60}, 0),
        ("its machine is gone", {**elsewhere, "age_s": alive.SILENT_S + 60}, 1),
        ("a machine that does not tell what it is", {"machine": "", "age_s": alive.SILENT_S - 60}, 0),
    ):
        told(lost, **{**me, **changes})
        assert dead(lost) == verdict, what
    for lock in (alive.RUN_LOCK, alive.UPLOADER_LOCK):
        with file_lock(lost / lock):
            told(lost, **{**me, **elsewhere}, age_s=alive.SILENT_S + 60)
            assert dead(lost) == 0, f"somebody holds {lock}"
    told(lost, **{**me, **elsewhere}, age_s=alive.SILENT_S + 60)
    alive.touch(lost / alive.UPLOADER_LOCK)
    assert dead(lost) == 0, "its uploader lives"
    told(lost, **me)
    assert dead(lost) == 1
    claim(lost)
    assert dead(lost) == 0, "a newer attempt has begun"


def test_a_store_that_only_the_runs_files_name_is_not_talked_to(lost: Path) -> None:
    update(lost, tracking_uri="http://127.0.0.1:9")
    assert not list(dead_runs(lost.parent))
    assert list(dead_runs(lost.parent, "http://127.0.0.1:9")) == [(lost, 1)]
    link = lost.parent / "link"
    link.symlink_to(lost)
    assert list(dead_runs(lost.parent, "http://127.0.0.1:9")) == [(lost, 1)]


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Closing starts no process; the runs that it was started for."""
    asked: list[Path] = []

    def spawn(run: Path, *arguments: str) -> None:
        assert arguments == ("--dead",)
        asked.append(run)
        uploader.main([str(run), *arguments])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uploader, "spawn", spawn)
        patch.setattr(uploader.signal, "signal", lambda *_: None)
        patch.setattr(uploader.os, "nice", lambda _: None)
        yield asked


@pytest.mark.slow
def test_jobs_list_and_a_run_that_starts_beside_it_close_it(
    lost: Path, in_this_process: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Remembered(Record):
        def config(self) -> Any:
            class Config:
                class launch:
                    folder = str(lost.parent.parent)

                runs = lost.parent.name

            return Config

    jobs._tell_dead([Remembered("lost", "ssh", 0.0, lost)])
    assert in_this_process == [lost] and "lost ended without a word" in capsys.readouterr().out
    assert mlflow_run(lost)[1].info.status == "KILLED"

    second = left_running(make_run(lost.parent, "second"))
    third = make_run(lost.parent, "third")
    update(third, tracking_uri=default_tracking_uri(lost.parent), experiment="e", run_name="third")
    spool(third, range(3))
    writer = SpoolWriter(third / "events.jsonl")
    writer.write("end", status="FINISHED", error=None, summary={})
    writer.close()
    assert uploader.Uploader(third, 0, 0, False, 30.0).follow() == 0
    assert [mlflow_run(run)[1].info.status for run in (second, third)] == ["KILLED", "FINISHED"]
    info = load(third)
    assert info is not None and info.status == "FINISHED"
