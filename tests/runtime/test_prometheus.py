"""The gauges that a run's events become."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path

import pytest

from distdl.runtime.prometheus import GAUGES, LABELS, Follower, RunMetrics, follow
from distdl.track.spool import SpoolWriter

RUN = {"run": "demo", "family": "gpt", "layout": "zero1"}


def taken(*events: dict[str, object], started_s: float = 100.0) -> dict[str, float]:
    """What is published after these events."""
    metrics, seen = RunMetrics(RUN, steps=50, started_s=started_s), {}
    for t, event in enumerate(events, start=1000):
        metrics.take({"t": float(t), **event})

    def sink(name: str, value: float, labels: dict[str, str]) -> None:
        assert labels == RUN
        seen[name] = value

    metrics.publish(sink)
    return seen


def progress(step: int, loss: float = 1.0) -> dict[str, object]:
    return {"kind": "progress", "step": step, "steps": 50, "loss": loss, "samples_per_s": 640.0}


def test_a_run_sets_every_gauge_and_no_other() -> None:
    values = taken(
        {"kind": "phase", "name": "training"},
        progress(7, 0.5),
        {"kind": "metrics", "step": 8, "values": {"grad_norm": 2.0, "lr": 1e-3, "loss": 0.5}},
        {"kind": "checkpoint", "step": 8, "path": "x", "seconds": 1.5, "bytes": 4096},
        {"kind": "message", "level": "warning", "text": "slow disk"},
        {"kind": "message", "level": "info", "text": "nothing"},
    )
    assert values == {
        "distdl_run_info": 1,
        "distdl_step": 8,
        "distdl_planned_steps": 50,
        "distdl_loss": 0.5,
        "distdl_loss_finite": 1,
        "distdl_samples_per_second": 640,
        "distdl_gradient_norm": 2,
        "distdl_learning_rate": 1e-3,
        "distdl_last_step_timestamp_seconds": 1002,
        "distdl_last_checkpoint_timestamp_seconds": 1003,
        "distdl_checkpoint_seconds": 1.5,
        "distdl_checkpoint_bytes": 4096,
        "distdl_restarts": 0,
        "distdl_warnings": 1,
        "distdl_ended": 0,
    }
    assert values.keys() == GAUGES.keys() and tuple(RUN) == LABELS


def test_names_follow_prometheus_customs() -> None:
    for name in GAUGES:
        assert name.startswith("distdl_") and name == name.lower()
        assert not name.endswith(("_total", "_count", "_sum", "_bucket")), (
            "of counters and histograms, and these are gauges"
        )


def test_a_restart_goes_back_and_is_counted() -> None:
    values = taken(progress(40), {"kind": "end", "status": "KILLED"}, {"kind": "restart", "step": 30}, progress(31))
    assert (values["distdl_step"], values["distdl_restarts"], values["distdl_ended"]) == (31, 1, 0)


def test_the_end_of_a_run_silences_its_alarms() -> None:
    assert taken(progress(50), {"kind": "end", "status": "FINISHED", "error": None})["distdl_ended"] == 1


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_a_number_is_told_and_never_exported(loss: float) -> None:
    values = taken(progress(1, 0.5), progress(2, loss))
    assert (values["distdl_loss"], values["distdl_loss_finite"]) == (0.5, 0)
    words = "the loss of step 3 is nan: the first tensor that is not finite is the output of fc (Linear)."
    assert taken(progress(2), {"kind": "end", "status": "FAILED", "error": words})["distdl_loss_finite"] == 0
    assert taken(progress(1, loss), {"kind": "restart", "step": 0}, progress(1))["distdl_loss_finite"] == 1


def test_a_driver_that_has_just_started_is_not_stuck() -> None:
    """The last attempt's last step may be hours ago."""
    values = taken(progress(40), started_s=9000.0)
    assert values["distdl_last_step_timestamp_seconds"] == values["distdl_last_checkpoint_timestamp_seconds"] == 9000


def test_events_of_an_unknown_shape_change_nothing() -> None:
    strange = [
        {"kind": "tea"},
        {"kind": "metrics"},
        {"kind": "metrics", "values": [1]},
        {"kind": "progress", "step": "3"},
    ]
    assert taken(*strange) == taken()


def test_the_follower_reads_what_was_and_what_comes(tmp_path: Path) -> None:
    seen: dict[str, float] = {}
    writer = SpoolWriter(tmp_path / "events.jsonl", flush_interval_s=0.01)
    writer.write("progress", step=3, steps=50, loss=1.0)
    writer.flush()
    follower = follow(
        tmp_path / "events.jsonl", "gpt", "zero1", 50, lambda name, value, labels: seen.update({name: value})
    )
    for _ in range(200):
        if seen.get("distdl_step") == 3:
            break
        time.sleep(0.01)
    writer.write("progress", step=9, steps=50, loss=1.0)
    writer.close()
    follower.close()
    assert seen["distdl_step"] == 9, "what was written until it is closed is published"
    assert seen["distdl_ended"] == 1, "and that nobody need wait for a step any more"
    assert time.time() - seen["distdl_last_step_timestamp_seconds"] < 60
    assert not [thread for thread in threading.enumerate() if thread.name == "distdl-metrics"]


def test_an_exporter_that_fails_ends_the_follower_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def sink(*_: object) -> None:
        raise ConnectionError("gone")

    Follower(tmp_path / "events.jsonl", RunMetrics(RUN, 1, 0.0), sink).close()
    assert "metrics could not be published: ConnectionError: gone" in capsys.readouterr().out
