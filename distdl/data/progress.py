"""How far a preparation is: rows that were written, and how much of the raw data is behind it.

Sources say nothing of it. What is read is seen from outside, at the places in the files that this process has open (Linux
tells them in /proc), so that a source is not slowed down, and a library that reads by itself is seen, too.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

FIRST_S = 5.0
"""A preparation that is over by then is not talked about where lines are printed."""
LIVE_INTERVAL_S, PLAIN_INTERVAL_S = 0.5, 10.0
WINDOW_S = 20.0
"""What the rate and the time left are told from."""

READ = 0.995
"""A share that is the whole: readers read ahead, and what is left to do then is not told by bytes."""

Follow = Callable[["Progress"], contextlib.AbstractContextManager[Any]]
"""Shows a preparation while it goes on."""


class Progress:
    """Where a preparation stands. The writer counts, a thread looks."""

    def __init__(self, title: str, options: Mapping[str, Any], unit: str = "rows") -> None:
        self.title, self.unit = title, unit
        self.rows = 0
        """Rows that were written; or what else `unit` counts."""
        self.total: int | None = None
        """Rows there will be, where the source knows."""
        self._files = raw_files(options)

    def share(self) -> float | None:
        """How much is done, from 0 to 1: by rows where their number is known, else by the bytes of the raw files that are
        behind. None where neither is. Where a file is read twice, it begins again."""
        if self.total:
            return min(1.0, self.rows / self.total) if self.rows else None
        return share_read(self._files)


def raw_files(options: Mapping[str, Any]) -> dict[str, int]:
    """The files that the options of a source name, in their order -> bytes."""
    values = [one for value in options.values() for one in (value if isinstance(value, tuple) else (value,))]
    paths = [os.path.realpath(value) for value in values if isinstance(value, str) and value and os.path.isfile(value)]
    return {path: os.path.getsize(path) for path in paths}


def share_read(files: Mapping[str, int]) -> float | None:
    """The place in the last of some files that is open, as a share of all their bytes; None: none of them is."""
    places = dict(_open_at(files))
    if not places or not sum(files.values()):
        return None
    order = list(files)
    last = max(places, key=order.index)
    behind = sum(files[path] for path in order[: order.index(last)])
    return min(1.0, (behind + places[last]) / sum(files.values()))


def _open_at(files: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """(file, bytes that were read of it) of those that this process has open."""
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError, ValueError, IndexError):  # closed meanwhile
                path = os.readlink(f"/proc/self/fd/{name}")
                if path in files:
                    yield path, int(Path(f"/proc/self/fdinfo/{name}").read_text().split()[1])


# -- what is shown -----------------------------------------------------------------------------------------------------


class Pace:
    """Rate and time left, from what was seen in the last seconds."""

    def __init__(self, unit: str = "rows") -> None:
        self.unit = unit
        self._seen: deque[tuple[float, int, float | None]] = deque()

    def see(self, now: float, rows: int, share: float | None) -> None:
        if self._seen and share is not None and (self._seen[-1][2] or 0.0) > share:
            self._seen.clear()  # another pass
        self._seen.append((now, rows, share))
        while now - self._seen[0][0] > WINDOW_S and len(self._seen) > 2:
            self._seen.popleft()

    def line(self) -> str:
        """`120,000 rows | 51,000 rows/s | 34 % | 12 s left`"""
        if not self._seen:
            return ""
        (then, rows_then, share_then), (now, rows, share) = self._seen[0], self._seen[-1]
        parts = [f"{rows:,} {self.unit}"] if rows else ["reading"]
        if rows > rows_then and now > then:
            parts.append(f"{(rows - rows_then) / (now - then):,.0f} {self.unit}/s")
        if share is not None and share > READ:
            parts.append("all is read")
        elif share is not None:
            parts.append(f"{100 * share:.0f} %" + ("" if rows else " of a first pass"))
            if share_then is not None and share > share_then:
                parts.append(f"{duration((1 - share) * (now - then) / (share - share_then))} left")
        return " | ".join(parts)

    @property
    def share(self) -> float | None:
        return self._seen[-1][2] if self._seen else None


def duration(seconds: float) -> str:
    """A time span as people say it: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def on_stderr(plain: bool | None = None, file: IO[str] | None = None, interval_s: float | None = None) -> Follow:
    """Shows a preparation on stderr: one live line in a terminal, elsewhere, or with `plain`, a line now and then."""

    @contextlib.contextmanager
    def follow(progress: Progress) -> Iterator[None]:
        from rich.console import Console

        console = Console(file=file or sys.stderr, soft_wrap=True, highlight=False)
        live = not (not console.is_terminal if plain is None else plain)
        pace, over = Pace(progress.unit), threading.Event()
        every_s = interval_s or (LIVE_INTERVAL_S if live else PLAIN_INTERVAL_S)

        def look() -> None:
            pace.see(time.monotonic(), progress.rows, progress.share())

        def lines() -> None:
            wait_s = interval_s or FIRST_S
            while not over.wait(wait_s):
                look()
                with contextlib.suppress(OSError, ValueError):  # nobody reads us any more
                    console.print(f"{progress.title}: {pace.line()}", markup=False)
                wait_s = every_s

        def bar() -> None:
            from rich.live import Live

            with Live(console=console, refresh_per_second=4, transient=True) as shown:
                while not over.wait(every_s):
                    look()
                    shown.update(_drawn(progress.title, pace))

        thread = threading.Thread(target=bar if live else lines, name="distdl-prepare", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=5.0)

    return follow


def _drawn(title: str, pace: Pace) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=1.0, completed=pace.share or 0.0, width=24, pulse=pace.share is None)
    grid.add_row(bar, Text(f"{pace.line()} | {title}", overflow="ellipsis", no_wrap=True))
    return grid
