"""What the driver shows while a run goes on, and the summary at its end. Reads the run's spool, like everyone else.

A terminal gets one live line; a file or a pipe gets a plain line now and then. Nothing here can fail the run.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from distdl.data.progress import duration
from distdl.errors import DistdlError
from distdl.jobs.target import TRACKING
from distdl.track.run import SPOOL_NAME, load
from distdl.track.spool import Event, SpoolReader

POLL_INTERVAL_S = 0.25
PLAIN_INTERVAL_S = 5.0
RATE_WINDOW = 40
"""Progress events that the remaining time is estimated from."""


class Display:
    """Shows the progress of a run from its spool. `with Display(run_dir, total_steps, title): ...`

    `plain` None decides by whether the output is a terminal. `tracked`: the link of the MLflow run is told too. `file` is
    stdout unless given.
    """

    def __init__(
        self,
        run_dir: str | Path,
        total_steps: int | None,
        title: str,
        plain: bool | None = None,
        tracked: bool = False,
        file: IO[str] | None = None,
        plain_interval_s: float = PLAIN_INTERVAL_S,
    ) -> None:
        from rich.console import Console

        self.run_dir = Path(run_dir)
        self.title = title
        self._console = Console(file=file or sys.stdout, soft_wrap=True, highlight=False)
        self.plain = not self._console.is_terminal if plain is None else plain
        self._plain_interval_s = plain_interval_s
        self._state = ProgressState(total_steps)
        self._reader = SpoolReader(self.run_dir / SPOOL_NAME).to_end()
        self._live: Any = None
        self._last_line_s = -math.inf
        self._tracked, self._link = tracked, ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="distdl-display", daemon=True)

    def __enter__(self) -> Display:
        self._console.print(self.title, markup=False)
        if not self.plain:
            from rich.live import Live

            self._live = Live(self._renderable(), console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=5.0)
        self._poll()  # what was written while the thread was ending
        if self._live is not None:
            self._live.stop()
            self._console.print(self._state.line(), markup=False)

    def waits_for(self, what: str) -> None:
        """Something that takes a while begins, before there are events that would tell of it."""
        self._state.waits_for(what)

    def tell_tracking(self) -> None:
        """Prints the link of the MLflow run where there is one that was not told yet; `distdl jobs` looks for the line."""
        with contextlib.suppress(DistdlError, OSError, ValueError):  # unreadable, or nobody reads us any more
            info = load(self.run_dir) if self._tracked else None
            if info is not None and info.link not in ("", self._link):
                self._link = info.link
                self._console.print(f"{TRACKING}{info.link}", markup=False)

    def _work(self) -> None:
        while not self._stop.is_set():
            self._stop.wait(POLL_INTERVAL_S)
            self._poll()
            if not self._link:
                self.tell_tracking()
            if self.plain and self._state.waited_s >= self._plain_interval_s and not self._is_too_soon():
                self._last_line_s = time.monotonic()
                self._console.print(self._state.phase_in_words(), markup=False)

    def _poll(self) -> None:
        for event in self._reader.poll():
            try:
                self._show(event)
            except Exception as error:  # a closed pipe, an event of a shape we do not know: never the run's problem
                self._state.note = f"(display: {type(error).__name__})"
        if self._live is not None:
            self._live.update(self._renderable())

    def _show(self, event: Event) -> None:
        line = self._state.take(event)
        if line:
            self._console.print(line, markup=False)
        elif self.plain and event["kind"] == "progress" and not self._is_too_soon():
            self._last_line_s = time.monotonic()
            self._console.print(self._state.line(), markup=False)

    def _is_too_soon(self) -> bool:
        return time.monotonic() - self._last_line_s < self._plain_interval_s

    def _renderable(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1))
        total = self._state.steps
        grid.add_row(
            ProgressBar(
                total=total or 1, completed=self._state.step, width=24, pulse=not total or self._state.step == 0
            ),
            Text(self._state.line(), overflow="ellipsis", no_wrap=True),
        )
        return grid


class ProgressState:
    """Where a run stands, from its events."""

    def __init__(self, steps: int | None) -> None:
        self.steps = steps
        self.step = 0
        self.phase = "start-up"
        self._waits_since = time.monotonic()
        self.note = ""
        self._loss: float | None = None
        self._samples_per_s: float | None = None
        self._evaluation = ""
        self._recent: deque[tuple[float, int]] = deque(maxlen=RATE_WINDOW)

    def take(self, event: Event) -> str:
        """Takes one event; returns a line worth printing for good, or ''."""
        kind = event["kind"]
        if kind == "progress":
            self._progress(event)
        elif kind == "start-up":
            self.waits_for(str(event.get("text", "")))
        elif kind == "phase":
            self.phase = str(event.get("name", ""))
            return ""  # the live line names the phase; what came out of it has a line of its own
        elif kind == "evaluation":
            self._evaluation = _values(event.get("values"))
            split = f" ({event['split']})" if event.get("split") else ""
            return f"evaluation at step {_count(event.get('step'))}{split}: {self._evaluation}"
        elif kind == "checkpoint":
            whole_s = event.get("durable_s", event.get("seconds"))
            took = f" in {whole_s:.1f} s" if isinstance(whole_s, (int, float)) else ""
            size = f", {event['bytes'] / 1e6:,.1f} MB" if isinstance(event.get("bytes"), (int, float)) else ""
            return f"checkpoint at step {_count(event.get('step'))}{took}{size}"
        elif kind == "message":
            level = event.get("level", "info")
            return f"{'' if level == 'info' else f'{level}: '}{event.get('text', '')}"
        elif kind == "restart":
            self._recent.clear()
            return f"restarted from step {_count(event.get('step'))}"
        return ""

    def waits_for(self, what: str) -> None:
        """Before the first step: what it waits for now."""
        self.phase, self._waits_since = f"waiting for {what}", time.monotonic()

    @property
    def waited_s(self) -> float:
        """For how long it has waited for what it waits for; 0: the steps have begun."""
        return time.monotonic() - self._waits_since if self.phase.startswith("waiting") else 0.0

    def phase_in_words(self) -> str:
        """The phase, and how long it takes already where all that can be done is wait."""
        return f"{self.phase}, {duration(self.waited_s)}" if self.waited_s else self.phase

    def line(self) -> str:
        """The state in one line: step, loss, speed, time left, last evaluation, phase."""
        parts = [f"step {self.step:,}" + (f"/{self.steps:,}" if self.steps else "")]
        if self._loss is not None:
            parts.append(f"loss {_number(self._loss)}")
        if self._samples_per_s is not None:
            parts.append(f"{_number(self._samples_per_s)} samples/s")
        if (left_s := self._left_s()) is not None:
            parts.append(f"{duration(left_s)} left")
        if self._evaluation:
            parts.append(f"eval {self._evaluation}")
        parts.append(self.phase_in_words())
        return " | ".join([*parts, self.note] if self.note else parts)

    def _progress(self, event: Event) -> None:
        if isinstance(event.get("step"), int):
            self.step = event["step"]
            self._recent.append((event["t"], self.step))
        if isinstance(event.get("steps"), int):
            self.steps = event["steps"]
        self._loss = _float(event.get("loss"), self._loss)
        self._samples_per_s = _float(event.get("samples_per_s"), self._samples_per_s)
        if self.phase == "start-up" or self.waited_s:
            self.phase = "training"

    def _left_s(self) -> float | None:
        if not self.steps or len(self._recent) < 2:
            return None
        (t0, step0), (t1, step1) = self._recent[0], self._recent[-1]
        if step1 <= step0 or t1 <= t0:
            return None
        return max(0, self.steps - step1) * (t1 - t0) / (step1 - step0)


def print_summary(summary: dict[str, Any], tracking_line: str = "", console: Any = None) -> None:
    """Prints what came out of a run, where its time went, and what to do next.

    `summary` = {"metrics": {name: float}, "samples_per_s": float, "seconds": {"start-up": s, "data": s, "compute": s,
    "evaluation": s, "checkpoint": s}, "steps": int, "run_dir": str, "next": [(command, what it does), ...]}; what is
    missing is left out.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console(soft_wrap=True, highlight=False)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in (summary.get("metrics") or {}).items():
        table.add_row(Text(str(name)), Text(_number(value), style="bold"))
    if isinstance(summary.get("samples_per_s"), (int, float)):
        table.add_row("throughput", f"{_number(summary['samples_per_s'])} samples/s")
    if isinstance(summary.get("steps"), int):
        table.add_row("steps", f"{summary['steps']:,}")
    seconds = {name: s for name, s in (summary.get("seconds") or {}).items() if isinstance(s, (int, float))}
    total_s = sum(seconds.values())
    for name, part_s in seconds.items():
        share = f"  {100 * part_s / total_s:3.0f} %" if total_s > 0 else ""
        table.add_row(f"time: {name}", f"{part_s:9.2f} s{share}")
    console.print()
    console.print(table)
    if summary.get("run_dir"):
        console.print(f"run folder: {summary['run_dir']}", markup=False)
    if tracking_line:
        console.print(f"MLflow: {tracking_line}", markup=False)
    commands = list(summary.get("next") or [])
    if commands:
        console.print("next:")
        width = max(len(command) for command, _ in commands)
        for command, what in commands:
            console.print(f"  {command:<{width}}  {what}", markup=False)


def _float(value: Any, otherwise: float | None) -> float | None:
    return float(value) if isinstance(value, (int, float)) else otherwise


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if math.isfinite(value) and abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _values(values: Any) -> str:
    return ", ".join(f"{name} {_number(v)}" for name, v in values.items()) if isinstance(values, dict) else ""
