"""`distdl ui`: it serves the project's store, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
import torch

from distdl.errors import InputError
from distdl.track import server
from distdl.track.pictures import draw
from distdl.track.run import TRAINING_MODE, default_tracking_uri, update
from distdl.track.server import UiServer, free_port
from distdl.track.spool import SpoolWriter
from distdl.train.hooks.pictures import of_classes
from tests.track.conftest import drain, make_run, mlflow_run, spool
from tests.track.test_alive import left_running

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (
    "import argparse, sys; from distdl.cli import ui; parser = argparse.ArgumentParser();"
    "ui.add_parser(parser.add_subparsers()); args = parser.parse_args(); sys.exit(args.run(args))"
)


def start_ui(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "ui", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_the_pages_are_served_and_ctrl_c_ends_every_process(runs_dir: Path) -> None:
    lost = left_running(make_run(runs_dir, "lost"))
    port = free_port("127.0.0.1", 20000 + os.getpid() % 20000)
    command = start_ui("--runs", str(runs_dir), "--port", str(port))
    try:
        assert command.stdout is not None
        lines = [command.stdout.readline() for _ in range(3)]
        assert "lost ended without a word" in lines[0] and f"http://127.0.0.1:{port}" in lines[2], lines
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30).read().decode()
        assert "<title>MLflow</title>" in page
        tree = psutil.Process(command.pid).children(recursive=True)
        assert len(tree) >= 2, "the server and its worker"
        end = time.monotonic() + 60
        while mlflow_run(lost)[1].info.status == "RUNNING" and time.monotonic() < end:
            time.sleep(0.2)
        assert mlflow_run(lost)[1].info.status == "KILLED"
        with pytest.raises(InputError, match=f"port {port} .* is in use") as caught:
            UiServer(runs_dir, port=port).start()
        assert f"--port {port + 1}" in str(caught.value) or "--port" in caught.value.problems[0].fix
    finally:
        command.send_signal(signal.SIGINT)
    assert command.wait(timeout=20) == 0
    deadline = time.monotonic() + 5
    while (left := [process for process in tree if process.is_running()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_it_opens_the_runs_of_this_folder_in_the_mode_for_training(runs_dir: Path) -> None:
    assert UiServer(runs_dir).page == "http://127.0.0.1:5000", "nothing was tracked yet"
    own = default_tracking_uri(runs_dir)
    update(
        make_run(runs_dir, "a"), tracking_uri=own, experiment="e", run_name="a", experiment_id="7", mlflow_run_id="x"
    )
    update(make_run(runs_dir, "b"), tracking_uri="http://host", experiment="e", run_name="b", experiment_id="9")
    page = "http://127.0.0.1:5000/#/experiments/7/runs?workflowType=machine_learning"
    assert UiServer(runs_dir).page == page, "of this store, not of another one"
    elsewhere = update(runs_dir / "b", mlflow_run_id="y")
    assert elsewhere.link == "http://host/#/experiments/9/runs/y?workflowType=machine_learning"


def test_a_folder_without_a_store_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing was tracked there") as caught:
        UiServer(tmp_path).start()
    assert caught.value.exit_code == 2 and "--runs" in str(caught.value)


def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return found or pytest.skip("there is no Chromium on this machine (Debian: apt-get install chromium)")


def page_in_browser(browser: str, url: str, profile: Path, until: str) -> str:
    """What the page has become once its scripts have run and it shows `until`: a busy machine takes a few looks."""
    quiet = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,2400")
    command = [browser, *quiet, f"--user-data-dir={profile}", "--virtual-time-budget=90000", "--dump-dom", url]
    page = ""
    for _ in range(4):
        page = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True).stdout
        if until in page:
            break
    return page


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_browser_sees_a_loss_first_and_pictures_in_the_mode_for_training(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = browser()
    monkeypatch.setattr(server, "START_TIMEOUT_S", 300.0)
    spool(run_dir, range(5))
    writer = SpoolWriter(run_dir / "events.jsonl")
    arrays = {name: counts.tolist() for name, counts in of_classes(torch.eye(3), torch.arange(3)).items()}
    for step in (2, 4):
        writer.write("evaluation", step=step, split="test", values={"accuracy": 1 / step, "loss": 1.0 / step})
        writer.write("checkpoint", step=step, path=f"runs/first/checkpoints/{step}", seconds=1.0, bytes=9)
    writer.write("picture", step=4, split="test", drawing="classes", arrays=arrays, names=["a", "b", "c"])
    writer.close()
    node = SpoolWriter(run_dir / "system" / "node.jsonl")
    node.write("system", step=1, values={"cpu_percent": 50.0})
    node.close()
    config = json.loads((run_dir / "config.json").read_text())
    config["data"]["eval_split"] = "test"
    (run_dir / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(draw, "spawn", lambda _: None)
    assert drain(run_dir, "FINISHED") == 0
    client, run = mlflow_run(run_dir)
    assert "learning_curves.png" in draw.draw(run_dir, client, run.info.run_id)

    pages = UiServer(run_dir.parent, port=free_port("127.0.0.1", 20000 + os.getpid() % 20000))
    pages.start()
    try:
        listed = page_in_browser(program, pages.page, tmp_path / "profile", run.info.run_id)
        assert run.info.run_id in listed and ">Model training<" in listed
        of_run = f"{pages.url}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        charts = page_in_browser(program, f"{of_run}/model-metrics?{TRAINING_MODE}", tmp_path / "profile", "<h4 ")
        titles = re.findall(r'<h4 [^>]*title="([^"]+)"', charts)
        assert titles[0] == "eval/loss" and "eval/scores/accuracy" in titles, titles
        assert ">Evaluations<" not in charts, "which stands there in the other mode"
        picture = page_in_browser(
            *(program, f"{of_run}/artifacts/pictures/confusion_matrix.png?{TRAINING_MODE}", tmp_path / "profile"),
            until='src="blob:',
        )
        assert re.search(r'<img alt="pictures/confusion_matrix.png" src="blob:', picture)
    finally:
        pages.stop()


@pytest.mark.slow
def test_sync_sends_what_waits(run_dir: Path) -> None:
    update(run_dir, tracking_uri=default_tracking_uri(run_dir.parent), experiment="e", run_name="r")
    spool(run_dir, range(3))
    command = start_ui("--sync", str(run_dir))
    output, _ = command.communicate(timeout=120)
    assert command.returncode == 0 and "sent 4 events" in output
