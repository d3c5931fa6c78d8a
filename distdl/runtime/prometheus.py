"""A run's numbers for Prometheus: the events of a run folder as gauges. Knows of no exporter: a `Sink` sets a value.

Ray's exporter publishes what `ray.util.metrics` sets at port 8080 of each node, with the prefix `ray_`; k8s/components/
monitoring has the dashboard and the alerts. Everything is a gauge, counts too: their values come from the run folder, which
outlives the process, so a driver that was started again goes on where the last one was.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distdl.track.spool import Event, SpoolReader

Sink = Callable[[str, float, dict[str, str]], None]
"""Sets the gauge of a name to a value, with labels."""

LABELS = ("run", "family", "layout")
"""Labels of every gauge: name of the run folder, architecture family, parallel layout in the words of the plan."""

GAUGES = {
    "distdl_run_info": "Always 1; its labels tell what runs",
    "distdl_step": "Optimizer steps done",
    "distdl_planned_steps": "Optimizer steps that the plan ends at",
    "distdl_loss": "Training loss of the last step that was reported",
    "distdl_loss_finite": "1 while loss and gradient norm are finite; 0 once one was not, until a restart",
    "distdl_samples_per_second": "Training samples a second, over all workers",
    "distdl_gradient_norm": "Norm of the gradient before clipping",
    "distdl_learning_rate": "Learning rate of the last step that was logged",
    "distdl_last_step_timestamp_seconds": "Unix time of the last step; until the first, of the start",
    "distdl_last_checkpoint_timestamp_seconds": "Unix time of the last checkpoint; until the first, of the start",
    "distdl_checkpoint_seconds": "Time that the last checkpoint took",
    "distdl_checkpoint_bytes": "Size of the last checkpoint",
    "distdl_restarts": "Times that training was continued from a checkpoint",
    "distdl_warnings": "Warnings and errors that the run has told of",
    "distdl_ended": "1 once the run has ended, however it did",
}
"""Name of each gauge and what it says. Units are in the names."""

INTERVAL_S = 5.0
READ_BYTES = 1 << 20


class RunMetrics:
    """The gauges of one run. `take` the events, then `publish` what they came to."""

    def __init__(self, labels: dict[str, str], steps: int, started_s: float) -> None:
        self.labels = {name: labels[name] for name in LABELS}
        self.values: dict[str, float] = {
            "distdl_run_info": 1.0,
            "distdl_planned_steps": float(steps),
            "distdl_loss_finite": 1.0,
            "distdl_restarts": 0.0,
            "distdl_warnings": 0.0,
            "distdl_ended": 0.0,
        }
        self._started_s = started_s

    def take(self, event: Event) -> None:
        """Takes one event; kinds and fields that say nothing to a gauge are passed over."""
        kind = event["kind"]
        if kind == "progress":
            self._step(event)
            self._number("distdl_loss", event.get("loss"))
            self._number("distdl_samples_per_second", event.get("samples_per_s"))
        elif kind == "metrics":
            values = event.get("values")
            values = values if isinstance(values, dict) else {}
            self._step(event)
            self._number("distdl_gradient_norm", values.get("grad_norm"))
            self._number("distdl_learning_rate", values.get("lr"))
        elif kind == "checkpoint":
            self.values["distdl_last_checkpoint_timestamp_seconds"] = float(event["t"])
            self._number("distdl_checkpoint_seconds", event.get("seconds"))
            self._number("distdl_checkpoint_bytes", event.get("bytes"))
        elif kind == "restart":
            self.values["distdl_restarts"] += 1
            self.values["distdl_loss_finite"] = 1.0
            self._number("distdl_step", event.get("step"))
        elif kind == "message" and event.get("level") in ("warning", "error"):
            self.values["distdl_warnings"] += 1
        if kind == "end":
            self.values["distdl_ended"] = 1.0
            if "not finite" in str(event.get("error") or ""):  # training stops before it logs such a loss
                self.values["distdl_loss_finite"] = 0.0
        elif kind in ("phase", "progress", "restart"):  # an earlier attempt's end is behind us
            self.values["distdl_ended"] = 0.0

    def publish(self, sink: Sink) -> None:
        """Gives every gauge that has a value to the sink."""
        for name in ("distdl_last_step_timestamp_seconds", "distdl_last_checkpoint_timestamp_seconds"):
            # A driver that has just been started is not stuck because the one before it died an hour ago.
            self.values[name] = max(self.values.get(name, 0.0), self._started_s)
        for name, value in self.values.items():
            sink(name, value, self.labels)

    def _step(self, event: Event) -> None:
        if isinstance(event.get("step"), int):
            self.values["distdl_step"] = float(event["step"])
            self.values["distdl_last_step_timestamp_seconds"] = float(event["t"])

    def _number(self, name: str, value: Any) -> None:
        if not isinstance(value, (int, float)):
            return
        if math.isfinite(value):
            self.values[name] = float(value)
        elif name in ("distdl_loss", "distdl_gradient_norm"):
            self.values["distdl_loss_finite"] = 0.0


class Follower:
    """Keeps a sink up to date from a run's events until it is closed. Never raises into the run."""

    def __init__(self, events: Path, metrics: RunMetrics, sink: Sink, interval_s: float = INTERVAL_S) -> None:
        self._reader = SpoolReader(events)
        self._metrics, self._sink, self._interval_s = metrics, sink, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="distdl-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Publishes what has come since, and that the run has ended: an exporter may show its gauges for longer."""
        self._stop.set()
        self._thread.join(timeout=5.0)

    def _work(self) -> None:
        while True:
            last = self._stop.is_set()  # asked before reading: what was written until then is read
            try:
                while found := self._reader.poll_with_offsets(READ_BYTES):
                    for _, event in found:
                        self._metrics.take(event)
                if last:
                    self._metrics.values["distdl_ended"] = 1.0
                self._metrics.publish(self._sink)
            except (
                Exception
            ) as error:  # an exporter that is gone, an event of an unknown shape: never the run's problem
                if not last:
                    print(f"distdl: metrics could not be published: {type(error).__name__}: {error}", flush=True)
                return
            if last:
                return
            self._stop.wait(self._interval_s)


def follow(events: Path, family: str, layout: str, steps: int, sink: Sink) -> Follower:
    """Publishes the metrics of the run with these events until the returned follower is closed."""
    labels = {"run": events.parent.name, "family": family, "layout": layout}
    return Follower(events, RunMetrics(labels, steps, time.time()), sink)
