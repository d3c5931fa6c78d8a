"""One trial: an ordinary run of this process in its own folder, in a thread, told of and stopped at its evaluations.

One after the other they share the process: torch and DeepSpeed are imported once (`layout/process.py` keeps them apart).
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from threading import Thread
from typing import NamedTuple

from distdl.config.load import load_config
from distdl.errors import DistdlError
from distdl.run.folder import RunFolder
from distdl.run.gate import Gate
from distdl.track.spool import SpoolReader

LOOK_S = 0.02
"""Between two looks at what the run has told."""
TELL_S = 0.5
"""Between two words of a run that waits for nobody."""
STOP = "stop"
"""A file of the search's folder: all trials end with a checkpoint."""


class Told(NamedTuple):
    """What a trial says."""

    step: int
    value: float | None
    """The metric that is compared; None: not evaluated yet."""
    state: str
    """running, finished, stopped, failed or interrupted."""
    reason: str = ""
    seen: tuple[tuple[int, float], ...] = ()
    """(step, metric) of its evaluations since it was last asked."""


class Run:
    """A trial that runs, in its thread."""

    def __init__(self, search: Path, name: str, metric: str, until: int | None) -> None:
        """`until`: the step at whose evaluation it waits for the first time; None: nowhere."""
        self._search, self._metric = search, metric
        self._yaml = search / name / "config.yaml"
        self._folder = RunFolder(search / name)
        self._until = until
        self._events = SpoolReader(self._folder.events).to_end()
        self._latest: tuple[int, float | None] = (0, None)
        self._seen: list[tuple[int, float]] = []
        self._end: Told | None = None
        self._asked = False
        self._split: str | None = None
        self._thread = Thread(target=self._train, name=f"distdl-{name}", daemon=True)

    def start(self) -> None:
        Gate(self._folder.path).open_until(self._until)
        self._thread.start()

    def next(self) -> Told:
        """Waits for an evaluation or the end. Where the run waits at its gate, it goes on waiting."""
        told = self._next()
        told, self._seen = told._replace(seen=tuple(self._seen)), []
        return told

    def _next(self) -> Told:
        news_s = math.inf
        while True:
            ended = not self._thread.is_alive()
            if self._look():
                news_s = min(news_s, time.monotonic())
            if ended:
                return self._last()
            waits = self._until is not None and self._latest[0] >= self._until
            if news_s < math.inf and (waits or time.monotonic() - news_s > TELL_S):
                return Told(*self._latest, "running")
            if not self._asked and (self._search / STOP).exists():
                self._ask()
            time.sleep(LOOK_S)

    def go_on(self, until: int | None) -> None:
        """Lets a run that waits go on to its first evaluation from this step on."""
        self._until = until
        Gate(self._folder.path).open_until(until)

    def end(self) -> None:
        """Ends it with a checkpoint, and returns when that is written."""
        if self._thread.is_alive():
            Gate(self._folder.path).stop()
        while self._thread.is_alive():
            self._ask()
            self._thread.join(LOOK_S)

    def _ask(self) -> None:
        """Asks the run to end with its step, once it has begun."""
        if self._folder.attempt.number and not self._asked:
            self._asked = True
            self._folder.attempt.request_stop()

    def _look(self) -> bool:
        """Reads what the run has told. Whether it was evaluated."""
        found = [e for e in self._events.poll() if e["kind"] == "evaluation" and self._metric in e.get("values", {})]
        found = [
            event for event in found if event.get("split") == self._split
        ]  # and not the last word on data.test_split
        for event in found:
            step, value = int(event["step"]), float(event["values"][self._metric])
            self._latest = (step, value if math.isfinite(value) else None)
            if math.isfinite(value):
                self._seen.append((step, value))
        return bool(found)

    def _last(self) -> Told:
        assert self._end is not None
        if self._end.state != "finished":
            return self._end._replace(step=self._end.step or self._latest[0], value=self._latest[1])
        summary = self._folder.read_derived("summary.json") or {}
        value = (summary.get("metrics") or {}).get(self._metric, self._latest[1])
        if value is None:
            known = ", ".join(sorted(summary.get("metrics") or {})) or "none: nothing was evaluated"
            return self._end._replace(state="failed", reason=f"it told no {self._metric!r}; its metrics are {known}")
        if not math.isfinite(value):
            return self._end._replace(state="failed", reason=f"{self._metric} is {value} at its end")
        return self._end._replace(value=float(value))

    def _train(self) -> None:
        from distdl import driver

        try:
            config = load_config(str(self._yaml)).config
            self._split = config.data.eval_split
            done = driver.train(
                config,
                folder=self._folder,
                source=self._yaml,
                named=("track.uri=",),  # what the search was started with, it was allowed
                take_over=True,
                show=driver.Unwatched,
                say=lambda text: None,
                alone=False,
            )
            self._end = Told(int(done.summary["steps"]), None, "finished")
        except driver.Interrupted:
            self._end = Told(0, None, "interrupted" if (self._search / STOP).exists() else "stopped")
        except DistdlError as error:
            self._end = Told(0, None, "failed", str(error))
        except BaseException as error:
            self._end = Told(0, None, "failed", f"{type(error).__name__}: {error}")
