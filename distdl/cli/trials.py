"""The trials of a search while it goes on: a live table on a terminal, plain lines elsewhere. Nothing here can fail it."""

from __future__ import annotations

import sys
import threading
import time
from typing import IO, Any

from distdl.data.progress import duration
from distdl.tune.record import Record, Trial, counted

ROWS = 12
"""Of the table: those that run, and the best."""


class Table:
    """Shows a search. `plain` None decides by whether the output is a terminal; `file` is stdout unless given."""

    def __init__(self, record: Record, trials: int, plain: bool | None = None, file: IO[str] | None = None) -> None:
        from rich.console import Console

        self._record, self._trials = record, trials
        self._console = Console(file=file or sys.stdout, soft_wrap=True, highlight=False)
        self._plain = not self._console.is_terminal if plain is None else plain
        self._waits = ""
        self._began_s = time.monotonic()
        self._said: dict[int, tuple[str, str]] = {}
        self._live: Any = None
        self._lock = threading.Lock()

    def __enter__(self) -> Table:
        r = self._record
        best = "highest" if r.better == "higher" else "lowest"
        how = (
            f"{r.search['algorithm']}, {r.search['scheduler']}"
            if r.search["scheduler"] != "none"
            else r.search["algorithm"]
        )
        self._console.print(
            f"{r.folder.name}: {self._trials} trials by {how}; the {r.metric} that is {best}", markup=False
        )
        if not self._plain:
            from rich.live import Live

            self._live = Live(console=self._console, refresh_per_second=2, get_renderable=self._table, transient=True)
            self._live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.stop()
            self._console.print(self._table())

    def waits_for(self, what: str) -> None:
        """Says what the search waits for, before its first trial."""
        self._waits = f"waiting for {what}"
        if self._plain:
            self._console.print(self._waits, markup=False)

    def tell(self, trial: Trial) -> None:
        """A trial has changed."""
        try:
            with self._lock:
                self._waits = ""
                if self._plain:
                    self._line(trial)
        except Exception:  # a closed pipe is not the search's problem
            self._plain = False

    def _line(self, trial: Trial) -> None:
        """What is new of a trial, once; its values with the first word of it, and when they have changed."""
        now = f"{trial.name} {trial.state}"
        if trial.objective is not None:
            now += f" {self._record.metric} {trial.objective:.6g} at step {trial.step:,}"
        if trial.reason:
            now += f": {trial.reason.partition(chr(10))[0]}"
        values = ", ".join(f"{key}={text(value)}" for key, value in trial.values.items())
        before, of = self._said.get(trial.number, ("", ""))
        self._said[trial.number] = (now, values)
        if (now, values) != (before, of):
            self._console.print(now if values == of else f"{now} ({values})", markup=False)

    def _table(self) -> Any:
        from rich.table import Table as RichTable
        from rich.text import Text

        record = self._record
        keys = list(record.search["space"])
        counts = ", ".join(f"{count} {state}" for state, count in sorted(counted(record.trials).items()))
        title = f"{len(record.trials)} of {self._trials} trials ({counts or self._waits}), "
        title += duration(time.monotonic() - self._began_s)
        table = RichTable("trial", "state", "step", record.metric, *keys, title=title, title_justify="left", box=None)
        for trial in self._shown():
            value = "" if trial.objective is None else f"{trial.objective:.6g}"
            state = "failed: " + trial.reason.partition("\n")[0] if trial.state == "failed" else trial.state
            style = "bold" if trial is record.best() else ""
            cells = (trial.name, state, f"{trial.step:,}", value, *(text(trial.values.get(key)) for key in keys))
            table.add_row(*(Text(cell, style=style) for cell in cells))
        return table

    def _shown(self) -> list[Trial]:
        """Those that run, then the best of the others."""
        trials = list(self._record.trials)
        running = [t for t in trials if t.state == "running"]
        sign = -1 if self._record.better == "higher" else 1
        rest = [t for t in trials if t.state != "running"]
        rest.sort(key=lambda t: (t.objective is None, sign * (t.objective or 0.0), t.number))
        return [*running, *rest][:ROWS]


def text(value: Any) -> str:
    """A value as it is read in the YAML."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
