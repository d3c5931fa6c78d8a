"""An uploader that waits while the driver plans: it is used, it is replaced where it died, and none is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from distdl import driver
from distdl.config.load import config_from_dict
from distdl.errors import InputError
from distdl.track import ahead, uploader
from distdl.track.client import Tracker
from distdl.track.run import load
from tests.small import small_config
from tests.track.conftest import mlflow_run, spool, steps_of


@pytest.mark.slow
def test_a_run_is_sent_by_the_uploader_that_waited(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploader, "spawn", lambda *_: pytest.fail("a second one was started"))
    run = Tracker(run_dir, None, "e", "first")
    with ahead.waiting(True) as early:
        run.start(early)
        assert early.take(run_dir, []) is None  # it is taken
    spool(run_dir, range(5))
    assert "tracked in MLflow run" in run.finish("FINISHED")
    _, found = mlflow_run(run_dir)
    assert found.info.status == "FINISHED" and steps_of(run_dir, "train/loss") == list(range(5))
    assert "FINISHED" in (run_dir / uploader.LOG_NAME).read_text()


@pytest.mark.slow
def test_one_that_died_is_replaced_and_one_that_is_not_wanted_is_not_started(run_dir: Path) -> None:
    with ahead.waiting(False) as early:
        assert early.take(run_dir, []) is None
    with ahead.waiting(True) as early:
        assert early._process
        early._process.kill()
        early._process.wait()
        run = Tracker(run_dir, None, "e", "first")
        run.start(early)
    spool(run_dir, range(5))
    assert "tracked in MLflow run" in run.finish("FINISHED")
    assert steps_of(run_dir, "train/loss") == list(range(5))


def test_none_is_left_of_a_run_that_does_not_begin(digits: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    started: list[int] = []
    real = ahead.start
    monkeypatch.setattr(ahead, "start", lambda *a, **k: [p := real(*a, **k), started.append(p.pid)][0])
    values = small_config("mlp", digits, "", train__steps=2) | {"track": {"enabled": True}}
    values["data"]["path"] = str(tmp_path / "none")
    with pytest.raises(InputError):
        driver.train(config_from_dict(values), show=lambda *_, **__: pytest.fail("it began"))
    assert len(started) == 1 and not psutil.pid_exists(started[0])


@pytest.mark.slow
def test_one_whose_driver_is_gone_ends(run_dir: Path) -> None:
    with ahead.waiting(True) as early:
        assert early._process and early._process.stdin
        early._process.stdin.close()
        assert early._process.wait(60) == 0 and load(run_dir) is None
        early._process = None
