"""The terminal: what a person sees of a run."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distdl.cli.display import Display, ProgressState, duration, print_summary
from distdl.track.spool import SpoolWriter


def show(tmp_path: Path, plain: bool, *events: tuple[str, dict]) -> str:
    output = io.StringIO()
    old = SpoolWriter(tmp_path / "events.jsonl")
    old.write("message", level="info", text="of an earlier session")
    old.close()
    with Display(tmp_path, 100, "training [mlp]", plain=plain, file=output):
        writer = SpoolWriter(tmp_path / "events.jsonl")
        for kind, fields in events:
            writer.write(kind, **fields)
        writer.close()
    return output.getvalue()


EVENTS: list[tuple[str, dict]] = [
    ("phase", {"name": "training", "text": "2 workers"}),
    *[("progress", {"step": step, "steps": 100, "loss": 1.0 / step, "samples_per_s": 1234.5}) for step in range(1, 50)],
    ("evaluation", {"step": 50, "values": {"accuracy": 0.91}, "split": "test"}),
    ("checkpoint", {"step": 50, "path": "checkpoints/50", "seconds": 0.5, "bytes": 2_000_000}),
    ("message", {"level": "warning", "text": "a [bracket] survives"}),
    ("of the future", {"x": 1}),
    ("checkpoint", {"seconds": "odd"}),
]


def test_plain_output_has_few_lines_and_all_that_matters(tmp_path: Path) -> None:
    text = show(tmp_path, True, *EVENTS)
    assert "training [mlp]" in text and "earlier session" not in text
    assert "training: 2 workers" not in text  # a phase is named in the progress line; only what comes of it is a line
    assert "evaluation at step 50 (test): accuracy 0.91" in text
    assert "checkpoint at step 50 in 0.5 s, 2.0 MB" in text
    assert "warning: a [bracket] survives" in text
    assert text.count("samples/s") == 1, "progress is said once every few seconds, not for every event"


def test_live_output_ends_with_where_the_run_stands(tmp_path: Path) -> None:
    text = show(tmp_path, False, *EVENTS)
    assert "step 49/100" in text and "1,234 samples/s" in text and "eval accuracy 0.91" in text


@pytest.mark.slow
def test_what_is_waited_for_is_said_with_seconds_until_the_first_step(tmp_path: Path) -> None:
    output = io.StringIO()
    with Display(tmp_path, 100, "a run", plain=True, file=output, plain_interval_s=0.1) as display:
        display.waits_for("Ray to start")
        _until(lambda: "waiting for Ray to start, 0 s" in output.getvalue())
        writer = SpoolWriter(tmp_path / "events.jsonl")
        writer.write("start-up", text="DeepSpeed to be loaded")
        _until(lambda: "waiting for DeepSpeed to be loaded, 0 s" in output.getvalue())
        writer.write("progress", step=1, steps=100, loss=1.0)
        writer.close()
        _until(lambda: "step 1/100 | loss 1 | training" in output.getvalue())
    assert output.getvalue().rstrip().endswith("training"), "nothing is waited for any more"


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_remaining_time_comes_from_recent_progress() -> None:
    state = ProgressState(100)
    state.take({"t": 1000.0, "kind": "progress", "step": 10})
    state.take({"t": 1010.0, "kind": "progress", "step": 20})
    assert "80 s left" in state.line()
    state.take({"t": 5000.0, "kind": "restart", "step": 0})
    assert "left" not in state.line()
    assert duration(12 * 60) == "12 min" and duration(200 * 60) == "3 h 20 min"


def test_summary_says_where_the_time_went_and_what_is_next() -> None:
    from rich.console import Console

    output = io.StringIO()
    summary = {
        "metrics": {"accuracy": 0.9812},
        "samples_per_s": 45678.0,
        "steps": 1000,
        "run_dir": "runs/mlp",
        "seconds": {"start-up": 1.0, "data": 1.0, "compute": 2.0},
        "next": [("distdl ui", "look at the curves"), ("distdl evaluate runs/mlp", "test it")],
    }
    print_summary(summary, "tracked in MLflow run 1234", Console(file=output, width=100))
    text = output.getvalue()
    for part in (
        "0.9812",
        "45,678 samples/s",
        "1,000",
        "time: compute",
        "50 %",
        "25 %",
        "runs/mlp",
        "tracked in MLflow run 1234",
        "distdl ui",
        "look at the curves",
    ):
        assert part in text, part
    print_summary({}, "", Console(file=output))  # a run that failed at once still gets a summary
