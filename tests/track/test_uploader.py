"""The way to MLflow: everything arrives once, in one run, and training never waits for it."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from distdl.errors import InputError
from distdl.track import points, process, provenance, uploader
from distdl.track.client import Tracker
from distdl.track.run import load, update
from distdl.track.spool import SpoolReader, SpoolWriter
from distdl.track.uploader import upload_pending
from tests.track.conftest import drain, make_run, mlflow_run, spool, steps_of


def tracker(folder: Path, uri: str | None = None, **more: object) -> Tracker:
    return Tracker(folder, uri, "my experiment", folder.name, **more)  # type: ignore[arg-type]


def closed_port_uri() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def wait_for(condition: object, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_run_arrives_whole(run_dir: Path) -> None:
    repository = run_dir.parent.parent / "repository"
    repository.mkdir()
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (repository / "config.yaml").write_text("a: 1")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    (repository / "config.yaml").write_text("a: 2")

    run = tracker(run_dir, source_dir=repository)
    run.start()
    writer = SpoolWriter(run_dir / "events.jsonl")
    for step in range(1500):  # more metrics than one batch holds
        writer.write("metrics", step=step, values={"loss": 1.0 / (step + 1)})
    writer.write("metrics", step=1499, values={"bad!name": 1.0})
    writer.write("metrics", step=1500, values={"bad!name": 1.0, "nan": math.nan, "huge": 10**400, "text": "no"})
    writer.write("evaluation", step=1500, values={"accuracy": 0.5}, split="validation")
    writer.write("evaluation", step=1500, values={"accuracy": 0.25}, split="test")
    writer.write("checkpoint", step=1500, path="checkpoints/1500", seconds=0.5, bytes=100)
    writer.write("of the future", step=1)
    writer.write("metrics", step="broken", values=3)
    writer.close()
    node = SpoolWriter(run_dir / "system" / "node-7.jsonl")
    for step in (10, 20):
        node.write("system", step=step, values={"cpu_percent": 50.0 + step})
    node.close()
    wait_for(lambda: "created MLflow run" in (run_dir / "tracking.log").read_text())
    assert run._process is not None
    for sign in (signal.SIGINT, signal.SIGTERM):  # a terminal's Ctrl-C, a scheduler's warning: the driver decides
        run._process.send_signal(sign)
    time.sleep(2.0)
    said = run.finish("FINISHED", summary={"samples_per_s": 12.0, "steps": 1500, "seconds": {"data": 1.0}})

    client, found = mlflow_run(run_dir)
    assert said == f"tracked in MLflow run {found.info.run_id}"
    assert found.info.status == "FINISHED" and found.info.run_name == "first"
    assert client.get_experiment(found.info.experiment_id).name == "my experiment"
    metrics, params, tags = found.data.metrics, found.data.params, found.data.tags
    assert steps_of(run_dir, "train/loss") == list(range(1500))
    assert metrics["eval/scores/accuracy"] == 0.5 and metrics["eval/test/accuracy"] == 0.25
    assert metrics["time/checkpoint_s"] == 0.5 and math.isnan(metrics["train/scores/nan"])
    left_out = {"bad!name", "huge", "text", "bytes"}
    assert not [key for key in metrics if key.rpartition("/")[2] in left_out or key.startswith("summary")], (
        "no constants"
    )
    assert (run_dir / "tracking.log").read_text().count("refuses the metric 'train/scores/bad!name'") == 1
    first = client.get_metric_history(found.info.run_id, "train/loss")[0]
    assert first.timestamp == int(SpoolReader(run_dir / "events.jsonl").poll()[0]["t"] * 1000)
    assert metrics["system/node-7/cpu_percent"] == 70.0
    assert params["model.family"] == "mlp" and params["model.sizes"] == "[4, 2]" and params["many.key149"] == "149"
    assert len(params["text"]) == 6000 and params["text"].endswith("[cut: 7,000 characters in all]")
    [data] = found.inputs.dataset_inputs
    assert data.dataset.digest == "ff00" and "training (train)" in data.tags[0].value
    assert len(tags["mlflow.source.git.commit"]) == 40 and tags["mlflow.user"]
    assert tags["distdl.run_dir"] == "my runs/first" and tags["distdl.error"] == ""
    assert tags["distdl.checkpoint"] == "checkpoints/1500" and len(tags) <= 12
    note = tags["mlflow.note.content"]
    for told in (
        "**mlp**",
        "finished at step 1,500",
        "| throughput | 12 samples/s |",
        "data 1.0 s",
        "changed and not committed",
    ):
        assert told in note, note
    names = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert names == {"config.yaml", "config.json", "plan.json", "environment.txt"}
    stored = [path.read_text() for path in (run_dir.parent / "mlartifacts").rglob("*.*") if path.is_file()]
    assert len(stored) == 4 and any("mlflow==" in text for text in stored)
    assert not any("hunter2" in text or "me:pw" in text for text in [*stored, *params.values(), *tags.values()])
    assert not Path("mlruns").exists() and not Path("mlflow.db").exists()


@pytest.mark.slow
def test_continuations_share_one_run_and_double_nothing(run_dir: Path) -> None:
    world(run_dir, step=0, workers=2)
    spool(run_dir, range(30))
    drain(run_dir, "FAILED", "worker 3 was lost")
    _, before = mlflow_run(run_dir)
    assert "time/workers" not in before.data.metrics, "it has not changed"
    assert before.info.status == "FAILED" and before.data.tags["distdl.error"] == "worker 3 was lost"

    (run_dir / "config.json").write_text('{"model": {"family": "mlp"}, "steps": 50, "text": "changed"}')
    second = Tracker(run_dir, None, "e", "r")
    second.start()
    wait_for(lambda: mlflow_run(run_dir)[1].info.status == "RUNNING")
    writer = SpoolWriter(run_dir / "events.jsonl")
    writer.write("restart", step=20)
    writer.write("world", step=20, workers=4)
    writer.close()
    spool(run_dir, range(20, 50))  # it replays 20-29 from the checkpoint
    second.finish("FINISHED")

    client, after = mlflow_run(run_dir)
    assert after.info.run_id == before.info.run_id and after.info.status == "FINISHED"
    assert steps_of(run_dir, "train/loss") == list(range(50))
    assert after.data.tags["distdl.error"] == "" and after.data.metrics["time/workers"] == 4.0
    assert after.data.params["steps"] == "50" and "changed" in after.data.tags["distdl.config_changed"]
    assert len(client.search_runs([after.info.experiment_id])) == 1


def world(folder: Path, step: int, workers: int) -> None:
    writer = SpoolWriter(folder / "events.jsonl")
    writer.write("world", step=step, workers=workers)
    writer.close()


def test_params_are_what_was_set_and_what_decides_how_it_learns() -> None:
    from distdl.config.load import load_values

    named = {
        "name": "a",
        "model": {"family": "mlp", "inputs": [4]},
        "data": {"path": "d", "cache": None},
        "train": {"steps": 5, "global_batch": 4},
        "optimizer": {"name": "adamw", "lr": 0.1},
        "guard": {"parity_every_steps": 7, "hang_s": None},
    }
    found = provenance.told(load_values(named).model_dump(mode="json"), named)
    assert {"model.activation", "optimizer.betas", "train.steps", "data.path", "schedule.name"} <= found.keys()
    assert found["guard.parity_every_steps"] == 7 and "guard.hang_s" in found and "data.cache" in found
    assert not [key for key in found if key.startswith(("launch.", "track.", "runtime."))], found
    assert [key for key, value in found.items() if value in (None, [], {})] == ["data.cache", "guard.hang_s"]


def test_a_run_of_an_earlier_version_goes_on_under_the_names_of_this_one(run_dir: Path) -> None:
    """Sent again from its spool, so that no chart ends in the middle; its copies of the plan are taken from the tags."""
    drain(run_dir, "FINISHED")
    spool(run_dir, range(10))  # which the earlier version has sent, as `loss`
    client, before = mlflow_run(run_dir)
    client.log_metric(before.info.run_id, "loss", 9.0, step=9)
    for key in ("plan.mesh.data", "version.torch", "distdl.git_dirty", "mine"):
        client.set_tag(before.info.run_id, key, "1")
    record = json.loads((run_dir / "tracking.json").read_text())
    sent = {"last_steps": {"loss": 9}, "spool_offset": (run_dir / "events.jsonl").stat().st_size}
    del record["naming"], record["worlds"], record["system_offsets"]
    (run_dir / "tracking.json").write_text(json.dumps(record | sent))
    spool(run_dir, range(10, 12))
    assert drain(run_dir, "FINISHED") == 0
    _, after = mlflow_run(run_dir)
    assert after.info.run_id == before.info.run_id and steps_of(run_dir, "train/loss") == list(range(12))
    assert steps_of(run_dir, "loss") == [9], "what was sent under another name stays"
    assert "mine" in after.data.tags and not after.data.tags.keys() & {
        "plan.mesh.data",
        "version.torch",
        "distdl.git_dirty",
    }


def test_a_rate_that_never_changes_is_no_chart() -> None:
    event = {
        "t": 1.0,
        "kind": "metrics",
        "step": 1,
        "values": {"loss": 2.0, "lr": 0.1, "samples_per_s": 5.0, "accuracy": 1},
    }
    rising = points.never_changing({"schedule": {"name": "constant", "warmup_steps": 5}})
    assert rising == () and points.never_changing({"schedule": {"name": "cosine"}}) == ()
    constant = points.never_changing({"schedule": {"name": "constant", "warmup_steps": 0}})
    assert {p.key for p in points.points_of(event, "test", constant)} == {
        "train/loss",
        "train/scores/accuracy",
        "time/samples_per_s",
    }
    held_out = {**event, "kind": "evaluation", "split": "test"}
    assert "eval/loss" in {p.key for p in points.points_of(held_out, "test")}
    assert "eval/test/loss" in {p.key for p in points.points_of(held_out, "validation")}


def test_a_crash_before_the_offset_was_noted_doubles_nothing(run_dir: Path) -> None:
    spool(run_dir, range(10))
    drain(run_dir, "FINISHED")
    _, before = mlflow_run(run_dir)
    update(run_dir, mlflow_run_id=None, spool_offset=0, last_steps={})  # as if nothing had been written down
    assert drain(run_dir) == 0
    _, after = mlflow_run(run_dir)
    assert after.info.run_id == before.info.run_id
    assert steps_of(run_dir, "train/loss") == list(range(10))


@pytest.mark.slow
def test_a_killed_driver_ends_the_run_as_killed(run_dir: Path) -> None:
    code = (
        "import sys, time\nfrom distdl.track.client import Tracker\nfrom distdl.track.spool import SpoolWriter\n"
        "Tracker(sys.argv[1], None, 'e', 'r').start()\n"
        "writer = SpoolWriter(sys.argv[1] + '/events.jsonl')\n"
        "for step in range(20):\n    writer.write('metrics', step=step, values={'loss': 1.0})\n"
        "writer.flush(); print('written', flush=True); time.sleep(600)"
    )
    root = Path(__file__).resolve().parents[2]
    driver = subprocess.Popen(
        [sys.executable, "-c", code, str(run_dir)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}
    )
    try:
        assert driver.stdout is not None and driver.stdout.readline() == b"written\n"
        info = load(run_dir)
        assert info is not None
        wait_for(lambda: (load(run_dir) or info).mlflow_run_id)
        assert mlflow_run(run_dir)[1].info.status == "RUNNING"
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    wait_for(lambda: mlflow_run(run_dir)[1].info.status != "RUNNING", 30)
    _, run = mlflow_run(run_dir)
    assert run.info.status == "KILLED" and "without a word" in run.data.tags["distdl.error"]
    assert steps_of(run_dir, "train/loss") == list(range(20))


@pytest.mark.slow
def test_a_store_that_is_down_costs_nothing_but_patience(run_dir: Path) -> None:
    run = tracker(run_dir, closed_port_uri())
    run.start()
    spool(run_dir, range(10))
    wait_for(lambda: (load(run_dir) or update(run_dir)).last_error)
    began = time.monotonic()
    said = run.finish("FINISHED", drain_timeout_s=1.0)
    assert time.monotonic() - began < 8.0
    assert said.startswith("12 events wait in ") and "distdl ui --sync" in said

    from distdl.track.run import default_tracking_uri

    update(run_dir, tracking_uri=default_tracking_uri(run_dir.parent))  # the store is back
    upload = upload_pending(run_dir)
    assert upload.sent == 12 and upload.waiting == 0 and upload.reason == ""
    _, found = mlflow_run(run_dir)
    assert found.info.status == "FINISHED" and steps_of(run_dir, "train/loss") == list(range(10))
    assert found.data.params["model.family"] == "mlp"


def test_a_deleted_run_is_not_written_to_and_a_continuation_makes_a_new_one(run_dir: Path) -> None:
    spool(run_dir, range(5))
    drain(run_dir, "FINISHED")
    client, old = mlflow_run(run_dir)
    client.delete_run(old.info.run_id)
    spool(run_dir, range(5, 8))
    assert drain(run_dir) == 0
    _, new = mlflow_run(run_dir)
    assert new.info.run_id != old.info.run_id and steps_of(run_dir, "train/loss") == list(range(8))
    assert new.info.status == "KILLED", "events after the last end: nobody said how it ended"


@pytest.mark.slow
def test_two_runs_that_start_at_once_share_a_new_store(tmp_path: Path) -> None:
    runs = [tracker(make_run(tmp_path / "runs", name)) for name in ("one", "two")]
    for run in runs:
        run.start()
    for run in runs:
        spool(run.run_dir, range(3))
    for run in runs:
        assert run.finish("FINISHED", drain_timeout_s=60.0).startswith("tracked in MLflow run ")
        assert mlflow_run(run.run_dir)[1].info.status == "FINISHED"
        assert steps_of(run.run_dir, "train/loss") == [0, 1, 2]
        assert "trying again" not in (run.run_dir / "tracking.log").read_text()


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:hunter2@host:5000",
        "https://hunter2@host",
        "postgresql://me:hunter2@host/db",
        "https://host/?token=hunter2",
    ],
)
def test_a_password_in_the_uri_is_refused_and_not_repeated(tmp_path: Path, uri: str) -> None:
    with pytest.raises(InputError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        Tracker(tmp_path / "run", uri, "e", "r")
    assert "hunter2" not in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/x", "ftp://host", "htp://host"])
def test_an_unusable_store_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(InputError, match="not a kind of MLflow store"):
        Tracker(tmp_path / "run", uri, "e", "r")


def test_a_server_without_a_host_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names no host"):
        Tracker(tmp_path / "run", "http://", "e", "r")


def test_without_tracking_only_the_end_is_written(tmp_path: Path) -> None:
    run = tracker(tmp_path / "runs" / "a", enabled=False)
    run.start()
    assert "not tracked" in run.finish("KILLED", error="Ctrl-C")
    assert [event["status"] for event in SpoolReader(run.run_dir / "events.jsonl").poll()] == ["KILLED"]
    assert not (run.run_dir / "tracking.json").exists()
    with pytest.raises(InputError, match="not a tracked run"):
        upload_pending(run.run_dir)


def test_secrets_are_taken_out_and_ordinary_words_stay() -> None:
    config = {"a": {"password": "p1", "hf_token": "t1", "max_tokens": 5, "tokenizer": "bpe", "secret": None}}
    assert provenance.config_params(config) == {
        "a.password": "***",
        "a.hf_token": "***",
        "a.max_tokens": "5",
        "a.tokenizer": "bpe",
        "a.secret": "null",
    }
    text = 'a:\n  password: p1\n  "api_key": p2,\n  tokens: 5\n  uri: http://me:p3@host/x\n'
    safe = provenance.redact(text)
    assert not any(secret in safe for secret in ("p1", "p2", "p3")) and "tokens: 5" in safe and "@host/x" in safe


def test_an_uploader_is_woken_for_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a signal that it does not lose while it is at work, and that does nothing to one that has not got so far."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCONT])
    try:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGCONT)
        assert process.pause(60.0) and not process.pause(0.01)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    woken: list[Any] = []
    monkeypatch.setattr(process, "wake", woken.append)
    monkeypatch.setattr(process, "wait_or_kill", lambda started, timeout_s: 0 if woken == [started] else 1)
    monkeypatch.setattr(uploader, "upload_pending", lambda *_: pytest.fail("it was not woken"))
    tracker = Tracker(tmp_path, f"sqlite:///{tmp_path / 'm.db'}", "e", "r", enabled=True)
    tracker._process = object()  # type: ignore[assignment]
    tracker.finish("FINISHED")
    assert len(woken) == 1
