"""Why a driver ended, found in its output. Imports nothing: machines reached over SSH call it at every question."""

from __future__ import annotations

import re

LONGEST = 500
"""Characters of a cause; the log has the rest."""
OF_RAY = re.compile(r"Job entrypoint command failed with exit code (-?\d+), last available logs[^\n:]*:\s")
"""What Ray Jobs, and KubeRay from it, put in front of up to 20,000 characters of the driver's output."""


def cause(log: str) -> str:
    """distdl's own last words (`distdl: WHAT` and the indented lines below it), else the last line; '' for no output."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    if not lines:
        return ""
    last = next((n for n in reversed(range(len(lines))) if lines[n].startswith("distdl: ")), len(lines) - 1)
    below = [line.strip() for line in lines[last + 1 :]]
    end = next((n for n, line in enumerate(lines[last + 1 :]) if not line.startswith("    ")), len(below))
    return cut("; ".join([lines[last].removeprefix("distdl: ").strip(), *below[:end]]))


def of_message(message: str) -> str:
    """What Ray says of a job that ended, with the cause in the place of the log that holds it."""
    if found := OF_RAY.search(message):
        return f"exit code {found[1]}: {cause(message[found.end() :])}".removesuffix(": ")
    return cut(" ".join(message.split()))


def cut(text: str) -> str:
    """At most `LONGEST` characters of a text."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
