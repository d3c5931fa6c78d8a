"""Whether a run that is one of many may go on past an evaluation: who compares them decides, by a file of its folder.

    runs/NAME/gate.json   {"until": 40}: it waits at its first evaluation from step 40 on; null: it waits nowhere
                          {"stop": true}: it ends with the step that it waits at, and a checkpoint

A run without the file is alone, and waits for nobody.
"""

from __future__ import annotations

from pathlib import Path

from distdl.files import read_json, replace_json

FILE = "gate.json"
GO_ON, WAIT, STOP = range(3)


class Gate:
    """The gate of a run's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def there(self) -> bool:
        """Whether the run has one."""
        return (self._folder / FILE).is_file()

    def asks(self, step: int) -> int:
        """What a run does that was evaluated at this step."""
        told = read_json(self._folder / FILE) or {}
        if told.get("stop"):
            return STOP
        until = told.get("until")
        return WAIT if until is not None and step >= until else GO_ON

    def open_until(self, step: int | None) -> None:
        """Lets the run go on, to its first evaluation from this step on."""
        self._tell({"until": step})

    def stop(self) -> None:
        """Ends the run where it waits, or at its next evaluation."""
        self._tell({"stop": True})

    def remove(self) -> None:
        """The run is alone from now on."""
        (self._folder / FILE).unlink(missing_ok=True)

    def _tell(self, what: dict[str, int | bool | None]) -> None:
        replace_json(self._folder / FILE, what, self._folder / f".{FILE}")
